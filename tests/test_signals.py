"""Signals to one process, at all times that are not training."""

import signal
import subprocess
import sys
import time

import pytest

from tests.processes import PIPES, ROOT, finish, start, wait_until_signals_are_caught

STOPPED = "Stopped by {}: the same command continues from what is saved.\n"
SIGNALS = [signal.SIGTERM, signal.SIGINT]

# Runs main with one function replaced by one that says so and waits.
HANGING = """
import sys, time, runpy
{imports}
def hang(*_, **__):
    print("here", flush=True)
    time.sleep(60)
{name} = hang
runpy.run_module("llc_jax.main", run_name="__main__")
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_while_it_is_imported(tmp_path, number):
    cluster = ["--coordinator=localhost:9", "--num_processes=2", "--process_id=1"]
    process = start(tmp_path / "run", *cluster)
    wait_until_signals_are_caught(process)
    process.send_signal(number)
    out, err = finish(process, status=128 + number, timeout=10)
    assert (out, err) == ("", STOPPED.format(number.name))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("llc_jax.experiment.run.plan_run", signal.SIGTERM),
        ("llc_jax.experiment.results.measure", signal.SIGTERM),
        ("llc_jax.experiment.results.measure", signal.SIGINT),
    ],
)
def test_while_it_plans_and_evaluates(tmp_path, name, number):
    program = HANGING.format(imports=f"import {name.rpartition('.')[0]}", name=name)
    process = start(tmp_path / "run", program=("-c", program))
    while process.stdout.readline() != "here\n":
        assert process.poll() is None, process.communicate()
    process.send_signal(number)
    _, err = finish(process, status=128 + number, timeout=10)
    assert err == STOPPED.format(number.name)


BUSY = """
import hashlib
from llc_jax.training.process import Process
process = Process()
print("here", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)  # Compiled code, which takes a minute.
"""
TRAINING = """
import time
from llc_jax.training.process import Process
process = Process()
with process.stop_request.training():
    process.stop_request.after_step()
    print("here", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("code", "times"), [(BUSY, 1), (TRAINING, 2)])
def test_in_compiled_code_and_twice_in_training(code, times):
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **PIPES)
    assert process.stdout.readline() == "here\n"
    for _ in range(times):
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    _, err = finish(process, status=128 + signal.SIGTERM, timeout=5)
    assert err == STOPPED.format("SIGTERM")


FINISHED = """
import time
from llc_jax.training.process import Process
process = Process()
process.finish()
print("here", flush=True)
time.sleep(0.5)
"""


def test_a_finished_run_is_a_success_whatever_comes():
    process = subprocess.Popen([sys.executable, "-c", FINISHED], cwd=ROOT, **PIPES)
    assert process.stdout.readline() == "here\n"
    for number in SIGNALS:
        process.send_signal(number)
    assert finish(process, timeout=5) == ("", "")
