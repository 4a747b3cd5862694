"""Runs whose files are damaged, removed or fought over."""

import random
import resource
import shutil
import time

import pytest

from llc_jax.errors import InputError
from llc_jax.experiment.run import run
from llc_jax.files import WriteFailed, read_json
from llc_jax.training import logging
from tests.test_main import finish, start
from tests.tiny import tree
from tests.workdirs import STAGES, assert_same_weights, records


def linear_tree():
    """The tiny config with its first stage alone: checkpoints of the steps 14 and 28."""
    return tree(stages={"linear": tree()["stages"]["linear"]})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The workdir of a run of the linear stage that nothing stopped."""
    workdir = tmp_path_factory.mktemp("unbroken")
    run(linear_tree(), workdir)
    return workdir


@pytest.fixture
def copy(unbroken, tmp_path):
    """A copy of it."""
    return shutil.copytree(unbroken, tmp_path / "run")


def flip_bit(path, bit):
    """Inverts one bit of a file, counted from its start."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flip_and_continue(unbroken, workdir, rng, capsys):
    """Flips a bit of the last checkpoint's data; the run must go on from the one before."""
    for name in ("results.json", "linear/results.json"):
        (workdir / name).unlink()
    checkpoint = workdir / "linear" / "checkpoints" / "28"
    files = sorted(path for path in checkpoint.glob("*/**/*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    (path,) = rng.choices(files, sizes)
    flip_bit(path, rng.randrange(8 * path.stat().st_size))
    results = run(linear_tree(), workdir)
    said = capsys.readouterr().out
    assert f"{checkpoint} is damaged ({path.relative_to(checkpoint)} has changed" in said
    assert "and is now 28.damaged1." in said
    assert "linear: continues after step 14 of 28" in said
    assert results == run(linear_tree(), unbroken)
    assert records(workdir) == records(unbroken)
    assert_same_weights(workdir, unbroken, stages=["linear"], rtol=0, atol=0)


def test_a_flipped_bit_in_the_last_checkpoint_costs_an_epoch(unbroken, copy, capsys):
    flip_and_continue(unbroken, copy, random.Random(0), capsys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_fifty_flipped_bits(unbroken, copy, capsys, seed):
    flip_and_continue(unbroken, copy, random.Random(seed), capsys)


def test_no_whole_checkpoint_is_one_sentence_and_then_a_new_beginning(unbroken, copy):
    for name in ("results.json", "linear/results.json"):
        (copy / name).unlink()
    for step in ("14", "28"):
        (copy / "linear" / "checkpoints" / step / "default" / "_METADATA").write_text("")
    with pytest.raises(InputError, match="No other is left: the same command trains the stage"):
        run(linear_tree(), copy)
    assert run(linear_tree(), copy) == run(linear_tree(), unbroken)
    assert records(copy) == records(unbroken)


@pytest.mark.parametrize("name", ["results.json", "linear/results.json"])
def test_damaged_results_are_refused(copy, name):
    (copy / "results.json").unlink()
    (copy / name).write_bytes(b'{"classification/lin')
    with pytest.raises(InputError, match=rf"{copy}/{name} is damaged .* Remove it, and"):
        run(linear_tree(), copy)
    assert (copy / name).read_bytes() == b'{"classification/lin'


@pytest.mark.parametrize("name", ["results.json", "linear/results.json"])
def test_empty_results_are_measured_again(unbroken, copy, name):
    (copy / "results.json").unlink()
    (copy / name).write_text("{}")
    assert run(linear_tree(), copy) == run(linear_tree(), unbroken)


# What a save that has failed abandons, Orbax's threads cannot raise.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_workdir_removed_while_running_is_one_sentence(tmp_path, monkeypatch):
    def remove(step, loss, images_per_second):
        if step == 15:
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(logging, "_no_bar", remove)
    with pytest.raises(WriteFailed, match=f"{tmp_path}/run was removed while the run was at work"):
        run(linear_tree(), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 0.05, 0.1, 0.2, 0.4])
def test_a_workdir_removed_at_any_moment_is_exit_status_1(tmp_path, delay):
    process = start(tmp_path / "run")
    while not logging.read_metrics(tmp_path / "run"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(delay)
    while (tmp_path / "run").exists():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    _, err = finish(process, status=1)
    assert f"error: {tmp_path}/run was removed while the run was at work there" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [5, 20])
def test_a_limit_on_the_size_of_files_is_exit_status_1(tmp_path, monkeypatch, kilobytes):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")  # Its files are larger than checkpoints.
    limit = (1024 * kilobytes, resource.RLIM_INFINITY)
    process = start(tmp_path / "run")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limit)
    _, err = finish(process, status=1)
    assert err.startswith("error: Cannot write the checkpoint of step 14 in")
    assert err.endswith("(File too large): allow larger files (ulimit -f).\n")
    assert err.count("\n") == 1
    finish(start(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 1, 3, 9])
def test_of_two_runs_in_one_workdir_one_is_refused(tmp_path, offset):
    longer = "--config.stages.linear.epochs=300"
    first = start(tmp_path / "run", longer)
    time.sleep(offset)
    second = start(tmp_path / "run", longer)
    ends = [(process, *process.communicate(timeout=300)) for process in (first, second)]
    (winner, _, err), (loser, _, refusal) = sorted(ends, key=lambda end: end[0].returncode)
    assert (winner.returncode, err) == (0, "")
    if loser.returncode == 0:  # It came when the other had ended.
        assert offset == 9
        return
    assert loser.returncode == 2
    assert f"error: Another run is at work in {tmp_path}/run: process {winner.pid} on" in refusal
    assert refusal.count("\n") == 1
    finish(start(tmp_path / "alone", longer))
    assert records(tmp_path / "run") == records(tmp_path / "alone")
    assert_same_weights(tmp_path / "run", tmp_path / "alone", rtol=0, atol=0)
    assert {record["stage"] for record in records(tmp_path / "run")} == set(STAGES)


@pytest.mark.slow
def test_evaluations_beside_a_run_are_harmless(tmp_path):
    workdir = tmp_path / "run"
    longer = ["--config.stages.instance.epochs=150", "--config.checkpoint.keep=1"]
    process = start(workdir, *longer)
    while not list(workdir.glob("instance/checkpoints/[0-9]*[0-9]")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    while process.poll() is None:
        pair = [start(workdir, *longer, "--mode=eval") for _ in range(2)]
        ends = [(evaluation, *evaluation.communicate(timeout=120)) for evaluation in pair]
        errors = [err for evaluation, _, err in ends if evaluation.returncode not in (0, 2)]
        assert errors == []
        for evaluation, _, err in ends:
            if evaluation.returncode == 0:
                assert err == ""
                continue
            assert err.startswith(f"error: Another evaluation is at work in {workdir}: process ")
            assert err.count("\n") == 1
        assert read_json(workdir / "evaluation.json")["classification/mhd"] > 0.5
    finish(process)
    finish(start(tmp_path / "alone", *longer))
    assert records(workdir) == records(tmp_path / "alone")
    assert_same_weights(workdir, tmp_path / "alone", rtol=0, atol=0)
