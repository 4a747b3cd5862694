"""Batches of images, as a pure function of seed and step.

The examples of a run form one endless stream: position p of it is example
`order(p)`, and step s takes positions s * B to (s + 1) * B of it. So a run can
continue at any step, on any number of processes and devices, with the batches
that an unbroken run would have seen. A batch is a dict of

  input: images, uint8[B, H, W, 3]; or vectors, float[B, d]
  label: int32[B]
  mask: bool[B], False where the batch is padded, or an image is damaged and skipped
  targets: float32[B, k], where a teacher gives each image its own
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import gc
import os
from collections.abc import Iterable, Iterator
from typing import Protocol

import grain
import jax
import numpy as np
from absl import flags

from llc_jax.data.prefetch import Prefetcher
from llc_jax.data.sources import ArraySource, Source
from llc_jax.data.transforms import Crop, Transform
from llc_jax.errors import InputError

Batch = dict[str, np.ndarray]

# A process has two threads per core, at most _MAX_THREADS. With more than _CORES_PER_WORKER cores
# the threads of one process would wait for Python's global lock, so there are worker processes.
_MAX_THREADS, _CORES_PER_WORKER = 16, 8


class Order(Protocol):
    """Which example is at each position of the stream.

    Attributes:
      seed: of the random transforms of the examples.
    """

    seed: int

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Maps int64[n] positions to int64[n] examples; a negative one is padding."""


@dataclasses.dataclass(frozen=True)
class Shuffled(Order):
    """Every example once in each epoch of `size` positions, in a new order each epoch."""

    size: int
    seed: int

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Maps int64[n] positions to int64[n] examples."""
        epochs, offsets = np.divmod(positions, self.size)
        examples = np.empty_like(positions)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            examples[in_epoch] = _permutation(self.size, self.seed, int(epoch))[offsets[in_epoch]]
        return examples


@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


@dataclasses.dataclass(frozen=True)
class InOrder(Order):
    """Every example once, in order, or `views` times, all before any comes again; then padding."""

    size: int
    seed: int = 0
    views: int = 1

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Maps int64[n] positions to int64[n] examples, -1 beyond the last one."""
        return np.where(positions < self.size * self.views, positions % max(1, self.size), -1)


@dataclasses.dataclass(frozen=True)
class ProcessShard:
    """The rows of every batch that this process makes.

    Attributes:
      batch_size: B, over all processes.
      rows: int64[b], the indices in the batch of this process's rows.
    """

    batch_size: int
    rows: np.ndarray

    @classmethod
    def of(cls, sharding: jax.sharding.Sharding, batch_size: int) -> "ProcessShard":
        """Returns the rows that lie on this process's devices.

        Raises:
          InputError: if the batch cannot be divided among the devices.
        """
        if batch_size % sharding.num_devices:
            raise InputError(
                f"A batch of {batch_size} cannot be divided among {sharding.num_devices} "
                "devices: choose a batch_size that is a multiple of their number."
            )
        indices = sharding.addressable_devices_indices_map((batch_size,)).values()
        rows = np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))
        return cls(batch_size, rows)

    def positions(self, step: int) -> np.ndarray:
        """Returns the positions in the stream of this process's shard of a step."""
        return step * self.batch_size + self.rows


class Images(Protocol):
    """Images that can be read in batches.

    Attributes:
      labels: int32[N].
      damaged: the indices in the source of the damaged images skipped so far.
    """

    labels: np.ndarray
    damaged: set[int]

    def batches(self, order: Order, shard: ProcessShard, steps: range) -> Iterator[Batch]:
        """Yields this process's shard of the batch of each step."""

    def identity(self) -> Iterator[bytes]:
        """Yields what identifies the inputs, as a network gets them, wherever they lie."""


@dataclasses.dataclass(frozen=True)
class InMemory(Images):
    """Decoded images of one size, uint8[N, H, W, 3], or vectors, float[N, d].

    Skipped images are not among the N; `damaged` has their indices in the source.
    """

    images: np.ndarray
    labels: np.ndarray
    damaged: set[int] = dataclasses.field(default_factory=set)

    @classmethod
    def load(cls, source: Source, crop: Crop, skip: bool = False) -> "InMemory":
        """Decodes all images of a source, cropped where they have another size.

        Raises:
          InputError: if an image is damaged and `skip` is false, or if all are damaged.
        """
        if isinstance(source, ArraySource) and source.images.shape[1:3] == (crop.size,) * 2:
            return cls(source.images, source.labels)

        def read(index: int) -> np.ndarray | None:
            return _read_image(source, index, crop, None, skip)

        with concurrent.futures.ThreadPoolExecutor() as pool:
            images = list(pool.map(read, range(len(source))))
        damaged = {index for index, image in enumerate(images) if image is None}
        if len(damaged) == len(images):
            raise InputError(f"All {len(images)} images are damaged, {source.names[0]} the first.")
        decoded = [image for image in images if image is not None]
        return cls(np.stack(decoded), np.delete(source.labels, sorted(damaged)), damaged)

    def batches(self, order: Order, shard: ProcessShard, steps: range) -> Iterator[Batch]:
        """Yields this process's shard of the batch of each step."""
        for step in steps:
            examples = order(shard.positions(step))
            mask = examples >= 0
            images = self.images[examples]
            images[~mask] = 0
            labels = np.where(mask, self.labels[examples], 0).astype(np.int32)
            yield {"input": images, "label": labels, "mask": mask}

    def identity(self) -> Iterator[bytes]:
        """Yields the inputs themselves."""
        yield f"{self.images.dtype.str}{self.images.shape}".encode()
        yield np.ascontiguousarray(self.images).data


@dataclasses.dataclass(frozen=True)
class Streamed(Images):
    """Images read, decoded and cropped one by one, by Grain's threads or processes.

    Attributes:
      source: where the images are read.
      transform: makes uint8[size, size, 3] of an image. Its randomness comes from the
        order's seed and the image's position in the stream, whatever worker runs it.
      workers: worker processes; 0 reads in threads of this process; None chooses by the
        number of cores.
      skip: whether a damaged image is masked, instead of an error.
      timeout: seconds to wait for a batch before reading counts as stalled.
      damaged: the indices of the images skipped so far.
    """

    source: Source
    transform: Transform
    workers: int | None = None
    skip: bool = False
    timeout: float = 600.0
    damaged: set[int] = dataclasses.field(default_factory=set)

    @property
    def labels(self) -> np.ndarray:
        """int32[N]."""
        return self.source.labels

    def batches(self, order: Order, shard: ProcessShard, steps: range) -> Iterator[Batch]:
        """Yields this process's shard of the batch of each step.

        Raises:
          InputError: if an image is damaged and `skip` is false.
          ReadersFailed: if no batch comes within `timeout`, or a worker process has died.
        """
        load_batch = _LoadBatch(self.source, self.transform, order, shard, self.skip)
        prefetcher = Prefetcher(_grain_batches(load_batch, steps, self.workers))
        with contextlib.closing(prefetcher):
            for step in steps:
                examples = order(shard.positions(step))
                first = self.source.names[max(0, examples[0])]
                batch = prefetcher.next(self.timeout, f"the images from {first} on")
                self.damaged.update(examples[(examples >= 0) & ~batch["mask"]].tolist())
                yield batch

    def identity(self) -> Iterator[bytes]:
        """Yields what identifies the images, and how they are cropped."""
        yield from self.source.identity()
        yield repr(self.transform).encode()


@dataclasses.dataclass(frozen=True)
class WithTargets(Images):
    """Images with targets, which a teacher gives them.

    Attributes:
      images: N images.
      targets: float[N, k].
    """

    images: Images
    targets: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """int32[N]."""
        return self.images.labels

    @property
    def damaged(self) -> set[int]:
        """Those of the images."""
        return self.images.damaged

    def batches(self, order: Order, shard: ProcessShard, steps: range) -> Iterator[Batch]:
        """Yields this process's shard of the batch of each step."""
        with contextlib.closing(self.images.batches(order, shard, steps)) as batches:
            for step, batch in zip(steps, batches, strict=True):
                examples = np.maximum(order(shard.positions(step)), 0)
                yield batch | {"targets": self.targets[examples].astype(np.float32)}

    def identity(self) -> Iterator[bytes]:
        """Yields what identifies the images."""
        return self.images.identity()


def _grain_batches(load_batch: "_LoadBatch", steps: range, workers: int | None) -> Iterator[Batch]:
    """Yields the batches of some steps; each of the parallel threads makes a whole batch."""
    cores = os.cpu_count() or 1
    if workers is None:
        workers = cores // _CORES_PER_WORKER if cores > _CORES_PER_WORKER else 0
    threads = max(1, min(_MAX_THREADS, 2 * cores // max(1, workers)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    data = grain.MapDataset.range(steps.start, steps.stop).map(load_batch).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads flags, which notebooks do not parse.
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    try:
        with contextlib.closing(iter(data)) as batches:
            for batch in batches:
                # Workers' batches are in shared memory. JAX may hold on to an array for long, so
                # a copy is made and the shared memory is freed.
                yield jax.tree.map(np.copy, batch) if workers else batch
    finally:
        batch = batches = None
        gc.collect()  # Grain's iterators hold their last batches in reference cycles.


@dataclasses.dataclass(frozen=True)
class _LoadBatch:
    """Makes this process's shard of a step's batch, one example after the other."""

    source: Source
    transform: Transform
    order: Order
    shard: ProcessShard
    skip: bool

    def __call__(self, step: int) -> Batch:
        positions = self.shard.positions(step)
        examples = self.order(positions)
        count, size = len(examples), self.transform.size
        batch = {
            "input": np.zeros((count, size, size, 3), np.uint8),
            "label": np.zeros(count, np.int32),
            "mask": np.zeros(count, bool),
        }
        for row, (position, example) in enumerate(zip(positions, examples, strict=True)):
            if example < 0:
                continue
            rng = np.random.default_rng([self.order.seed, position])
            image = _read_image(self.source, int(example), self.transform, rng, self.skip)
            if image is not None:
                batch["input"][row], batch["mask"][row] = image, True
                batch["label"][row] = self.source.labels[example]
        return batch


def _read_image(
    source: Source,
    index: int,
    transform: Transform,
    rng: np.random.Generator | None,
    skip: bool,
) -> np.ndarray | None:
    """Returns an image, read and transformed; None if it is damaged and `skip` is true."""
    try:
        return transform(source.read(index), source.names[index], rng)
    except InputError as error:
        if skip:
            return None
        raise InputError(f"{error} With --config.data.on_error=skip it is left out.") from error


def train_batches(images: Images, shard: ProcessShard, steps: range, seed: int) -> Iterator[Batch]:
    """Yields the shuffled batches of some steps."""
    return images.batches(Shuffled(len(images.labels), seed), shard, steps)


def eval_batches(images: Images, shard: ProcessShard) -> Iterator[Batch]:
    """Yields every example once, in order; the last batch is padded."""
    size = len(images.labels)
    return images.batches(InOrder(size), shard, range(-(-size // shard.batch_size)))


def on_devices(
    batches: Iterable[Batch], sharding: jax.sharding.Sharding, prefetch: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Turns each process's shard of the batches into global arrays, `prefetch` batches ahead."""
    put = functools.partial(jax.make_array_from_process_local_data, sharding)
    queue = collections.deque()
    for batch in batches:
        queue.append({name: put(array) for name, array in batch.items()})
        if len(queue) > prefetch:
            yield queue.popleft()
    yield from queue
