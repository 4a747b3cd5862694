"""Kills and signals at all moments of a run, in one process and in several; it takes minutes.

KILLS=20 in the environment asks for so many kills, and half as many signals.
"""

import contextlib
import itertools
import os
import pathlib
import random
import signal
import time

import pytest

from tests.processes import finish, start_several, wait_until_signals_are_caught
from tests.workdirs import (
    STAGES,
    assert_same_weights,
    assert_tensorboard_is_complete,
    records,
)

# Longer than the tiny config, so that most moments are hit.
LONGER = [
    *(f"--config.stages.{name}.epochs=4" for name in STAGES),
    *("--config.eval_epochs=2", "--config.checkpoint.steps=10"),
]
# Kills by the number of processes, where the environment does not say.
KILLS = {1: 14, 2: 14, 4: 4}


@contextlib.contextmanager
def started(workdir, count):
    """Starts a run in one process or in several; none is left behind."""
    processes = start_several(count, workdir, *LONGER, optimized=False)
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def files(workdir, pattern):
    return set(pathlib.Path(workdir).glob(pattern))


# What a moment waits for: a new file of that pattern; then a random time, in seconds.
MOMENTS = {
    "start-up": (None, (0.0, 3.0)),
    "training": ("*/checkpoints/*", (0.0, 0.3)),
    "saving": ("*/checkpoints/*tmp*", (0.0, 0.02)),
    "evaluation": ("*/checkpoints/56", (0.0, 0.4)),
    "between stages": ("*/results.json", (0.0, 0.1)),
}


def reach(moment, workdir, processes):
    """Waits for a moment; returns whether it came before the end of the run."""
    pattern, (least, most) = MOMENTS[moment]
    before = files(workdir, pattern) if pattern else set()
    for process in processes:
        wait_until_signals_are_caught(process)
    while pattern and not files(workdir, pattern) - before:
        if any(process.poll() is not None for process in processes):
            return False
        time.sleep(0.002)
    time.sleep(random.uniform(least, most))
    return all(process.poll() is None for process in processes)


def kill(processes, workdir, moment):
    """Kills some or all; those that are left end soon, and say why in one sentence.

    They exit with 0, and say nothing, only if the run is finished.
    """
    victims = random.sample(processes, random.randint(1, len(processes)))
    for process in victims:
        process.kill()
    # They may not know each other yet: --initialization_timeout is 60 seconds.
    patience, statuses = (75, (1, 2)) if moment == "start-up" else (20, (1,))
    for process in processes:
        _, err = process.communicate(timeout=patience)
        if process in victims:
            continue
        print(f"  another one: status {process.returncode}, {err.count(chr(10))} lines")
        if process.returncode == 0:
            assert (workdir / "results.json").exists()
            assert err == ""
            continue
        assert process.returncode in statuses, (moment, err)
        assert err.startswith("error: "), (moment, err)
        assert err.count("\n") == 1, (moment, err)


def terminate(processes, workdir, moment):
    """Sends SIGTERM to one, to all, or to all one after the other; all say so and exit.

    They exit with 0, and say nothing, only if the run is finished.
    """
    random.shuffle(processes)
    pause = random.choice([None, 0.0, 0.3, 1.0])
    if moment == "start-up":
        pause = 0.0  # They do not know each other yet.
    processes[0].terminate()
    if pause is not None:
        time.sleep(pause)
        for process in processes[1:]:
            process.terminate()
    for process in processes:
        _, err = process.communicate(timeout=120)
        if process.returncode == 0:
            assert (workdir / "results.json").exists()
            continue
        assert process.returncode == 128 + signal.SIGTERM, (moment, err)
        assert "the same command continues from" in err
        assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("count", KILLS)
def test_every_continued_run_is_bit_identical(tmp_path, count):
    with started(tmp_path / "unbroken", count) as processes:
        for process in processes:
            finish(process, timeout=300)
    kills = int(os.environ.get("KILLS", KILLS[count]))
    left = [
        (kind, moment)
        for kind, times in ((kill, kills), (terminate, kills // 2))
        for moment in itertools.islice(itertools.cycle(MOMENTS), times)
    ]
    random.shuffle(left)
    runs = 0
    while left:
        workdir = tmp_path / str(runs)
        runs += 1
        while True:
            with started(workdir, count) as processes:
                if not left or not reach(left[-1][1], workdir, processes):
                    for process in processes:
                        finish(process, timeout=300)
                    break
                attack, moment = left.pop()
                began = time.monotonic()
                attack(processes, workdir, moment)
                print(f"{attack.__name__} in {moment}: {time.monotonic() - began:.1f} s")
        assert_same_weights(workdir, tmp_path / "unbroken", rtol=0, atol=0)
        assert records(workdir) == records(tmp_path / "unbroken")
        assert_tensorboard_is_complete(workdir)
    print(f"{kills} kills and {kills // 2} signals over {runs} runs in {count} process(es)")
