"""The example of Ray, on a cluster on this machine."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time

import psutil
import pytest

from llc_jax import cli
from llc_jax.files import sweep
from tests.corpora import write_digits
from tests.processes import ROOT

SHARDS, ITEMS = 24, 2000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A run, and a folder of tars."""
    return write_digits(tmp_path_factory.mktemp("corpus"), SHARDS, ITEMS)


def kill_a_worker(driver, out):
    """Kills one of the actors when some of the shards are there."""
    end = time.monotonic() + 240
    while driver.poll() is None and time.monotonic() < end:
        workers = [
            process
            for process in psutil.Process(driver.pid).children(recursive=True)
            if process.is_running() and process.name().startswith("ray::MapWorker")
        ]
        if len(workers) == 2 and len(list(out.glob("[0-9]*.parquet"))) > 2:
            workers[0].kill()
            return
        time.sleep(0.05)
    driver.kill()
    pytest.fail(f"it ended, or did not begin, before one was killed: {driver.communicate()}")


@pytest.fixture
def short_folder():
    """A folder with a short path, as Ray's sockets need."""
    with tempfile.TemporaryDirectory(prefix="ray_") as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="pip install 'ray[data]'")
def test_a_worker_of_ray_that_is_killed_is_replaced(corpus, tmp_path, short_folder):
    out, expected = tmp_path / "codes", tmp_path / "expected"
    options = [f"--run={corpus}/run", "--shards", f"{corpus}/*.tar", "--logits"]
    command = [sys.executable, str(ROOT / "launch" / "ray_encode.py"), *options, "--workers=2"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": short_folder,
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*command, f"--out={out}"], env=environment, **pipes) as driver:
        try:
            kill_a_worker(driver, out)
            printed, _ = driver.communicate(timeout=240)
        finally:
            driver.kill()
    assert driver.returncode == 0, printed
    assert f"{SHARDS} shards are encoded" in printed
    sweep(out)
    assert cli.main(["encode", *options, f"--out={expected}"]) == 0
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        if name != "manifest.json":
            import pyarrow.parquet as pq

            first, second = (
                pq.read_table(f / name, columns=["id", "key", "code"]) for f in (out, expected)
            )
            assert first.equals(second)
