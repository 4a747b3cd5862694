"""The devices of a run: one mesh axis, `data`, over which batches are split."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding


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
