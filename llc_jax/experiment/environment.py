"""On what a run was computed: machine, versions and date, kept beside its figures."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax

import llc_jax
from llc_jax.errors import InputError
from llc_jax.files import read_json, write_json

ENVIRONMENT_FILE = "environment.json"
_PACKAGES = ("jax", "flax", "optax", "numpy")


def describe() -> dict[str, Any]:
    """Returns what the figures of a run depend on beside its config and its data."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "devices": jax.device_count(),
        "device": jax.devices()[0].device_kind,
        "processes": jax.process_count(),
        "versions": {"python": platform.python_version(), "llc_jax": llc_jax.__version__}
        | versions,
    }


def record(workdir: pathlib.Path) -> None:
    """Adds where a run goes on to those in its workdir, one for each start.

    Raises:
      InputError: if the file is damaged.
      WriteFailed: if it cannot be written.
    """
    environments = [*read_environments(workdir), describe()]
    write_json(workdir / ENVIRONMENT_FILE, {"starts": environments})


def read_environments(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns where a run was computed, one for each start; [] where that is not known.

    Raises:
      InputError: if the file is damaged.
    """
    path = workdir / ENVIRONMENT_FILE
    if not path.exists():
        return []
    try:
        return list(read_json(path)["starts"])
    except (InputError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}): remove it, nothing else needs it."
        ) from error


def _processor() -> str:
    """Returns the model of the processor, as the system calls it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
