"""Weights from and to PyTorch: of torchvision, timm, a few packages and the official LLC code.

A state dict maps keys such as `layer1.0.conv1.weight` to arrays. In the official LLC code
the head is two 1x1 convolutions: `fc_lr.weight` [k, d, 1, 1] is our projection and
`fc.weight` [L, k, 1, 1] the latent codebook. Convolutions are [out, in, h, w] in PyTorch
and [h, w, in, out] in Flax; dense weights are [out, in] in PyTorch and [in, out] in Flax.
"""

import os
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from llc_jax.copies import local
from llc_jax.errors import InputError
from llc_jax.weights.torch_names import TorchNaming, torch_naming

Tree = Any
StateDict = dict[str, np.ndarray]

TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)

PROJECTION = "fc_lr.weight"

_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# The types of numbers that are read, as safetensors and PyTorch name them.
_TYPES = (
    *("F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"),
    *("float16", "bfloat16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"),
)
# Keys under which training scripts save the state dict.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
# Prefixes from DataParallel and torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
# A counter of PyTorch's batch normalisation, which is not used.
_COUNTER = "num_batches_tracked"


def read_state_dict(path: str | os.PathLike) -> StateDict:
    """Reads a state dict; no code in the file is run.

    Args:
      path: a `.safetensors` file, or a file of `torch.save` with a state dict, or with a
        dict that has it under `state_dict`, `model` or `model_state_dict`.

    Returns:
      float32 arrays by key, without the prefixes `module.` and `_orig_mod.`.

    Raises:
      InputError: if it cannot be read.
    """
    path = local(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"Weights are a file of {', '.join(SUFFIXES)}, not {path}.")
    if not path.is_file():
        raise InputError(f"There are no weights at {path}.")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return {key: value for key, value in state.items() if not key.endswith(_COUNTER)}


def write_state_dict(path: str | os.PathLike, state: StateDict) -> None:
    """Writes a state dict to a `.safetensors` file, or with `torch.save` to any other."""
    state = {key: np.array(value, order="C") for key, value in state.items()}
    if pathlib.Path(path).suffix == ".safetensors":
        safetensors.numpy.save_file(state, path)
    else:
        torch = _import_torch(path)
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)


def from_torch(
    state: StateDict, abstract: Tree, backbone: str, *, drop_head: bool, source: str
) -> Tree:
    """Returns a network's weights from a state dict.

    Args:
      state: from `read_state_dict`.
      abstract: the network's `params` and `batch_stats`; the leaves have shapes.
      backbone: its name in the registry.
      drop_head: whether to convert the backbone alone, without the head.
      source: where the state dict comes from, for error messages.

    Returns:
      A tree like `abstract`, of float32 arrays; its `head` is empty with `drop_head`.

    Raises:
      InputError: naming every key that is missing, not needed, or of another shape.
    """
    head = abstract["params"]["head"]
    if drop_head:
        abstract = {kind: tree | {"head": {}} for kind, tree in abstract.items()}
    naming = torch_naming(backbone)
    keys = _torch_keys(abstract, naming)
    unused = state.keys() - set(keys.values())
    if drop_head:
        unused = {key for key in unused if not _is_head(key, naming)}
    elif "latent" not in head and "projection" in head:
        unused -= {f"{naming.classifier}.weight"}  # The codebook: the head has no place for it.
    problems = [f"{key} is missing" for key in keys.values() if key not in state]
    problems += [f"{key} is not needed" for key in sorted(unused)]

    def convert(path, leaf):
        key = keys[path]
        if key not in state:
            return None
        value = _to_flax_layout(state[key], leaf.ndim, path[-1].key)
        if value.shape != leaf.shape:
            expected = _to_torch_layout(np.zeros(leaf.shape), path).shape
            problems.append(f"{key} is {list(state[key].shape)}, not {list(expected)}")
        return value

    tree = jax.tree_util.tree_map_with_path(convert, abstract)
    if problems:
        only_head = all(_is_head(problem.split()[0], naming) for problem in problems)
        hint = " Set drop_head to take the backbone alone." if only_head else ""
        raise InputError(f"The weights {source} do not fit: {'; '.join(problems)}.{hint}")
    return tree


def to_torch(weights: Tree, backbone: str, latent: np.ndarray | None = None) -> StateDict:
    """Returns the state dict of a network's `params` and `batch_stats`.

    Args:
      weights: of the network.
      backbone: its name in the registry.
      latent: float32[L, k], a codebook to add under the official code's key, or None.
    """
    naming = torch_naming(backbone)
    keys = _torch_keys(weights, naming)
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    state = {keys[path]: _to_torch_layout(np.asarray(leaf), path) for path, leaf in leaves}
    if latent is not None:
        state[f"{naming.classifier}.weight"] = latent[:, :, None, None]
    return state


def latent_codebook(state: StateDict, backbone: str) -> np.ndarray | None:
    """Returns the latent codebook of an official checkpoint, float32[L, k], or None."""
    latent = state.get(f"{torch_naming(backbone).classifier}.weight")
    return None if PROJECTION not in state or latent is None else latent.reshape(latent.shape[:2])


def fits_backbone(state: StateDict, abstract: Tree, backbone: str) -> bool:
    """Whether a state dict has the weights of a backbone, with any head."""
    try:
        from_torch(state, abstract, backbone, drop_head=True, source="")
    except InputError:
        return False
    return True


def _torch_keys(tree: Tree, naming: TorchNaming) -> dict[tuple, str]:
    """Returns the PyTorch key of each leaf, by its path in `params` and `batch_stats`."""
    keys = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        _, module, *names = (entry.key for entry in path)
        if module == "head":
            keys[path] = _head_key(names, naming)
        elif names[-1] in _LEAF_NAMES or names[-1] == "bias":
            leaf = _LEAF_NAMES.get(names[-1], "bias")
            keys[path] = f"{naming.prefix(tuple(names[:-1]))}.{leaf}"
        else:
            keys[path] = naming.prefix(tuple(names))
    return keys


def _head_key(names: list[str], naming: TorchNaming) -> str:
    match names:
        case ["projection", "kernel"]:
            return PROJECTION
        case ["latent"]:
            return f"{naming.classifier}.weight"
        case ["classifier", leaf]:
            return f"{naming.classifier}.{_LEAF_NAMES.get(leaf, leaf)}"
    raise InputError(f"A head with {'.'.join(names)} has no PyTorch form.")


def _is_head(key: str, naming: TorchNaming) -> bool:
    return key in (PROJECTION, f"{naming.classifier}.weight", f"{naming.classifier}.bias")


def _to_flax_layout(value: np.ndarray, ndim: int, leaf: str) -> np.ndarray:
    """Transposes a PyTorch weight to the axes of the Flax leaf of `ndim` axes."""
    if ndim == 2 and value.ndim == 4 and value.shape[2:] == (1, 1):
        value = value[:, :, 0, 0]
    if leaf != "kernel" or value.ndim != ndim:
        return value
    return value.T if ndim == 2 else value.transpose(2, 3, 1, 0)


def _to_torch_layout(value: np.ndarray, path: tuple) -> np.ndarray:
    """Transposes a Flax weight to PyTorch's axes; the LLC head's are 1x1 convolutions."""
    names = [entry.key for entry in path]
    if names[-1] == "kernel":
        value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
    is_conv_head = names[1] == "head" and names[2] in ("projection", "latent")
    return value[:, :, None, None] if is_conv_head else value


def _read_safetensors(path: pathlib.Path) -> StateDict:
    state = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping.
                _check_type(file.get_slice(key).get_dtype(), key, path)
                state[key] = file.get_tensor(key).astype(np.float32)
    except InputError:
        raise
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a whole .safetensors file ({error}).") from error
    return state


def _check_type(name: str, key: str, path: pathlib.Path) -> None:
    """Raises InputError for numbers that are not real, or too coarse to be weights by themselves.

    name: of the type, such as F8_E4M3 or complex64; of a tensor that is not dense, its form too.
    """
    if name not in _TYPES:
        raise InputError(
            f"{path} has {key} as {name}: weights are dense tensors of float16, bfloat16, "
            "float32 or float64; convert it first."
        )


def _read_torch(path: pathlib.Path) -> StateDict:
    torch = _import_torch(path)
    _check_checksums(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors, or is damaged, and is not opened: it could run "
            "code. Save the state dict alone, or as .safetensors."
        ) from error
    except Exception as error:  # Damage leads the reader to errors of many kinds.
        reason = str(error).strip().splitlines()[0] if str(error) else "it ends early"
        raise InputError(f"{path} is not a whole file of torch.save ({reason}).") from error
    for name in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
            break
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path} holds no state dict.")
    not_tensors = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if not_tensors:
        raise InputError(f"{path} holds no state dict: {not_tensors[0]!r} is not a tensor.")
    for key, value in state.items():
        _check_type(_type_of(value), key, path)
    return {str(key): value.detach().to(torch.float32).numpy() for key, value in state.items()}


def _type_of(tensor) -> str:
    """Returns the name of a tensor's type, with its form where it is not dense: sparse_coo."""
    nested = "nested" if tensor.is_nested else ""
    form = nested or str(tensor.layout).removeprefix("torch.").removeprefix("strided")
    device = tensor.device.type.removeprefix("cpu")
    return " ".join(filter(None, [device, form, str(tensor.dtype).removeprefix("torch.")]))


def _check_checksums(path: pathlib.Path) -> None:
    """Raises InputError where a checksum in a file of `torch.save`, unread by PyTorch, differs."""
    if not zipfile.is_zipfile(path):
        return  # The format of PyTorch before 1.6 has none.
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch can be told to write zeros for checksums.
            has_checksums = any(info.CRC for info in archive.infolist())
            damaged = archive.testzip() if has_checksums else None
    except Exception as error:  # Damage leads the reader to errors of many kinds.
        raise InputError(f"{path} is not a whole file of torch.save ({error}).") from error
    if damaged is not None:
        raise InputError(
            f"{path} is not a whole file of torch.save (the checksum of {damaged} differs)."
        )


def _import_torch(path: str | os.PathLike):
    """Imports PyTorch, which only its own file format needs."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path} needs PyTorch: pip install torch. Files of .safetensors do not."
        ) from error
    return torch
