"""Every test sees 8 CPU devices and a JAX that forgives no implicit broadcast.

What one test has compiled, another, or a process that it starts, need not compile again.
"""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="llc_jax_compiled_")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax

atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# As llc_jax.main does for a config file, so that it can import its neighbours.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "configs"))

jax.config.update("jax_numpy_rank_promotion", "raise")
