"""Features of images, as a frozen backbone computed them, kept in a file and read in batches.

The file is an .npy, float16[V N, d]: the features of N images, of V views of each one after the
other. The rows of an image that was damaged are NaN. Beside it lies a .json with the digest of
its bytes. While the features are computed, the file grows by a batch at a time, so that whoever
continues knows from its size what is there.
"""

import dataclasses
import io
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from llc_jax.copies import publish
from llc_jax.data.pipeline import Batch, Images, Order, ProcessShard
from llc_jax.data.vectors import Shard, VectorSource
from llc_jax.errors import InputError
from llc_jax.files import read_json, sha256, write_json, writing

_DTYPE = np.dtype("<f2")
# Rows that are looked through for NaN at once.
_BLOCK = 65536


@dataclasses.dataclass(frozen=True)
class Features(Images):
    """Features of images in batches; in epoch e of the stream those of view e mod V.

    Attributes:
      source: the V N features.
      labels: int32[N], of the images.
      damaged: the indices of the images that were damaged.
    """

    source: VectorSource
    labels: np.ndarray
    damaged: set[int]

    @classmethod
    def open(
        cls, path: pathlib.Path, labels: np.ndarray, class_names: tuple[str, ...]
    ) -> "Features":
        """Opens the features in a file, which is mapped.

        Args:
          path: of the file.
          labels: int32[N], of the images.
          class_names: L names.

        Raises:
          InputError: if the file cannot be read.
        """
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"Cannot read the features in {path}: {error}.") from error
        damaged = set()
        for start in range(0, len(array), _BLOCK):
            rows = np.flatnonzero(np.isnan(array[start : start + _BLOCK, 0])) + start
            damaged.update((rows % len(labels)).tolist())
        views = len(array) // len(labels)
        source = VectorSource(
            (Shard(path, array, is_mapped=True),),
            rows=np.arange(len(array)),
            labels=np.tile(labels, views),
            class_names=class_names,
            origin=str(path),
        )
        return cls(source, labels, damaged)

    def batches(self, order: Order, shard: ProcessShard, steps: range) -> Iterator[Batch]:
        """Yields this process's shard of the batch of each step.

        Raises:
          InputError: if the file was replaced, cut off or removed.
        """
        size = len(self.labels)
        views = len(self.source.labels) // size
        damaged = np.isin(np.arange(size), list(self.damaged))
        for step in steps:
            positions = shard.positions(step)
            examples = order(positions)
            mask = examples >= 0
            mask[mask] = ~damaged[examples[mask]]
            rows = examples + size * ((positions // size) % views)
            features = np.zeros((len(examples), self.source.size), np.float32)
            features[mask] = self.source.gather(rows[mask])
            labels = np.where(examples >= 0, self.labels[examples], 0).astype(np.int32)
            yield {"input": features, "label": labels, "mask": mask}

    def identity(self) -> Iterator[bytes]:
        """Yields what identifies the features."""
        return self.source.identity()


class FeatureFile:
    """A file of features that grows while they are computed.

    Args:
      path: of the file, once it is whole.
      num_rows: V N.
      size: d.
    """

    def __init__(self, path: pathlib.Path, num_rows: int, size: int):
        self.path = path
        self.num_rows = num_rows
        self._shape = (num_rows, size)
        self._growing = path.with_suffix(".growing")

    @property
    def num_bytes(self) -> int:
        """The bytes that the whole file takes."""
        return self.num_rows * self._row_bytes

    @property
    def record(self) -> pathlib.Path:
        """The file of its digest, which exists once the features are whole."""
        return self.path.with_suffix(".json")

    def rows_done(self) -> int:
        """Returns how many rows have been written so far."""
        if not self._growing.exists():
            return 0
        written = self._growing.stat().st_size - len(self._header())
        return min(max(0, written // self._row_bytes), self.num_rows)

    def append(self, first_row: int) -> BinaryIO:
        """Opens the file to write on from a row; what is there of later ones is cut off."""
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self._growing.open("ab")
            file.truncate(len(self._header()) + first_row * self._row_bytes if first_row else 0)
            if not first_row:
                file.write(self._header())
                file.flush()
        return file

    def finish(self, contents: dict[str, Any]) -> None:
        """Gives the whole file its name and its digest.

        Args:
          contents: what else the record says.
        """
        write_json(self.record, contents | {"sha256": sha256(self._growing)})
        with writing(self.path):
            os.replace(self._growing, self.path)
        publish(self.path)

    def is_whole(self) -> bool:
        """Whether the file is there and has the bytes that were written."""
        if not (self.path.is_file() and self.record.is_file()):
            return False
        try:
            return read_json(self.record).get("sha256") == sha256(self.path)
        except InputError:
            return False

    def remove(self) -> bool:
        """Removes a file that is not whole; returns whether there was one."""
        there = self.path.exists() and self.record.exists()
        self.record.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        return there

    def borrow(self, others: Sequence[pathlib.Path]) -> bool:
        """Links the first whole file of the same name in other folders; says if there was one."""
        for folder in others:
            other = FeatureFile(folder / self.path.name, *self._shape)
            if other.path.is_file() and other.is_whole():
                try:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    for file, link in ((other.path, self.path), (other.record, self.record)):
                        link.unlink(missing_ok=True)
                        os.link(file, link)
                except OSError:  # Another disk, or one without links.
                    self.remove()
                    continue
                return True
        return False

    @property
    def _row_bytes(self) -> int:
        return self._shape[1] * _DTYPE.itemsize

    def _header(self) -> bytes:
        """Returns the head of the .npy of all rows."""
        head = io.BytesIO()
        form = {"descr": _DTYPE.str, "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(head, form)
        return head.getvalue()
