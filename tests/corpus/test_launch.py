"""The scripts that start an encoding on a cluster."""

import os
import shlex
import subprocess

import pytest
import yaml

from llc_jax.corpus import tasks
from tests.processes import ROOT

LAUNCH = ROOT / "launch"


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


def test_a_jobset(llc):
    values = {
        "NAME": "photos",
        "TASKS": "16",
        "IMAGE": "registry/llc:1",
        "CLAIM": "shared",
        "ARGUMENTS": "--run /shared/run --shards /shared/photos-{0000..0999}.tar --out /shared/c",
    }
    text = (LAUNCH / "encode_jobset.yaml").read_text()
    for name, value in values.items():
        text = text.replace(f"${{{name}}}", value)
    assert "${" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
    manifest = yaml.safe_load(text)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 16
    container = job["template"]["spec"]["containers"][0]
    command = [*container["command"], *container["args"]]
    printed = run(command, PATH=f"{llc.parent}:{os.environ['PATH']}", JOB_COMPLETION_INDEX="3")
    words = printed.split()
    assert words == ["encode", *values["ARGUMENTS"].split(), "--task", "3/16"]
    assert tasks.find(words[-1]) == (3, 16)
