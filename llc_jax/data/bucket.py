"""Image files in a bucket."""

import posixpath
from collections.abc import Sequence

import numpy as np

from llc_jax import objects
from llc_jax.data.stores import check_size, is_image
from llc_jax.objects import URL


class Bucket:
    """Files below a URL, each read from there when it is asked for."""

    def __init__(self, root: URL):
        self.root = root
        found = objects.find(root)
        self._bytes = {str(url.relative_to(root)): what.size for url, what in found.items()}

    def files(self) -> list[str]:
        """Lists the image files, as sorted paths below the URL; hidden ones are left out."""
        return sorted(name for name in self._bytes if is_image(name) and "/." not in f"/{name}")

    def real_paths(self, files: Sequence[str]) -> list[str]:
        """Returns one path for each file, whatever its names."""
        return [posixpath.normpath(file) for file in files]

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return posixpath.normpath(name) in self._bytes

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        name = posixpath.normpath(name)
        check_size(str(self.root / name), self._bytes[name])
        return objects.read(self.root / name, self._bytes[name])

    def sizes(self, names: Sequence[str]) -> np.ndarray:
        """Returns the bytes of each file, int64[N]."""
        return np.array([self._bytes[posixpath.normpath(name)] for name in names], np.int64)
