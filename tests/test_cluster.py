"""The processes of one run, which stop, fail and end together."""

import re
import signal
import subprocess
import sys
import time

import pytest

from tests.processes import PIPES, ROOT, finish, free_address, start

LOST = (
    "error: Process {} at 127.0.0.1 of the run has ended, or cannot be reached (its connection was "
    "closed). Start all again: the same commands continue from the last checkpoint.\n"
)
# Steps that need all processes, as those of training do.
STEPS = """
import sys
from llc_jax.errors import InputError
from llc_jax.training.preemption import Stopped
from llc_jax.training.process import Process

address, count, index, num_steps, fails_after = sys.argv[1], *map(int, sys.argv[2:])
process = Process()
process.join(address, count, index, 20)
import numpy as np
from jax.experimental import multihost_utils
try:
    with process.stop_request.training():
        for step in range(num_steps):
            multihost_utils.process_allgather(np.array(step))
            if step == 5:
                print("here", flush=True)
            if step == fails_after:
                raise InputError("There is no step 9.")
            if process.stop_request.after_step():
                raise Stopped(f"Stopped after step {step}.", process.stop_request.signal)
    process.finish()
except Stopped as stopped:
    process.end(128 + stopped.signal, str(stopped))
except InputError as error:
    process.fail(2, str(error))
except Exception as error:
    process.crash(error)
"""


def start_steps(num_steps=1_000_000, fails_after=(-1, -1)):
    """Starts processes that take steps together: two, or one for each number."""
    command = [sys.executable, "-c", STEPS, free_address(), str(len(fails_after))]
    processes = [
        subprocess.Popen([*command, str(i), str(num_steps), str(last)], cwd=ROOT, **PIPES)
        for i, last in enumerate(fails_after)
    ]
    for process in processes:
        while (line := process.stdout.readline()) != "here\n":
            assert line, process.communicate()
    return processes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("first", "pause"), [(0, None), (1, None), (0, 0.0), (1, 0.3), (0, 1.0)])
def test_a_signal_to_one_or_to_both_apart_stops_both(number, first, pause):
    pair = start_steps()
    pair[first].send_signal(number)
    if pause is not None:
        time.sleep(pause)
        pair[1 - first].send_signal(number)
    errors = [finish(process, status=128 + number, timeout=20)[1] for process in pair]
    assert errors[0].startswith("Stopped after step ")
    assert errors[0] == errors[1]


@pytest.mark.parametrize(("count", "killed"), [(2, 0), (2, 1), (3, 1)])
def test_a_lost_process_ends_the_others(count, killed):
    processes = start_steps(fails_after=[-1] * count)
    lost = processes.pop(killed)
    lost.kill()
    for process in processes:
        assert finish(process, status=1, timeout=10)[1] == LOST.format(killed)
    finish(lost, status=-signal.SIGKILL)


def test_an_error_in_one_process_ends_both():
    pair = start_steps(fails_after=(-1, 9))
    assert finish(pair[1], status=2, timeout=20)[1] == "error: There is no step 9.\n"
    assert finish(pair[0], status=2, timeout=20)[1] == "error: Process 1: There is no step 9.\n"


def test_an_error_in_both_is_that_of_each():
    for process in start_steps(fails_after=(9, 9)):
        assert finish(process, status=2, timeout=20)[1] == "error: There is no step 9.\n"


def test_the_end_is_silent():
    for process in start_steps(num_steps=20):
        assert finish(process, timeout=20)[1] == ""


# Process 0 is finished when process 1 gets a signal.
AT_THE_END = """
import os, signal, sys, time
from llc_jax.training.process import Process

address, index = sys.argv[1], int(sys.argv[2])
process = Process()
process.join(address, 2, index, 20)
if index == 1:
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
print("finished")
process.finish()
"""


def test_a_signal_to_one_does_not_keep_the_other_from_its_end():
    command = [sys.executable, "-c", AT_THE_END, free_address()]
    pair = [subprocess.Popen([*command, str(i)], cwd=ROOT, **PIPES) for i in range(2)]
    _, err = finish(pair[1], status=128 + signal.SIGTERM, timeout=20)
    assert err == "Stopped by SIGTERM: the same command continues from what is saved.\n"
    out, err = finish(pair[0], timeout=5)
    assert re.fullmatch(r"Process 0 of 2: 8 of 16 devices, cpu, on \S+\nfinished\n", out)
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coordinator=localhost:9"], "--coordinator=localhost:9 needs --num_processes and"),
        (["--num_processes=2"], "--num_processes needs --coordinator"),
        (["--coordinator=auto"], "--coordinator=auto: nothing here tells of other processes"),
        (["--platform=gpu"], "Devices of the platform gpu are meant, but on "),
        (
            ["--coordinator=localhost:9", "--num_processes=2", "--process_id=2"],
            "--process_id=2 is not one of 2 processes",
        ),
    ],
)
def test_processes_that_cannot_join(tmp_path, arguments, message):
    _, err = finish(start(tmp_path / "run", *arguments), status=2)
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_process_that_does_not_find_the_others_may_be_started_again(tmp_path):
    arguments = ["--coordinator=localhost:9", "--num_processes=2", "--process_id=1"]
    process = start(tmp_path / "run", *arguments, "--initialization_timeout=1")
    _, err = finish(process, status=1)
    assert err.startswith("error: Process 0 was not found at --coordinator=localhost:9 within 1 s")
    assert err.count("\n") == 1
