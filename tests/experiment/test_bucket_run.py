"""A run whose workdir is a URL leaves there what a run leaves on a disk."""

import functools
import os
import pathlib
import signal
import tempfile
import time

import fsspec
import numpy as np
import pytest

import llc_jax
from llc_jax import objects
from llc_jax.copies import local, working_copy
from llc_jax.errors import InputError, WriteFailed
from llc_jax.experiment.evaluate import evaluate_again
from llc_jax.experiment.locking import locked
from llc_jax.experiment.run import run
from llc_jax.experiment.run_report import write_report
from llc_jax.experiment.workdir import find_stage
from llc_jax.files import read_json
from llc_jax.objects import URL
from llc_jax.training import logging
from llc_jax.training.preemption import Stopped
from tests.object_stores import opened
from tests.processes import finish, free_address, start, start_several
from tests.tiny import tree
from tests.workdirs import assert_same_weights, records

STAGES = ["codebook", "instance"]
ALL_STAGES = ["linear", *STAGES]
# Files whose bytes the clock or the path of the workdir changes, or Orbax's random names.
OTHER_BYTES = ("environment.json", "metrics.jsonl", "report.html", "tensorboard", "checkpoints")
# The drawn curves of training, which have the images a second.
OTHER_BYTES += tuple(f"training_{stage}.{form}" for stage in ALL_STAGES for form in ("png", "svg"))


def config():
    """Two stages of two epochs each."""
    small = tree(stages__codebook__epochs=2, stages__codebook__init_from="scratch")
    del small["stages"]["linear"]
    return small


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """The workdir of an unbroken run on a disk."""
    workdir = tmp_path_factory.mktemp("disk") / "run"
    run(config(), workdir)
    return workdir


def files(workdir):
    """Returns the files of a workdir that have the same names and bytes wherever it is."""
    names = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    kept = [name for name in names if not set(name.parts) & {*OTHER_BYTES}]
    return {name.as_posix(): (workdir / name).read_bytes() for name in sorted(kept)}


def stop_after(patch, steps):
    """Sends SIGTERM to this process once so many steps are taken."""
    taken = []

    def note(*_):
        taken.append(1)
        if len(taken) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(logging, "_no_bar", note)


def fail_uploads(patch, part, count=1000):
    """Makes the store in memory refuse to write objects that have a part of their name."""
    system = fsspec.get_filesystem_class("memory")
    put, left = system.put_file, [count]

    def refuse(self, file, to, **options):
        if part in to and left[0]:
            left[0] -= 1
            raise OSError("Service Unavailable")
        return put(self, file, to, **options)

    patch.setattr(system, "put_file", refuse)


@pytest.mark.slow
def test_a_bucket_gets_the_same_bytes(bucket, disk, tmp_path):
    run(config(), bucket / "run")
    copy = local(bucket / "run")
    assert files(copy) == files(disk)
    assert "results.json" in files(copy)
    assert records(copy) == records(disk)
    assert_same_weights(copy, disk, STAGES, rtol=0)
    assert not list((tmp_path / "cache/objects/work").iterdir())
    # It is finished, is loaded, measured and shown from there.
    before = objects.find(bucket / "run")
    run(config(), str(bucket / "run"))
    assert objects.find(bucket / "run") == before
    assert llc_jax.load(str(bucket / "run")).num_bits == 8
    assert find_stage(bucket / "run/codebook").name == "codebook"
    evaluate_again(bucket / "run", decoders=["ed"])
    assert write_report(bucket / "run") == bucket / "run/report.html"
    new = set(objects.find(bucket / "run")) - set(before)
    assert {url.name for url in new} == {"evaluation.json", "evaluation_confusion.csv"}


@pytest.mark.slow
def test_a_stopped_run_continues_from_the_bucket(bucket, disk, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, steps=20)
        with pytest.raises(Stopped):
            run(config(), bucket / "run")
    names = {str(url.relative_to(bucket / "run")) for url in objects.find(bucket / "run")}
    assert "codebook/checkpoints/21/checksums.json" in names
    assert "lock" not in names
    run(config(), bucket / "run")
    copy = local(bucket / "run")
    assert_same_weights(copy, disk, STAGES, rtol=0)
    assert files(copy) == files(disk)
    steps = {path.name for path in (copy / "codebook/checkpoints").iterdir()}
    assert len(steps) == 2  # As many as config.checkpoint.keep says.


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_the_run(bucket, disk, monkeypatch):
    with monkeypatch.context() as patch:
        fail_uploads(patch, "checkpoints/28/default/d/")
        with pytest.raises(WriteFailed, match=r"Cannot write memory://bucket/run/codebook/check"):
            run(config(), bucket / "run")
    found = objects.find(bucket / "run/codebook/checkpoints")
    assert {url.parts[5] for url in found} == {"14"}
    with monkeypatch.context() as patch:  # What fails once is written at the second time.
        fail_uploads(patch, "checkpoints", count=2)
        run(config(), bucket / "run")
    assert_same_weights(local(bucket / "run"), disk, STAGES, rtol=0)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside(bucket, disk, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, steps=20)
        with pytest.raises(Stopped):
            run(config(), bucket / "run")
    folder = bucket / "run/codebook/checkpoints"
    largest = max(objects.find(folder / "21").items(), key=lambda item: item[1].size)[0]
    fsspec.filesystem("memory").pipe_file(str(largest), b"damage")
    run(config(), bucket / "run")
    steps = {url.relative_to(folder).parts[0] for url in objects.find(folder)}
    assert steps == {"14", "28", "21.damaged1"}
    assert_same_weights(local(bucket / "run"), disk, STAGES, rtol=0)


def test_a_bucket_that_cannot_be_written_is_said_before_training(bucket, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "pipe_file", refuse)
    with pytest.raises(WriteFailed, match=r"Cannot write memory://.*/lock: Access Denied\.$"):
        run(config(), bucket / "run")
    assert objects.find(bucket) == {}


def test_a_bucket_that_is_not_there_is_said(bucket, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "find", missing)
    with pytest.raises(InputError, match="There is nothing at memory://bucket/run"):
        run(config(), bucket / "run")


def test_two_runs_at_one_url_are_refused(bucket, monkeypatch):
    monkeypatch.setattr(objects, "_RENEWAL", 0.3)
    with objects.lock(bucket / "run/lock", "process 7 on host\n"):
        with pytest.raises(InputError, match="Another run is at work in memory://bucket/run: proc"):
            run(config(), bucket / "run")


def test_a_run_does_not_go_on_from_what_has_changed_meanwhile(bucket):
    objects.upload(pathlib.Path(__file__), bucket / "run/config.json")
    with working_copy(bucket / "run") as copy:
        with locked(copy):
            pass
        objects.upload(pathlib.Path(__file__), bucket / "run/stage/results.json")
        with pytest.raises(InputError, match="memory://bucket/run has changed since this run was"):
            with locked(copy):
                pass


FROZEN = "--config.frozen_backbone=True"
FEW_EPOCHS = [f"--config.stages.{stage}.epochs=2" for stage in ALL_STAGES]


def start_pair(url, tmp_path, monkeypatch, *flags):
    """Starts two processes of one run, as on machines that share nothing and have nothing yet."""
    address, pair = free_address(), []
    for index in range(2):
        monkeypatch.setenv("LLC_CACHE", tempfile.mkdtemp(prefix=f"cache{index}_", dir=tmp_path))
        cluster = [f"--coordinator={address}", "--num_processes=2", f"--process_id={index}"]
        pair.append(start(url, *cluster, *FEW_EPOCHS, *flags, optimized=False))
    return pair


def wait_for_checkpoint(url, pair, stage="instance"):
    """Waits until the store has a checkpoint of a stage."""
    while not any(name.name == "checksums.json" for name in objects.find(f"{url}/run/{stage}")):
        assert all(process.poll() is None for process in pair), pair[0].communicate()
        time.sleep(0.02)


@pytest.mark.slow
def test_processes_that_share_no_disk_have_one_run(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    for process in start_several(2, disk, *FEW_EPOCHS, optimized=False):
        finish(process, timeout=300)
    with opened("s3") as (url, _):
        for index, stage in enumerate(("linear", "instance")):
            pair = start_pair(f"{url}/run", tmp_path, monkeypatch)
            wait_for_checkpoint(url, pair, stage)
            pair[index].send_signal(signal.SIGTERM)
            for process in pair:
                _, error = finish(process, status=128 + signal.SIGTERM, timeout=300)
                assert "the same command continues from" in error
            assert URL(f"{url}/run/lock") not in objects.find(f"{url}/run")
        out = [finish(p, timeout=300)[0] for p in start_pair(f"{url}/run", tmp_path, monkeypatch)]
        assert "instance: continues after step" in out[0]
        monkeypatch.setenv("LLC_CACHE", str(tmp_path / "cache"))
        copy = local(f"{url}/run")
        assert files(copy) == files(disk)
        assert records(copy) == records(disk)
        assert_same_weights(copy, disk, ALL_STAGES, rtol=0)
        for process in start_pair(f"{url}/run", tmp_path, monkeypatch):
            assert finish(process, timeout=300)[1] == ""
        assert not list(tmp_path.glob("cache*/objects/work/*"))


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_others_go_on_from(tmp_path, monkeypatch):
    """The lock of the run is waited for, for a minute."""
    with opened("s3") as (url, _):
        begin = functools.partial(start_pair, f"{url}/run", tmp_path, monkeypatch, FROZEN)
        pair = begin()
        wait_for_checkpoint(url, pair, "linear")
        pair[0].kill()
        _, error = finish(pair[1], status=1, timeout=60)
        assert "Process 0 at 127.0.0.1 of the run has ended" in error
        finish(pair[0], status=-signal.SIGKILL)
        out = [finish(process, timeout=300)[0] for process in begin()]
        assert "continues after step" in out[0]
        for process in begin("--mode=eval"):
            finish(process, timeout=300)
        monkeypatch.setenv("LLC_CACHE", str(tmp_path / "cache"))
        copy = local(f"{url}/run")
        results, again = (read_json(copy / f"{name}.json") for name in ("results", "evaluation"))
        for name in again:  # The features that it was trained on were rounded to float16.
            if "per_second" not in name:
                assert again[name] == pytest.approx(results[name], abs=0.01), name


@pytest.mark.slow
def test_an_estimator_is_saved_as_a_whole(bucket):
    X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    estimator = llc_jax.LLC(num_bits=8, epochs=(1, 1, 1), random_state=0).fit(X, np.arange(64) % 2)
    estimator.save(bucket / "model")
    model = llc_jax.load(str(bucket / "model"))
    np.testing.assert_array_equal(model.encode(X), estimator.transform(X))
    assert all("/." not in str(url) for url in objects.find(bucket))
    with pytest.raises(InputError, match="memory://bucket/model exists already"):
        estimator.save(bucket / "model")


@pytest.mark.slow
def test_the_command_works_on_a_store_with_faults(disk, tmp_path, monkeypatch):
    monkeypatch.setenv("LLC_CACHE", str(tmp_path / "cache"))
    with opened("s3") as (url, proxy):
        count = iter(range(10**6))
        proxy.choose = lambda *_: {5: "503", 15: "drop"}.get(next(count) % 20)
        flags = ["--config.stages.codebook.epochs=1", "--config.stages.linear.epochs=1"]
        out, error = finish(start(f"{url}/run", *flags, optimized=False), timeout=600)
        assert "error" not in error.lower()
        assert f"Run: {url}/run" in out
        proxy.choose = lambda *_: None
        assert (local(f"{url}/run") / "results.json").exists()
        # A store that takes nothing any more.
        proxy.choose = lambda method, _: None if method in ("GET", "HEAD") else "503"
        process = start(f"{url}/other", *flags, optimized=False)
        out, error = finish(process, status=1, timeout=600)
        assert error.startswith(f"error: Cannot write {url}/other/lock: ")
        assert error.count("\n") == 1
