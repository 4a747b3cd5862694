"""Workers that are killed at random moments, and started again; it takes minutes."""

import contextlib
import os
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from llc_jax.files import sweep
from llc_jax.search import code_shards
from tests.corpora import write_digits
from tests.processes import ROOT

pytest.importorskip("pyarrow", reason="pip install pyarrow")
KILLS = 20
SHARDS, ITEMS = 24, 700
PROGRAM = "import sys; from llc_jax.cli import main; sys.exit(main())"
DAMAGED = 3  # Of each shard, one item.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A run, and a folder of tars."""
    return write_digits(tmp_path_factory.mktemp("corpus"), SHARDS, ITEMS, DAMAGED)


@contextlib.contextmanager
def started(corpus, out, *tasks):
    """Starts a worker for each task; none is left behind."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "XDG_CACHE_HOME": str(corpus / "cache"),
    }
    command = [sys.executable, "-c", PROGRAM, "encode", f"--run={corpus}/run", f"--out={out}"]
    command += ["--shards", f"{corpus}/{{00..{SHARDS - 1}}}.tar"]
    workers = [
        subprocess.Popen([*command, "--task", task], env=environment, stderr=subprocess.DEVNULL)
        for task in tasks
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def visible(out):
    return set(out.glob("[0-9]*.parquet"))


def partial(out):
    return set(out.glob(".*.partial*"))


def check_new_files(out, checked):
    """Reads all files that have appeared: each is whole at once."""
    for path in visible(out) - checked:
        assert len(code_shards.read(path, "key").ids) == ITEMS - 1
        checked.add(path)


def wait_for_work(out, workers, checked):
    """Waits until a file is being written, or has been; returns whether that came."""
    before, left_behind = len(checked), partial(out)
    while len(checked) == before:
        if all(worker.poll() is not None for worker in workers):
            return False
        check_new_files(out, checked)
        if random.random() < 0.5 and partial(out) - left_behind:
            break
        time.sleep(0.001)
    return True


@pytest.mark.slow
def test_nothing_is_lost_or_doubled(corpus, tmp_path):
    unbroken = tmp_path / "unbroken"
    with started(corpus, unbroken, "0/1") as (worker,):
        assert worker.wait(120) == 0
    kills, outs = 0, []
    while kills < KILLS:
        out = tmp_path / f"codes_{len(outs)}"
        outs.append(out)
        out.mkdir()
        checked, finished = set(), False
        while not finished:
            # Some workers have the same task.
            tasks = random.choice([("0/2", "1/2"), ("0/2", "0/2"), ("0/1", "1/2")])
            if kills >= KILLS:
                tasks = ("0/1",)
            with started(corpus, out, *tasks) as workers:
                while kills < KILLS and wait_for_work(out, workers, checked):
                    time.sleep(random.uniform(0.0, 0.05))
                    victim = random.choice(workers)
                    if victim.poll() is None:
                        victim.kill()
                        victim.wait()
                        kills += 1
                        print(f"kill {kills}: {len(checked)} of {SHARDS} shards")
                for worker in workers:
                    worker.wait(120)
            check_new_files(out, checked)
            finished = len(checked) == SHARDS
    expected = {path.name: path.read_bytes() for path in unbroken.iterdir()}
    for out in outs:
        sweep(out)
        assert {path.name: path.read_bytes() for path in pathlib.Path(out).iterdir()} == expected
        shards = list(code_shards.read_all(out, "key"))
        ids = np.concatenate([shard.ids for shard in shards])
        rows = [row for row in range(ITEMS) if row != DAMAGED]
        assert ids.tolist() == [s * 2**32 + row for s in range(SHARDS) for row in rows]
        assert [key for shard in shards for key in shard.keys] == [f"{r:05}" for r in rows] * SHARDS
