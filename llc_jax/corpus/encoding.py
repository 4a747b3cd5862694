"""The encoding of a corpus: a file of codes for each shard, written when it is whole.

What is done is what is there: a task that is killed loses the shards that it was at, and does
these again when it is started again. Two tasks that encode the same shard write the same file. A
shard that cannot be read for a reason that may pass is tried again after the others, a few times.
`search/code_shards.py` has the form of the files.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from llc_jax.codes import packing
from llc_jax.copies import named
from llc_jax.corpus import inputs
from llc_jax.corpus.progress import Progress, Silent
from llc_jax.data.readers import Inputs
from llc_jax.decoding import decoders
from llc_jax.errors import InputError
from llc_jax.files import make_directory, sweep, write_json
from llc_jax.inference import Model, Part
from llc_jax.objects import URL, StoreFailed
from llc_jax.search import code_shards

# Errors of the system that are those of one file. Others can pass: they are of a whole shard.
_OF_ONE_FILE = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
)
# Seconds after which a file that is not whole is not one that has just been made.
_OLD = 60.0
# Seconds after which shards that could not be read for a reason that may pass are tried again.
_PAUSES = (5.0, 30.0)
# Files of codes that are looked for at once.
_AT_ONCE = 16


@dataclasses.dataclass
class Counts:
    """What has been encoded.

    Attributes:
      shards: that were written.
      items: that have codes in them.
      damaged: items that could not be read, and were left out.
      failed: what is wrong with the shards that could not be read, even when they were tried
        again, by their names.
    """

    shards: int = 0
    items: int = 0
    damaged: int = 0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _OpenShard:
    """A shard that is being encoded.

    Attributes:
      number: of the shard.
      keys: names of its items.
      inputs: the items; None if they cannot be read, or have codes.
      opened: is closed when they are encoded.
      parts: what is encoded of it.
      labels: labels and distances of each part, where they are asked for.
      error: because of which it is not encoded.
    """

    number: int
    keys: Sequence[str]
    inputs: Inputs | None
    opened: contextlib.ExitStack
    parts: list[Part] = dataclasses.field(default_factory=list)
    labels: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)
    error: InputError | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all its items are encoded."""
        return sum(len(part.code_logits) for part in self.parts) == len(self.keys)


class Encoding:
    """The codes of a corpus, in a folder.

    Args:
      model: that encodes it.
      shards: of the corpus, as `inputs.find` returns them.
      folder: where the codes are written, a directory or a URL.
      logits: whether to keep the code logits too, as float16.
      decoder: a name that `decoders.make` takes, for the class of each item; None for no class.
      skip: whether items that cannot be read are left out, and shards that cannot be read
        left for later; else they are errors.

    Raises:
      InputError: if the folder has codes of another corpus or model, or cannot be written in.
      WriteFailed: if the manifest cannot be written.
    """

    def __init__(
        self,
        model: Model,
        shards: Sequence[inputs.InputShard],
        folder: pathlib.Path | URL,
        *,
        logits: bool = False,
        decoder: str | None = None,
        skip: bool = True,
    ):
        self._model, self._shards, self._folder = model, shards, folder
        self._logits, self._skip = logits, skip
        self._decode = None if decoder is None else decoders.make(decoder, model.codebook)
        self._digest = model.digest()
        if not isinstance(folder, URL):
            make_directory(folder)
            sweep(folder, _OLD)
        self._check_manifest({"logits": logits, "decoder": decoder})

    @property
    def num_shards(self) -> int:
        """How many shards the corpus has."""
        return len(self._shards)

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Returns which shards are not encoded yet."""
        found = self._look_for(numbers)
        return [number for number, metadata in found if not self._fits(number, metadata)]

    def work(self, numbers: Iterable[int]) -> float:
        """Returns how much work there is in some shards, as their encoding counts it."""
        return float(sum(self._shards[number].size for number in numbers))

    def damaged(self, numbers: Iterable[int]) -> int:
        """Returns how many items of some shards could not be read, of those that are encoded."""
        return sum(len((found or {}).get("damaged", ())) for _, found in self._look_for(numbers))

    def encode(self, numbers: Iterable[int], progress: Progress | None = None) -> Counts:
        """Encodes the shards of some numbers that are not there.

        Args:
          numbers: of the shards.
          progress: is told of it.

        Returns:
          What was encoded now.

        Raises:
          InputError: if an item or shard cannot be read, and is not to be skipped.
          ReadersFailed: as `Model.stream`.
          WriteFailed: if codes cannot be written.
        """
        counts, progress, errors = Counts(), progress or Silent(), {}
        for pause in (*_PAUSES, None):
            failed = self._encode(numbers, counts, progress)
            errors |= failed
            numbers = [number for number, error in failed.items() if _may_pass(error)]
            if not numbers or pause is None:
                break
            progress.say(f"{len(numbers):,} shards are tried again in {pause:.0f} s")
            time.sleep(pause)
            for number in numbers:
                del errors[number]
        counts.failed = {self._shards[n].name: named(error) for n, error in errors.items()}
        return counts

    def _encode(
        self, numbers: Iterable[int], counts: Counts, progress: Progress
    ) -> dict[int, InputError]:
        """Encodes some shards; returns what is wrong with those that cannot be read."""
        failed = {}
        for part in self._model.stream(self._open(numbers, counts, failed, progress)):
            shard, name = part.group, self._shards[part.group.number].name
            for row, error in part.errors.items():
                if not self._skip:
                    raise InputError(f"{error} With --on-error skip it is left out.") from error
                if _may_pass(error):
                    shard.error = error
                progress.say(f"skipped: {named(error)} ({shard.keys[row]} of {name})")
            shard.parts.append(part)
            if self._decode is not None:
                shard.labels.append(self._classify(part.code_logits))
            size = self._shards[shard.number].size
            progress.add(len(part.code_logits), size * len(part.code_logits) / len(shard.keys))
            if not shard.is_whole:
                continue
            if shard.error is None:
                self._write(shard, counts)
            else:
                failed[shard.number] = shard.error
                progress.add(0, -size)
            shard.opened.close()
        return failed

    def _open(
        self,
        numbers: Iterable[int],
        counts: Counts,
        failed: dict[int, InputError],
        progress: Progress,
    ) -> Iterator[tuple[_OpenShard, Any]]:
        """Yields the shards that are still missing when their turn comes, and what is in them.

        While the items of one are read, the next is opened, and if it is at a URL copied.
        """
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            before = None
            for number in (*numbers, None):
                following = None if number is None else pool.submit(self._open_missing, number)
                shard, before = before and before.result(), following
                if shard is None:
                    continue
                if shard.error is not None:
                    if not self._skip:
                        raise shard.error
                    failed[shard.number] = shard.error
                    progress.say(f"failed: {named(shard.error)}")
                elif shard.inputs is None:
                    progress.add(0, self._shards[shard.number].size)
                elif len(shard.keys):
                    yield shard, shard.inputs
                else:
                    self._write(shard, counts)
                    shard.opened.close()

    def _open_missing(self, number: int) -> _OpenShard:
        """Opens a shard, unless its codes are there."""
        shard, opened = self._shards[number], contextlib.ExitStack()
        try:
            if self._fits(number, self._found(number)):
                return _OpenShard(number, (), None, opened)
            items = opened.enter_context(shard.open())
            if len(items.keys):
                self._model.check(items.inputs)
            if len(items.keys) > code_shards.MAX_ITEMS:
                raise InputError(f"{shard.name} has more than 2^32 items.")
        except InputError as error:
            opened.close()
            return _OpenShard(number, (), None, opened, error=error)
        return _OpenShard(number, items.keys, items.inputs, opened)

    def _write(self, shard: _OpenShard, counts: Counts) -> None:
        """Writes the codes of a shard."""
        logits = np.concatenate(
            [np.zeros((0, self._model.num_bits), np.float32)]
            + [part.code_logits for part in shard.parts]
        )
        errors = {row: named(e) for part in shard.parts for row, e in part.errors.items()}
        rows = np.delete(np.arange(len(logits)), list(errors))
        codes = code_shards.CodeShard(
            self._model.num_bits,
            code_shards.item_ids(shard.number, rows),
            [shard.keys[row] for row in rows],
            packing.pack_on_host(logits[rows]),
            logits[rows] if self._logits else None,
            *self._classes(shard, rows),
        )
        damaged = [
            {"row": row, "key": str(shard.keys[row]), "error": error}
            for row, error in errors.items()
        ]
        metadata = self._metadata(shard.number) | {"items": len(logits), "damaged": damaged}
        code_shards.write(code_shards.file_of(self._folder, shard.number), codes, metadata)
        counts.shards += 1
        counts.items += len(rows)
        counts.damaged += len(damaged)

    def _classify(self, code_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns labels and distances; of few different numbers of items, as each is compiled."""
        count = len(code_logits)
        padding = 2 ** (count - 1).bit_length() - count
        padded = np.nan_to_num(np.pad(code_logits, ((0, padding), (0, 0))))
        labels, distances = self._decode(padded)
        return np.asarray(labels)[:count], np.asarray(distances)[:count]

    def _classes(
        self, shard: _OpenShard, rows: np.ndarray
    ) -> tuple[list[str | None] | None, np.ndarray | None]:
        """Returns the names of the classes of some items, and the distances to their codes."""
        if self._decode is None:
            return None, None
        nothing = (np.zeros(0, np.int32),) * 2
        labels, distances = map(np.concatenate, zip(nothing, *shard.labels, strict=True))
        names = [*self._model.codebook.class_names, None]  # The label -1, rejected, is the last.
        return [names[label] for label in labels[rows]], distances[rows].astype(np.int32)

    def _look_for(self, numbers: Iterable[int]) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Yields the numbers of shards, and the metadata of their files, None where none is."""
        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:  # Stores take their time.
            yield from pool.map(lambda number: (number, self._found(number)), numbers)

    def _found(self, number: int) -> dict[str, Any] | None:
        return code_shards.read_metadata(code_shards.file_of(self._folder, number))

    def _fits(self, number: int, found: dict[str, Any] | None) -> bool:
        """Whether a file is of a shard as it is now, and of this model."""
        expected = self._metadata(number)
        return found is not None and {name: found.get(name) for name in expected} == expected

    def _metadata(self, number: int) -> dict[str, Any]:
        return {"model": self._digest, "shard": _describe(self._shards[number])}

    def _check_manifest(self, options: dict[str, Any]) -> None:
        """Writes the manifest, or compares it with the one that is there."""
        manifest = {
            "num_bits": self._model.num_bits,
            "model": self._digest,
            **options,
            "shards": [_describe(shard) for shard in self._shards],
        }
        there = code_shards.read_manifest(self._folder)
        if there is None:
            write_json(self._folder / code_shards.MANIFEST, manifest)
            there = code_shards.read_manifest(self._folder) or {}
        different = next((name for name in manifest if there.get(name) != manifest[name]), None)
        if different is not None:
            change = _CHANGES.get(different, lambda *_: f"another {different}")
            raise InputError(
                f"{self._folder} was begun with {change(there.get(different), manifest[different])}"
                ": name another folder, or give the command that it was begun with."
            )


def _describe(shard: inputs.InputShard) -> dict[str, Any]:
    return {"name": shard.name, "size": shard.size, "digest": shard.digest}


def _different_shards(there: Any, now: list[dict[str, Any]]) -> str:
    """Says how the shards of a corpus have changed."""
    there = there if isinstance(there, list) else []
    if len(there) != len(now):
        return f"{len(there):,} shards, and now there are {len(now):,}"
    pairs = zip(there, now, strict=True)
    first = next((before, after) for before, after in pairs if before != after)
    return f"other shards: {first[0]} is now {first[1]}"


_CHANGES: dict[str, Callable[[Any, Any], str]] = {
    "model": lambda *_: "another model",
    "shards": _different_shards,
    "logits": lambda there, _: "--logits" if there else "no --logits",
    "decoder": lambda there, _: f"--decoder {there}" if there else "no --decoder",
}


def _may_pass(error: InputError) -> bool:
    """Whether what cannot be read may be readable later, such as on a storage that fails."""
    cause = error.__cause__
    if isinstance(error, StoreFailed):
        return True
    return isinstance(cause, OSError) and cause.errno not in (None, *_OF_ONE_FILE)
