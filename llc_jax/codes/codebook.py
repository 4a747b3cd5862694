"""The codebook: one binary code for each class."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from llc_jax.codes import construction, hamming, packing
from llc_jax.copies import as_path, local
from llc_jax.errors import InputError
from llc_jax.files import atomic_write, read_array, read_arrays


@dataclasses.dataclass(frozen=True)
class Codebook:
    """L class codes of k bits: the signs of real latent values.

    Attributes:
      latent: float32[L, k]; the code of class c is +1 where latent[c] >= 0.
      class_names: L names.
      source: how the codebook was made: "learnt", "svd", ..., or the name of its file.

    Example:
      >>> latent = np.array([[0.5, -1.0, 2.0], [-0.1, 0.3, 0.0]])
      >>> codebook = llc_jax.Codebook.from_numpy(latent, ["cat", "dog"])
      >>> codebook.packed
      array([[5],
             [6]], dtype=uint32)
      >>> codebook.min_distance
      2
    """

    latent: np.ndarray
    class_names: tuple[str, ...]
    source: str = "learnt"

    def __post_init__(self):
        latent = np.asarray(self.latent)
        if latent.dtype.kind in "cOSUmM":
            raise InputError(f"A codebook is of real numbers, not of the type {latent.dtype}.")
        latent = latent.astype(np.float32, copy=False)
        names = tuple(str(name) for name in self.class_names)
        if latent.ndim != 2 or not latent.size:
            raise InputError(
                f"A codebook is a matrix of classes by bits, not of shape {latent.shape}."
            )
        if not np.isfinite(latent).all():
            raise InputError(f"The codebook ({self.source}) has values that are not finite.")
        if len(names) != len(latent):
            raise InputError(f"The codebook has {len(latent)} codes but {len(names)} class names.")
        packing.num_words(latent.shape[1])
        object.__setattr__(self, "latent", latent)
        object.__setattr__(self, "class_names", names)

    @property
    def num_classes(self) -> int:
        """L, the number of classes."""
        return self.latent.shape[0]

    @property
    def num_bits(self) -> int:
        """k, the bits of a code."""
        return self.latent.shape[1]

    @functools.cached_property
    def packed(self) -> np.ndarray:
        """The class codes, uint32[L, ceil(k / 32)]."""
        return np.asarray(packing.pack(self.latent))

    @functools.cached_property
    def num_unique(self) -> int:
        """The number of different codes among the L."""
        return len(np.unique(self.packed, axis=0))

    @property
    def is_numbered(self) -> bool:
        """Whether the names of the classes are only their numbers."""
        return tuple(self.class_names) == tuple(map(str, range(self.num_classes)))

    @property
    def collisions(self) -> list[list[int]]:
        """The groups of two or more classes that share a code, in the order of classes."""
        _, inverse = np.unique(self.packed, axis=0, return_inverse=True)
        order = np.argsort(inverse.ravel(), kind="stable")
        bounds = np.flatnonzero(np.diff(inverse.ravel()[order])) + 1
        groups = [group.tolist() for group in np.split(order, bounds)]
        return sorted(group for group in groups if len(group) > 1)

    @functools.cached_property
    def min_distance(self) -> int:
        """The least Hamming distance between two classes, in bits (k for one class)."""
        return hamming.least_distance(self.packed, self.num_bits)

    def prefix(self, num_bits: int) -> "Codebook":
        """Returns the codebook of only the first bits."""
        if not 1 <= num_bits <= self.num_bits:
            raise InputError(f"A prefix has from 1 to {self.num_bits} bits, not {num_bits}.")
        return dataclasses.replace(self, latent=self.latent[:, :num_bits])

    @classmethod
    def from_numpy(
        cls,
        latent: np.ndarray | jax.Array,
        class_names: Sequence[str] | None = None,
        source: str = "learnt",
    ) -> "Codebook":
        """Makes a codebook of latent values [L, k]; by default classes are named by number."""
        latent = np.asarray(latent)
        if class_names is None:
            class_names = [str(index) for index in range(len(latent))]
        return cls(latent, tuple(class_names), source)

    @classmethod
    def random(cls, num_classes: int, num_bits: int, seed: int = 0) -> "Codebook":
        """Makes a random codebook; see `construction.random`."""
        return cls.from_numpy(construction.random(num_classes, num_bits, seed), source="random")

    @classmethod
    def hadamard(cls, num_classes: int, num_bits: int, seed: int = 0) -> "Codebook":
        """Makes a codebook of codes that are far apart; see `construction.hadamard`."""
        latent = construction.hadamard(num_classes, num_bits, seed)
        return cls.from_numpy(latent, source="hadamard")

    @classmethod
    def svd(cls, weights: np.ndarray, num_bits: int) -> "Codebook":
        """Makes a codebook of a linear classifier [L, d]; see `construction.svd`."""
        return cls.from_numpy(construction.svd(weights, num_bits), source="svd")

    @classmethod
    def cca(cls, features: np.ndarray, labels: np.ndarray, num_bits: int) -> "Codebook":
        """Makes a codebook of features [N, d] and labels [N]; see `construction.cca`."""
        return cls.from_numpy(construction.cca(features, labels, num_bits), source="cca")

    def repaired(self) -> "Codebook":
        """Returns a codebook without collisions; see `construction.repair`."""
        return dataclasses.replace(self, latent=construction.repair(self.latent))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the codebook as `.npz` (all of it) or `.npy` (only the latent values)."""
        path = as_path(path)
        if path.suffix not in (".npz", ".npy"):
            raise InputError(f"A codebook is saved as .npz or .npy, not as {path.name!r}.")
        latent = self.latent.astype("<f4")
        with atomic_write(path) as temporary:
            if path.suffix == ".npy":
                np.save(temporary, latent, allow_pickle=False)
            else:
                names = np.asarray(self.class_names, dtype=np.str_)
                source = np.asarray(self.source, dtype=np.str_)
                np.savez(temporary, latent=latent, class_names=names, source=source)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Codebook":
        """Reads a saved codebook, or the official code's `.npy` of latent values.

        Raises:
          InputError: if the file is missing, damaged, or not a codebook.
        """
        path = local(path)
        if not path.is_file():
            raise InputError(f"There is no codebook at {path}.")
        try:
            if _is_npy(path):
                return cls.from_numpy(_squeeze(read_array(path)), source=path.name)
            arrays = read_arrays(path)
            names = arrays["class_names"]
            if names.ndim != 1 or names.dtype.kind != "U":
                raise ValueError(f"its class names are {names.dtype}{list(names.shape)}")
            return cls(arrays["latent"], tuple(names), str(arrays["source"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).rstrip(".")
            raise InputError(
                f"{path} is not a codebook ({reason}): expected an .npz that llc_jax wrote, "
                "or an .npy of numbers, classes by bits."
            ) from error


def _is_npy(path: pathlib.Path) -> bool:
    """Whether a file is one array, and not an archive of several."""
    magic = np.lib.format.MAGIC_PREFIX
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _squeeze(latent: np.ndarray) -> np.ndarray:
    """Drops the two trailing axes of a convolution's weights, [L, k, 1, 1]."""
    return latent.reshape(latent.shape[:2]) if latent.shape[2:] == (1, 1) else latent
