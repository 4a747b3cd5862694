"""What befalls several machines: slow ones, vanished ones, full disks, clocks that jump."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from llc_jax.experiment.locking import locked
from llc_jax.training import logging
from tests.experiment.test_full_disk import disk, linear_run, unbroken  # noqa: F401
from tests.processes import PIPES, ROOT, finish, start_several
from tests.small_disks import fill
from tests.test_cluster import start_steps
from tests.workdirs import assert_same_weights, assert_tensorboard_is_complete, records


def test_a_slow_process_is_waited_for():
    pair = start_steps(num_steps=200)
    pair[1].send_signal(signal.SIGSTOP)
    time.sleep(3.0)
    assert pair[0].poll() is None
    pair[1].send_signal(signal.SIGCONT)
    for process in pair:
        assert finish(process, timeout=60)[1] == ""


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(monkeypatch, unbroken, tmp_path):  # noqa: F811
    workdir, results = unbroken
    # Orbax gives up a save that, by this clock, takes 20 minutes, in parts one after the other.
    calls, now = itertools.count(), time.time
    monkeypatch.setattr(time, "time", lambda: now() + 90 * (next(calls) % 3 - 1))
    assert linear_run(tmp_path / "run") == results
    assert next(calls) > 10
    assert records(tmp_path / "run") == records(workdir)
    assert_same_weights(tmp_path / "run", workdir, stages=["linear"], rtol=0, atol=0)
    assert_tensorboard_is_complete(tmp_path / "run")


@pytest.mark.slow
def test_a_workdir_that_another_run_has_is_refused_in_all_processes(tmp_path):
    with locked(tmp_path):
        for process in start_several(2, tmp_path, optimized=False):
            _, err = finish(process, status=2)
            holder = f"process {os.getpid()} on {socket.gethostname()} since "
            assert err.startswith(f"error: Another run is at work in {tmp_path}: {holder}")
            assert err.count("\n") == 1


@pytest.mark.slow
def test_a_full_disk_ends_all_processes(disk):  # noqa: F811
    pair = start_several(2, disk / "run", optimized=False)
    while not logging.read_metrics(disk / "run"):
        assert pair[0].poll() is None, pair[0].communicate()
        time.sleep(0.01)
    fill(disk)
    for process in pair:
        _, err = process.communicate(timeout=120)
        assert process.returncode in (1, 2)
        assert err.startswith("error: ")
        assert "No space left" in err or "A set of 3 checkpoints needs about " in err
        assert err.count("\n") == 1


WAITING = """
import sys, time
from llc_jax.training.process import Process

process = Process()
process.join("10.99.0.1:7000", 2, int(sys.argv[1]), 60)
time.sleep(300)
"""


@contextlib.contextmanager
def two_hosts():
    """Makes two network namespaces that a cable connects; yields their names, or skips the test."""
    names = [f"llc-{os.getpid()}-{index}" for index in range(2)]

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)

    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "delete", name)
            ends = ("type", "veth", "peer", "name", "cable", "netns", names[1])
            ip("link", "add", "cable", "netns", names[0], *ends)
            for index, name in enumerate(names, start=1):
                ip("-n", name, "address", "add", f"10.99.0.{index}/24", "dev", "cable")
                ip("-n", name, "link", "set", "cable", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces can be made here: {error}")
        yield names


@pytest.mark.slow
def test_a_machine_that_vanishes_ends_the_others_within_two_minutes():
    with two_hosts() as names:
        pair = [
            subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, "-c", WAITING, str(index)],
                cwd=ROOT,
                **PIPES,
            )
            for index, name in enumerate(names)
        ]
        try:
            for index, process in enumerate(pair):
                assert process.stdout.readline().startswith(f"Process {index} of 2: ")
            began = time.monotonic()
            subprocess.run(["ip", "-n", names[1], "link", "set", "cable", "down"], check=True)
            for index, process in enumerate(pair):
                _, err = finish(process, status=1, timeout=120)
                other = 1 - index
                lost = f"error: Process {other} at 10.99.0.{other + 1} of the run has ended, or"
                assert err.startswith(lost)
                assert err.count("\n") == 1
                print(f"process {index} ended after {time.monotonic() - began:.0f} s: {err}")
        finally:
            for process in pair:
                process.kill()
