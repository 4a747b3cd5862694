"""A model as one file for servers: StableHLO and weights, to be run by JAX alone.

The file is an .npz without pickled objects. Its arrays are

  stablehlo_cpu, stablehlo_accelerator: uint8[bytes], a function for CPUs and one for GPUs (CUDA)
    and TPUs, as `jax.export` serializes them
  weight_0, weight_1, ...: what the functions take first, as a list
  class_names: str[L]
  num_bits, image_size, crop_fraction, exif_orientation: of the codes, and of how an image is
    decoded and cropped; a model of embeddings has the last three not

A function maps (weights, inputs), where inputs are uint8[b, size, size, 3] or float32[b, d] of
any b, to {"codes": uint32[b, ceil(k / 32)], "labels": int32[b], "distances": int32[b],
"code_logits": float32[b, k]}. The label is that of the nearest class code, of ties the first.
"""

import importlib.util
import os
import pathlib

import jax
import jax.export
import numpy as np

from llc_jax.codes import hamming, packing
from llc_jax.errors import InputError
from llc_jax.experiment.network import abstract_input, takes_embeddings
from llc_jax.experiment.workdir import find_stage
from llc_jax.files import write_arrays
from llc_jax.inference import Model, load
from llc_jax.models import cpu

SUFFIX = ".npz"
_PLATFORMS = {"cpu": ("cpu",), "accelerator": ("cuda", "tpu")}


def export(run: str | os.PathLike, path: str | os.PathLike) -> None:
    """Writes the model of a run to a file.

    Args:
      run: as `llc_jax.load` takes it.
      path: of the file.

    Raises:
      InputError: if the run has no codes or is not finished, the file has another suffix, or the
        package flatbuffers is missing.
      WriteFailed: if the file cannot be written.
    """
    if pathlib.Path(path).suffix != SUFFIX:
        raise InputError(f"A model as StableHLO is an {SUFFIX} file, not {path}.")
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("StableHLO needs flatbuffers: pip install flatbuffers.")
    model, config = load(run), find_stage(run).run
    inputs = abstract_input(config)
    arrays = {
        f"stablehlo_{kind}": np.frombuffer(_serialize(model, inputs, kind), np.uint8)
        for kind in _PLATFORMS
    }
    leaves = jax.device_get(jax.tree.leaves(model.weights))
    arrays |= {f"weight_{number}": leaf for number, leaf in enumerate(leaves)}
    arrays["class_names"] = np.array(model.codebook.class_names, np.str_)
    arrays["num_bits"] = np.array(model.num_bits)
    if not takes_embeddings(config):
        arrays["image_size"] = np.array(inputs.shape[1])
        arrays["crop_fraction"] = np.array(config.data.crop_fraction)
        arrays["exif_orientation"] = np.array(config.data.exif_orientation)
    write_arrays(path, arrays)


def _serialize(model: Model, inputs: jax.ShapeDtypeStruct, kind: str) -> bytes:
    """Returns the function for one kind of platform, with a batch of any size."""
    leaves, structure = jax.tree.flatten(model.weights)
    class_codes = np.asarray(model.codebook.packed)

    def encode(weights: list[jax.Array], inputs: jax.Array) -> dict[str, jax.Array]:
        code_logits = model.network_logits(jax.tree.unflatten(structure, weights), inputs)
        codes = packing.pack(code_logits)
        nearest = hamming.nearest(codes, class_codes)
        return {
            "codes": codes,
            "labels": nearest.index,
            "distances": nearest.distance,
            "code_logits": code_logits,
        }

    (batch,) = jax.export.symbolic_shape("b")
    abstract = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    batched = jax.ShapeDtypeStruct((batch, *inputs.shape[1:]), inputs.dtype)
    with cpu.traced_for(kind):
        exported = jax.export.export(jax.jit(encode), platforms=_PLATFORMS[kind])(abstract, batched)
    return exported.serialize()
