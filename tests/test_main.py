"""The program as its users start it: in processes of its own."""

import configparser
import functools
import json
import pathlib
import random
import re
import signal
import sys
import time

import cv2
import jax
import numpy as np
import pytest
from absl.testing import flagsaver

import llc_jax
from llc_jax import main
from llc_jax.experiment.run import run
from llc_jax.training.logging import read_metrics
from tests import processes, tiny
from tests.workdirs import STAGES, assert_same_weights, records, weights

ROOT = processes.ROOT


# Compiled as the tests themselves are, where nothing else is asked for.
start = functools.partial(processes.start, optimized=False)
finish = functools.partial(processes.finish, timeout=300)


def wait_for(workdir, epochs, process):
    """Waits until so many epochs are logged."""
    while len(read_metrics(workdir)) < epochs:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The workdir of a run in one process, on one device, that nothing stopped."""
    workdir = tmp_path_factory.mktemp("unbroken")
    out, err = finish(start(workdir, optimized=True))
    assert "phase 2: MHD" in out
    assert err == ""
    return workdir


@pytest.mark.slow
def test_stopped_and_started_again_is_bit_identical(unbroken, tmp_path):
    process = start(tmp_path, optimized=True)
    wait_for(tmp_path, 1, process)
    process.terminate()
    _, err = finish(process, status=128 + signal.SIGTERM)
    assert "Traceback" not in err
    assert "and saved:\nthe same command continues from there" in err
    # In phase 1 and in phase 2, at moments that differ from run to run.
    for epochs in (3, 5):
        process = start(tmp_path, optimized=True)
        wait_for(tmp_path, epochs, process)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        out, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL
        # A killed run may have saved the last step of a stage; the stopped one has not.
        assert epochs > 3 or "continues after step" in out
    finish(start(tmp_path, optimized=True))
    assert_same_weights(tmp_path, unbroken, rtol=0, atol=0)
    assert records(tmp_path) == records(unbroken)
    out, _ = finish(start(tmp_path))
    assert "This run is finished" in out


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_two_processes_end_as_one(tmp_path, frozen):
    one, two = tmp_path / "a" / "one", tmp_path / "b" / "two"
    # On as many devices: a sum over devices is rounded as their number has it.
    run(tiny.tree(frozen_backbone=frozen), one, jax.devices()[:2])
    pair = processes.start_several(2, two, f"--config.frozen_backbone={frozen}", optimized=False)
    outputs = [finish(process)[0] for process in pair]
    assert "2 device(s)" in outputs[0]
    # The second process leaves the talking to the first; the collectives announce themselves.
    said = [line for line in outputs[1].splitlines() if not line.startswith("[Gloo]")]
    assert len(said) == 1
    assert said[0].startswith("Process 1 of 2: 1 of 2 devices, cpu, on ")
    expected = json.loads((one / "results.json").read_text())
    assert json.loads((two / "results.json").read_text()) == pytest.approx(expected, abs=1e-5)
    for stage in STAGES:
        theirs = weights(one, stage)
        for key, value in weights(two, stage).items():
            np.testing.assert_allclose(value, theirs[key], atol=1e-5, rtol=1e-5, err_msg=key)


@pytest.mark.slow
def test_a_run_of_two_processes_is_continued_by_one(tmp_path):
    one, two = tmp_path / "a" / "one", tmp_path / "b" / "two"
    tree = tiny.tree(retrieval=(10,), decoders=("mhd",), num_microbatches=2)
    expected = run(tree, one, jax.devices()[:2])
    flags = [
        "--config.retrieval=(10,)",
        "--config.decoders=('mhd',)",
        "--config.num_microbatches=2",
    ]
    pair = processes.start_several(2, two, *flags, optimized=False)
    wait_for(two, 3, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    for process in pair:
        finish(process, status=128 + signal.SIGTERM)
    assert not (two / "results.json").exists()
    results = run(tree, two, jax.devices()[:2])
    for name in expected:
        if "per_second" not in name:
            assert results[name] == pytest.approx(expected[name], abs=1e-5), name
    for stage in STAGES:
        theirs = weights(one, stage)
        for key, value in weights(two, stage).items():
            np.testing.assert_allclose(value, theirs[key], atol=1e-5, rtol=1e-5, err_msg=key)
    # Two processes evaluate it as one does.
    pair = processes.start_several(2, two, *flags, "--mode=eval", optimized=False)
    for process in pair:
        finish(process)
    evaluated = json.loads((two / "evaluation.json").read_text())
    assert any(name.startswith("retrieval/") for name in evaluated)
    for name, value in evaluated.items():
        if "per_second" not in name:
            assert value == pytest.approx(expected[name], abs=1e-5), name


def assert_one_error(err, message):
    """Checks what a wrong command line prints."""
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.batchsize=8",
            "error: config has no key 'batchsize'. Did you mean 'batch_size'?\n",
        ),
        ("--config.num_bits=0", "config.num_bits is at least 1, not 0"),
        ("--config.data.source=/nowhere", "There is no data at /nowhere"),
    ],
)
def test_a_wrong_command_line_is_one_error(tmp_path, argument, message):
    _, err = finish(start(tmp_path / "run", argument), status=2)
    assert_one_error(err, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("argument", "config", "message"),
    [
        (
            "--config.stages.linear.epoch=8",
            "tests/tiny.py",
            "error: config.stages.linear has no key 'epoch'. Did you mean 'epochs'?\n",
        ),
        (
            "--config.batch_size=x",
            "tests/tiny.py",
            "error: --config.batch_size is a whole number, not 'x'.\n",
        ),
        ("--config.data.holdout=half", "tests/tiny.py", "holdout is a number, not 'half'.\n"),
        (
            "--config.data.augment.flip=maybe",
            "tests/tiny.py",
            "flip is true or false, not 'maybe'.\n",
        ),
        ("--num_processes=two", "tests/tiny.py", "--num_processes is a whole number, not 'two'.\n"),
        ("--wrkdir=x", "tests/tiny.py", "Unknown command line flag 'wrkdir'"),
        ("--mode=train", "configs/none.py", "There is no config file configs/none.py"),
    ],
)
def test_a_flag_that_cannot_be_parsed_is_one_error(monkeypatch, capsys, argument, config, message):
    arguments = ["llc_jax.main", f"--config={config}", argument]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
        main._parse_flags(arguments)
    assert end.value.code == 2
    assert_one_error(capsys.readouterr().err, message)


def test_a_config_of_the_package_can_be_named_anywhere(tmp_path):
    process = start(tmp_path / "run", config="folder_20bit:photos/", cwd=tmp_path)
    _, err = finish(process, status=2)
    assert err.startswith("error: There is no data at photos")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("foldr_20bit:photos", "--config is one of .*, not 'foldr_20bit'. Did you mean 'folder_20"),
        ("common", "--config is one of cifar100_20bit, .* not 'common'"),
        ("gone/folder_20bit.py:x", "file gone/folder_20bit.py: --config=folder_20bit comes with"),
    ],
)
def test_a_config_that_is_not_there_is_one_error(config, message, capsys):
    for arguments in ([f"--config={config}"], ["--config", config]):
        with pytest.raises(SystemExit) as exit_status:
            main._parse_flags(["llc_jax.main", *arguments])
        assert exit_status.value.code == 2
        assert re.match(f"error: .*{message}", capsys.readouterr().err)


def test_without_a_config_its_names_are_said(capsys):
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
        main._parse_flags(["llc_jax.main"])
    assert end.value.code == 2
    message = "NAME is one of cifar100_20bit, cifar100_20bit_resnet18,"
    assert_one_error(capsys.readouterr().err, message)


def test_the_configs_are_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    package = pathlib.Path(llc_jax.__file__).parent
    installed = set(package.glob(setup["options.package_data"]["llc_jax"]))
    assert {file.name for file in installed} == {file.name for file in ROOT.glob("configs/*.py")}


@pytest.mark.slow
def test_trains_on_a_folder_of_files(tmp_path):
    rng = np.random.default_rng(0)
    for label, name in enumerate(["cat", "dog", "fox"]):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(12):
            image = rng.integers(0, 60, (40, 50, 3)) + 90 * np.eye(3)[label]
            cv2.imwrite(str(tmp_path / "photos" / name / f"{index}.png"), image.astype(np.uint8))
        (tmp_path / "photos" / name / "page.png").write_text("<html>")
    small = [
        *("--config.model.name=cnn", "--config.model.dtype=float32"),
        *("--config.data.image_size=16", "--config.data.holdout=0.25", "--config.batch_size=9"),
        *("--config.data.in_memory=False", "--config.data.on_error=skip"),
        "--config.data.workers=1",
        *(f"--config.stages.{stage}.epochs=1" for stage in STAGES),
    ]
    config, workdir = (
        f"configs/folder_scratch_20bit.py:{tmp_path / 'photos'}",
        tmp_path / "workers1",
    )
    _, err = finish(start(workdir, *small, config=config))
    assert err == ""
    results = json.loads((workdir / "results.json").read_text())
    tree = json.loads((workdir / "config.json").read_text())
    tree["data"]["workers"] = 0
    assert run(tree, tmp_path / "workers0", jax.devices()[:1]) == results
    assert results["data/damaged_train"] + results["data/damaged_evaluation"] == 3
    model = llc_jax.load(tmp_path / "workers0")
    assert model.codebook.class_names == ("cat", "dog", "fox")
    assert model.encode([tmp_path / "photos" / "fox" / "0.png"]).shape == (1, 1)
