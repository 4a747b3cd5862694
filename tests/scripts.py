"""The scripts of launch/, called with programs that stand in for those that they start."""

import os
import shlex
import subprocess
import time

import pytest

from tests.processes import PIPES, ROOT

LAUNCH = ROOT / "launch"
TRAIN = ["--config=folder_20bit:/shared/my photos", "--workdir=/shared/run"]
# What stands in for Python says what it was given, and what it knows of its job.
PYTHON = """#!/usr/bin/env bash
env | grep -E '^(JAX_[A-Z_]+|PYTHONUNBUFFERED)=' | sort
printf '<%s>' "$@"; echo
trap 'echo stopped; sleep 0.5; exit 143' TERM
trap 'echo interrupted; sleep 0.5; exit 130' INT
[ -z "${WAIT:-}" ] || for ((i = 0; i < 200; i++)); do sleep 0.1; done
exit "${STATUS:-0}"
"""


def call(script, *arguments, status=0, **environment):
    """Runs a script; returns what it prints, on standard error where it fails."""
    command = ["bash", str(LAUNCH / script), *arguments]
    result = subprocess.run(command, env=os.environ | environment, **PIPES)
    assert result.returncode == status, result.stderr
    return result.stderr if status else result.stdout


def dry_run(script, *arguments):
    """Returns the commands that a script would run, each a list of words."""
    printed = call(script, *arguments)
    return [shlex.split(line) for line in printed.splitlines()]


def program(path, text):
    """Writes a program that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def wait_for(path, text):
    """Waits until a file has a text."""
    for _ in range(200):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(path.read_text() if path.exists() else f"no {path}")


def unknown_to_jobset(manifest):
    """Returns what the schema of JobSets does not know, of a manifest.

    Raises:
      ValueError: if a value is of another type.
    """
    models = pytest.importorskip("kubeflow_trainer_api.models.jobset_v1alpha2_job_set")
    known = models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict()
    return list(_unknown(manifest, known, "jobset"))


def _unknown(given, known, path):
    if isinstance(given, dict):
        for key, value in given.items():
            if isinstance(known, dict) and key in known:
                yield from _unknown(value, known[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(given, list):
        for item, (value, other) in enumerate(zip(given, known, strict=True)):
            yield from _unknown(value, other, f"{path}[{item}]")
    elif given != known:
        yield f"{path}: {known!r} is not {given!r}"
