"""The devices of a run: one mesh axis, `data`, over which batches are split; its processes."""

import concurrent.futures
import json
import pathlib
import socket
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from llc_jax import copies
from llc_jax.errors import InputError

# Seconds after which the first process tells the others that it is still at work.
_PATIENCE = 5.0


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns devices, by default all of all processes, along one axis, `data`."""
    count = jax.device_count() if devices is None else len(devices)
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds in full, such as weights."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: rows along the mesh axis `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def with_sharding(abstract: Any, sharding: Sharding) -> Any:
    """Returns a tree of `jax.ShapeDtypeStruct`s with a sharding on every leaf."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )


def choose_platform(platform: str | None) -> None:
    """Keeps JAX to the CPU, where that is meant; other devices it finds by itself."""
    if platform == "cpu":
        jax.config.update("jax_platforms", platform)


def check_platform(platform: str | None) -> None:
    """Refuses to go on with other devices than those that are meant.

    Args:
      platform: "cpu", "gpu" or "tpu"; None for any.

    Raises:
      InputError: if JAX finds no such devices.
    """
    if platform is None:
        return
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        found = str(error).strip().splitlines()[0].rstrip(".")
    if found != platform:
        raise InputError(
            f"Devices of the platform {platform} are meant, but on {socket.gethostname()} JAX has "
            f"none: {found}. Install JAX for it, free the devices if another process has them, or "
            "choose another --platform."
        )


def describe_devices() -> str:
    """Says how many devices this process has, how many all have, and of which kind."""
    local = jax.local_device_count()
    kind = jax.local_devices()[0].device_kind
    return f"{local} of {jax.device_count()} devices, {kind}, on {socket.gethostname()}"


def from_first_process(compute: Callable[[], list[str]]) -> list[str]:
    """Returns on every process what a function returns on the first, where alone it is called.

    It may take any time; that of the others to wait for each other's devices is limited.

    Raises:
      InputError: on every process, if the function raises one.
    """
    if jax.process_count() == 1:
        return compute()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(_outcome, compute) if jax.process_index() == 0 else None
        text, size = b"", 0
        while not size:
            if future is not None and concurrent.futures.wait([future], _PATIENCE).done:
                text = future.result()
            size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = np.resize(np.frombuffer(text, np.uint8), size)
    outcome = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())
    if "error" in outcome:
        raise InputError(outcome["error"])
    return outcome["lines"]


def _outcome(compute: Callable[[], list[str]]) -> bytes:
    """Returns what a function returns, or the InputError that it raises, as JSON."""
    try:
        outcome = {"lines": compute()}
    except InputError as error:
        outcome = {"error": str(error)}
    return json.dumps(outcome).encode()


def catch_up(path: pathlib.Path) -> None:
    """Copies what the first process has written, where this one has a copy of the workdir.

    Raises:
      InputError: if it cannot be read.
    """
    if jax.process_index() > 0:
        copies.refresh(path)
