"""Every test sees 8 CPU devices and a JAX that forgives no implicit broadcast.

Most of the time goes into compiling, so XLA is told to optimize little. XLA_FLAGS, where
it is set, takes the place of that: with `XLA_FLAGS= launch/test.sh`, the tests run the
code that users run. What one process has compiled, the others of the session read.
"""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

COMPILE_FAST = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false"
)
# They take longest: a worker that is left alone with one of them at the end would keep
# the others waiting.
FIRST = ("test_kill_attack.py", "test_main.py", "experiment", "models", "training")

if "PYTEST_XDIST_WORKER" not in os.environ:  # The workers inherit all this.
    os.environ["JAX_PLATFORMS"] = "cpu"
    options = os.environ.get("XLA_FLAGS", COMPILE_FAST)
    os.environ["XLA_FLAGS"] = f"{options} --xla_force_host_platform_device_count=8"
    # PyTorch's and FAISS's threads would wait for each other, as the workers share the cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    directory = tempfile.mkdtemp(prefix="llc_jax_compiled_")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = directory
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import pytest  # noqa: E402

from llc_jax import objects  # noqa: E402
from tests.object_stores import opened  # noqa: E402

# As llc_jax.main does for a config file, so that it can import its neighbours.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "configs"))

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """Puts the files first that take longest."""

    def place(item):
        name = item.path.relative_to(pathlib.Path(__file__).parent).parts[0]
        return FIRST.index(name) if name in FIRST else len(FIRST)

    items.sort(key=place)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Yields the URL of an empty bucket in the memory of this process, and has a cache for it."""
    monkeypatch.setenv("LLC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(objects, "_PAUSE", 0.0)
    with opened("memory") as (url, _):
        yield objects.URL(url)
