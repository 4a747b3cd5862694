"""Disks that become full: one sentence, and once there is room, the run continues."""

import time

import jax
import numpy as np
import pytest

from llc_jax import cli, commands
from llc_jax.experiment import results as results_module
from llc_jax.experiment import run as run_module
from llc_jax.experiment.run import run
from llc_jax.files import WriteFailed
from llc_jax.prepare import resized
from llc_jax.search import index_file
from llc_jax.training import logging
from llc_jax.training.checkpoint import Checkpoints
from tests.small_disks import fill, fill_before, small_disk
from tests.test_main import finish, start
from tests.tiny import tree
from tests.workdirs import assert_same_weights, assert_tensorboard_is_complete, records
from tests.writing import jpegs

NO_ROOM = r"Cannot write .* \(No space left on device\): make room there\."


@pytest.fixture
def disk():
    """The mount point of an empty disk."""
    with small_disk() as directory:
        yield directory


def linear_run(workdir):
    """Runs the first stage of the tiny config on one device."""
    stages = {"linear": tree()["stages"]["linear"]}
    return run(tree(stages=stages), workdir, jax.devices()[:1])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run on a disk that has room, and its figures."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, linear_run(workdir)


# What a save that has failed abandons, Orbax's threads cannot raise.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("place", "name", "call"),
    [
        (run_module, "locked", 1),
        (run_module, "write_json", 1),  # config.json
        (logging, "_truncate_metrics", 1),
        (logging, "_open_events", 1),
        (logging.StageLog, "write", 2),
        (Checkpoints, "save", 2),
        (Checkpoints, "_write_checksums", 2),
        (results_module, "write_confusions", 1),
        (run_module, "write_json", 3),  # those of the run
    ],
)
def test_a_run_continues_once_there_is_room(disk, monkeypatch, unbroken, place, name, call):
    with monkeypatch.context() as filling:
        fill_before(filling, disk, place, name, call)
        with pytest.raises(WriteFailed, match=NO_ROOM):
            linear_run(disk / "run")
    (disk / "filler").unlink()
    workdir, results = unbroken
    assert linear_run(disk / "run") == results
    assert records(disk / "run") == records(workdir)
    assert_same_weights(disk / "run", workdir, stages=["linear"], rtol=0, atol=0)
    assert_tensorboard_is_complete(disk / "run")


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.4])
def test_a_disk_that_is_full_at_any_moment_is_one_sentence(disk, tmp_path, delay):
    process = start(disk / "run")
    while not logging.read_metrics(disk / "run"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(delay)
    fill(disk)
    _, err = process.communicate(timeout=120)
    if process.returncode == 2:  # A stage was about to start, which asks for room first.
        assert err.startswith("error: A set of 3 checkpoints needs about ")
    else:
        assert process.returncode == 1
        assert err.startswith("error: Cannot write ")
        assert err.endswith("(No space left on device): make room there.\n")
    assert err.count("\n") == 1
    (disk / "filler").unlink()
    finish(start(disk / "run"))
    finish(start(tmp_path / "unbroken"))
    assert records(disk / "run") == records(tmp_path / "unbroken")
    assert_same_weights(disk / "run", tmp_path / "unbroken", rtol=0, atol=0)


def refuse_then_write(disk, capsys, out, arguments):
    """Calls `llc`, which finds a full disk, and again once there is room."""
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: Cannot write ")
    assert "(No space left on device): make room there." in err
    assert err.count("\n") == 1
    (disk / "filler").unlink()
    assert cli.main(arguments) == 0
    assert out.stat().st_size > 0


def test_llc_encode_and_llc_index(disk, monkeypatch, capsys, tmp_path):
    class Model:
        num_bits = 8

    rng = np.random.default_rng(0)
    paths, logits = [f"{i}.png" for i in range(20_000)], rng.standard_normal((20_000, 8))
    monkeypatch.setattr(commands.arguments, "find_files", lambda _: paths)
    monkeypatch.setattr(commands, "_load", lambda _: Model)
    monkeypatch.setattr(commands.arguments, "code_logits", lambda *_: (paths, logits))
    codes, index = disk / "codes.npz", disk / "codes.index"
    codes.write_bytes(b"older")
    fill(disk)
    encode = ["encode", "photos", "--run", "run", "--out", str(codes)]
    refuse_then_write(disk, capsys, codes, encode)
    fill_before(monkeypatch, disk, index_file, "_sections", 1)
    arguments = ["index", "--codes", str(codes), "--out", str(index)]
    refuse_then_write(disk, capsys, index, arguments)
    assert sorted(path.name for path in disk.iterdir()) == ["codes.index", "codes.npz"]


def test_a_resized_copy(disk, monkeypatch, capsys, tmp_path):
    for number, content in enumerate(jpegs(12)):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    resize = ["prepare", "resize", str(tmp_path / "photos")]
    out = disk / "small.tar"
    fill_before(monkeypatch, disk, resized, "_append", 1)
    refuse_then_write(disk, capsys, out, [*resize, str(out)])
    assert cli.main([*resize, str(tmp_path / "whole.tar")]) == 0
    assert out.read_bytes() == (tmp_path / "whole.tar").read_bytes()
