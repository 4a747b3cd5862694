"""Every test sees 8 CPU devices and a JAX that forgives no implicit broadcast."""

import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax

# As llc_jax.main does for a config file, so that it can import its neighbours.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "configs"))

jax.config.update("jax_numpy_rank_promotion", "raise")
