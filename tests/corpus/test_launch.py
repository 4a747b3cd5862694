"""The scripts that start an encoding on a cluster."""

import os
import shlex
import subprocess

import pytest
import yaml

from llc_jax.corpus import tasks
from tests.scripts import LAUNCH, unknown_to_jobset


@pytest.fixture
def llc(tmp_path):
    """A program in the place of `llc` that prints its arguments, one a line, and its task."""
    program = tmp_path / "llc"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho "$SLURM_ARRAY_TASK_ID"\n')
    program.chmod(0o755)
    return program


def run(command, **variables):
    environment = {"PATH": os.environ["PATH"]} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_slurm(llc, tmp_path):
    script = ["bash", str(LAUNCH / "encode.sbatch")]
    arguments = ["--run", "runs/a b", "--shards", "photos-{000..999}.tar", "--out", "codes"]
    printed = run([*script, "--dry-run", *arguments])
    assert shlex.split(printed) == [".venv/bin/llc", "encode", *arguments]
    array = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_SUBMIT_DIR": str(tmp_path), "LLC": str(llc)}
    assert run([*script, *arguments], **array).splitlines() == ["encode", *arguments, "2"]


ARGUMENTS = "--run /shared/run --shards /shared/photos-{0000..0999}.tar --out /shared/c"
VALUES = {
    "NAME": "photos",
    "TASKS": "16",
    "IMAGE": "registry/llc:1",
    "CLAIM": "shared",
    "ARGUMENTS": ARGUMENTS,
}


@pytest.fixture
def manifest():
    """The JobSet with its values."""
    text = (LAUNCH / "encode_jobset.yaml").read_text()
    for name, value in VALUES.items():
        text = text.replace(f"${{{name}}}", value)
    assert "${" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
    return yaml.safe_load(text)


def test_the_jobset_fits_its_schema(manifest):
    assert unknown_to_jobset(manifest) == []


def test_a_jobset(manifest, llc):
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 16
    container = job["template"]["spec"]["containers"][0]
    command = [*container["command"], *container["args"]]
    printed = run(command, PATH=f"{llc.parent}:{os.environ['PATH']}", JOB_COMPLETION_INDEX="3")
    words = printed.split()
    assert words == ["encode", *ARGUMENTS.split(), "--task", "3/16"]
    assert tasks.find(words[-1]) == (3, 16)
