"""The program as its users start it: in processes of its own."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

import llc_jax
from llc_jax.training.logging import read_metrics
from tests.workdirs import STAGES, assert_same_weights, records, weights

ROOT = pathlib.Path(__file__).parent.parent


def start(workdir, *arguments, config="tests/tiny.py", devices=1):
    """Starts the program on so many CPU devices."""
    command = [sys.executable, "-m", "llc_jax.main", f"--config={config}", f"--workdir={workdir}"]
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": "configs",
        "PYTHONWARNINGS": "error,ignore:the load_module:DeprecationWarning",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment, text=True, **pipes)


def finish(process, status=0):
    """Waits for the end; returns what the program printed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    return out, err


def wait_for(workdir, epochs, process):
    """Waits until so many epochs are logged."""
    while len(read_metrics(workdir)) < epochs:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The workdir of a run in one process, on one device, that nothing stopped."""
    workdir = tmp_path_factory.mktemp("unbroken")
    out, err = finish(start(workdir))
    assert "phase 2: MHD" in out
    assert err == ""
    return workdir


def test_killed_and_started_again_is_bit_identical(unbroken, tmp_path):
    # In phase 1 and in phase 2, at moments that differ from run to run.
    for epochs in (3, 5):
        process = start(tmp_path)
        wait_for(tmp_path, epochs, process)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finish(start(tmp_path))
    assert_same_weights(tmp_path, unbroken, rtol=0, atol=0)
    assert records(tmp_path) == records(unbroken)


def test_sigterm_saves_and_exits(unbroken, tmp_path):
    process = start(tmp_path)
    wait_for(tmp_path, 1, process)
    process.terminate()
    _, err = finish(process, status=128 + signal.SIGTERM)
    assert "Traceback" not in err
    assert "and saved: the same command continues from there" in err
    out, _ = finish(start(tmp_path))
    assert "continues after step" in out
    assert_same_weights(tmp_path, unbroken, rtol=0, atol=0)
    out, _ = finish(start(tmp_path))
    assert "This run is finished" in out


def test_two_processes_end_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{free.getsockname()[1]}"
    one, two = tmp_path / "one", tmp_path / "two"
    # On as many devices: a sum over devices is rounded as their number has it.
    finish(start(one, devices=2))
    processes = [
        start(two, coordinator, "--num_processes=2", f"--process_id={index}") for index in range(2)
    ]
    outputs = [finish(process)[0] for process in processes]
    assert "2 device(s)" in outputs[0]
    # The second process leaves the talking to the first; the collectives announce themselves.
    assert all(line.startswith("[Gloo]") for line in outputs[1].splitlines())
    expected = json.loads((one / "results.json").read_text())
    assert json.loads((two / "results.json").read_text()) == pytest.approx(expected, abs=1e-5)
    for stage in STAGES:
        theirs = weights(one, stage)
        for key, value in weights(two, stage).items():
            np.testing.assert_allclose(value, theirs[key], atol=1e-5, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        (["--config.batchsize=8"], "tests/tiny.py", 'Did you mean "batch_size"'),
        (["--config.stages.linear.epoch=8"], "tests/tiny.py", 'Did you mean "epochs"'),
        (["--config.batch_size=x"], "tests/tiny.py", "invalid literal for int"),
        (["--config.data.source=/nowhere"], "tests/tiny.py", "There is no data at /nowhere"),
        (["--wrkdir=x"], "tests/tiny.py", "Unknown command line flag 'wrkdir'"),
        ([], "configs/none.py", "There is no config file configs/none.py"),
    ],
)
def test_a_wrong_command_line_is_one_error(tmp_path, arguments, config, message):
    _, err = finish(start(tmp_path / "run", *arguments, config=config), status=2)
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


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
        *(f"--config.stages.{stage}.epochs=1" for stage in STAGES),
    ]
    config = f"configs/folder_20bit.py:{tmp_path / 'photos'}"
    results = []
    for workers in (1, 0):
        arguments = [*small, f"--config.data.workers={workers}"]
        workdir = tmp_path / f"workers{workers}"
        _, err = finish(start(workdir, *arguments, config=config))
        assert err == ""
        results.append(json.loads((workdir / "results.json").read_text()))
    assert results[0] == results[1]
    assert results[0]["data/damaged_train"] + results[0]["data/damaged_evaluation"] == 3
    model = llc_jax.load(tmp_path / "workers0")
    assert model.codebook.class_names == ("cat", "dog", "fox")
    assert model.encode([tmp_path / "photos" / "fox" / "0.png"]).shape == (1, 1)
