"""Weights from PyTorch and back: torchvision's, timm's and the official LLC code's.

A state dict maps keys such as `layer1.0.conv1.weight` to arrays. The official LLC
code adds the head as 1x1 convolutions: `fc_lr.weight` [k, d, 1, 1], our projection, and
`fc.weight` [L, k, 1, 1], the latent codebook. Convolutions are [out, in, h, w] there and
[h, w, in, out] here, dense weights [out, in] there and [in, out] here.
"""

import os
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from llc_jax.errors import InputError
from llc_jax.weights.torch_names import TorchNaming, torch_naming

Tree = Any
StateDict = dict[str, np.ndarray]

TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)

PROJECTION = "fc_lr.weight"

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# What training scripts wrap a state dict in, and a model.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
_COUNTER = "num_batches_tracked"


def read_state_dict(path: str | os.PathLike) -> StateDict:
    """Reads a state dict; no code in the file is run.

    Args:
      path: a `.safetensors` file, or one that `torch.save` wrote, of a state dict or of a
        dict that holds one as `state_dict`, `model` or `model_state_dict`.

    Returns:
      float32 arrays by key, without the prefix `module.`.

    Raises:
      InputError: if it cannot be read.
    """
    path = pathlib.Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"Weights are a file of {', '.join(SUFFIXES)}, not {path}.")
    if not path.is_file():
        raise InputError(f"There are no weights at {path}.")
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    return {key: value for key, value in found.items() if not key.endswith(_COUNTER)}


def write_state_dict(path: str | os.PathLike, state: StateDict) -> None:
    """Writes a state dict as `.safetensors`, or as `torch.save` does."""
    state = {key: np.array(value, order="C") for key, value in state.items()}
    if pathlib.Path(path).suffix == ".safetensors":
        safetensors.numpy.save_file(state, path)
    else:
        torch = _torch(path)
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)


def from_torch(
    state: StateDict, abstract: Tree, backbone: str, *, drop_head: bool, source: str
) -> Tree:
    """Returns a network's weights from a state dict.

    Args:
      state: of `read_state_dict`.
      abstract: the network's `params` and `batch_stats`, of anything with shapes.
      backbone: its name in the registry.
      drop_head: leave what comes after the backbone, in the file and in the network.
      source: of the state dict, for errors.

    Returns:
      A tree like `abstract`, of float32 arrays; its `head` is empty if dropped.

    Raises:
      InputError: naming every key that is missing, not needed, or of another shape.
    """
    head = abstract["params"]["head"]
    if drop_head:
        abstract = {kind: part | {"head": {}} for kind, part in abstract.items()}
    naming = torch_naming(backbone)
    keys = _torch_keys(abstract, naming)
    unused = state.keys() - set(keys.values())
    if drop_head:
        unused = {key for key in unused if not _is_head(key, naming)}
    elif "latent" not in head and "projection" in head:
        unused -= {f"{naming.classifier}.weight"}  # The codebook, which is fixed outside.
    problems = [f"{key} is missing" for key in keys.values() if key not in state]
    problems += [f"{key} is not needed" for key in sorted(unused)]

    def convert(path, leaf):
        key = keys[path]
        if key not in state:
            return None
        value = _to_ours(state[key], leaf.ndim, path[-1].key)
        if value.shape != leaf.shape:
            expected = _to_torch(np.zeros(leaf.shape), path).shape
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
      latent: float32[L, k], a codebook to write as the official code does; None for none.
    """
    naming = torch_naming(backbone)
    keys = _torch_keys(weights, naming)
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    state = {keys[path]: _to_torch(np.asarray(leaf), path) for path, leaf in leaves}
    if latent is not None:
        state[f"{naming.classifier}.weight"] = latent[:, :, None, None]
    return state


def latent_codebook(state: StateDict, backbone: str) -> np.ndarray | None:
    """Returns the latent codebook, float32[L, k], that an official checkpoint holds, or None."""
    latent = state.get(f"{torch_naming(backbone).classifier}.weight")
    return None if PROJECTION not in state or latent is None else latent.reshape(latent.shape[:2])


def fits_backbone(state: StateDict, abstract: Tree, backbone: str) -> bool:
    """Whether a state dict holds the weights of a backbone, whatever its head."""
    try:
        from_torch(state, abstract, backbone, drop_head=True, source="")
    except InputError:
        return False
    return True


def _torch_keys(tree: Tree, naming: TorchNaming) -> dict[tuple, str]:
    """Returns the PyTorch key of each leaf, by its path in `params` and `batch_stats`."""
    keys = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        names = tuple(part.key for part in path)
        _, part, *rest = names
        if part == "head":
            keys[path] = _head_key(rest, naming)
        elif rest[-1] in _LEAVES or rest[-1] == "bias":
            leaf = _LEAVES.get(rest[-1], "bias")
            keys[path] = f"{naming.prefix(tuple(rest[:-1]))}.{leaf}"
        else:
            keys[path] = naming.prefix(tuple(rest))
    return keys


def _head_key(names: list[str], naming: TorchNaming) -> str:
    match names:
        case ["projection", "kernel"]:
            return PROJECTION
        case ["latent"]:
            return f"{naming.classifier}.weight"
        case ["classifier", leaf]:
            return f"{naming.classifier}.{_LEAVES.get(leaf, leaf)}"
    raise InputError(f"A head with {'.'.join(names)} has no PyTorch form.")


def _is_head(key: str, naming: TorchNaming) -> bool:
    return key in (PROJECTION, f"{naming.classifier}.weight", f"{naming.classifier}.bias")


def _to_ours(value: np.ndarray, ndim: int, leaf: str) -> np.ndarray:
    if ndim == 2 and value.ndim == 4 and value.shape[2:] == (1, 1):
        value = value[:, :, 0, 0]
    if leaf != "kernel" or value.ndim != ndim:
        return value
    return value.T if ndim == 2 else value.transpose(2, 3, 1, 0)


def _to_torch(value: np.ndarray, path: tuple) -> np.ndarray:
    names = [part.key for part in path]
    if names[-1] == "kernel":
        value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
    official = names[1] == "head" and names[2] in ("projection", "latent")
    return value[:, :, None, None] if official else value


def _read_safetensors(path: pathlib.Path) -> StateDict:
    try:
        found = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a whole .safetensors file ({error}).") from error
    return {key: value.astype(np.float32) for key, value in found.items()}


def _read_torch(path: pathlib.Path) -> StateDict:
    torch = _torch(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors, or is damaged, and is not opened: it could run "
            "code. Save the state dict alone, or as .safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else "it ends early"
        raise InputError(f"{path} is not a whole file of torch.save ({reason}).") from error
    for name in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{path} holds no state dict.")
    odd = [key for key, value in found.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise InputError(f"{path} holds no state dict: {odd[0]!r} is not a tensor.")
    return {str(key): value.detach().to(torch.float32).numpy() for key, value in found.items()}


def _torch(path: str | os.PathLike):
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path} needs PyTorch: pip install torch. Files of .safetensors do not."
        ) from error
    return torch
