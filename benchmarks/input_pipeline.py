"""Compares our input pipeline with tf.data, PIL and torchvision: from JPEG files to batches.

  pip install tensorflow-cpu pillow torch
  python benchmarks/input_pipeline.py IMAGES [--resized COPY]

All pipelines read the same files from memory, and crop the same boxes to 224 pixels:
  ours: `Streamed`; with --resized, also from the resized copy.
  tf.data: decode_and_crop_jpeg; it does not average where it shrinks.
  PIL: one thread per core; to bytes, and (with PyTorch) to torchvision's normalised floats.
  PyTorch: the same floats from a DataLoader with one process per core, if PyTorch is installed.
Rounds of the pipelines alternate, and medians are printed; then, for accelerators of given rates,
the share of the time that each would wait for images. The last line is JSON.
"""

import argparse
import concurrent.futures
import dataclasses
import gc
import importlib.util
import io
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image

from llc_jax.data import pipeline, splits, transforms
from llc_jax.data.sources import Source

SIZE, BATCH, SEED = 224, 64, 0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROUNDS = 5

Batches = Callable[[range], Iterator[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class InMemorySource(Source):
    """Encoded images in memory."""

    contents: list[bytes]
    labels: np.ndarray
    class_names: tuple[str, ...]
    names: list[str]

    def read(self, index: int) -> bytes:
        """Returns an encoded image file."""
        return self.contents[index]


@dataclasses.dataclass(frozen=True)
class Sample:
    """An example and its random crop and flip, drawn as `RandomCrop` draws them."""

    example: int
    box: transforms.Box
    flip: bool


def draw_samples(
    source: InMemorySource, sizes: list[tuple[int, int]], steps: range
) -> list[Sample]:
    """Returns the samples of some steps, in the order of `pipeline.train_batches`."""
    positions = np.arange(steps.start * BATCH, steps.stop * BATCH)
    samples = []
    for position, example in zip(
        positions, pipeline.Shuffled(len(source), SEED)(positions), strict=True
    ):
        rng = np.random.default_rng([SEED, position])
        box = transforms.random_box(*sizes[example], rng)
        samples.append(Sample(int(example), box, rng.random() < 0.5))
    return samples


def ours(source: InMemorySource, workers: int) -> Batches:
    """`Streamed`, in threads or in worker processes."""
    images = pipeline.Streamed(source, transforms.RandomCrop(SIZE), workers)
    shard = pipeline.ProcessShard(BATCH, np.arange(BATCH))

    def batches(steps: range) -> Iterator[np.ndarray]:
        for batch in pipeline.train_batches(images, shard, steps, SEED):
            yield batch["input"]

    return batches


def tf_data(source: InMemorySource, sizes: list[tuple[int, int]]) -> Batches:
    """tf.data with as much parallelism as it chooses."""
    import tensorflow as tf

    contents = tf.constant(source.contents)

    def load(example, box, flip):
        image = tf.image.decode_and_crop_jpeg(contents[example], box, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), antialias=False)
        image = tf.cond(flip, lambda: tf.image.flip_left_right(image), lambda: image)
        return tf.cast(image, tf.uint8)

    def batches(steps: range) -> Iterator[np.ndarray]:
        samples = draw_samples(source, sizes, steps)
        columns = (
            np.array([sample.example for sample in samples]),
            np.array([sample.box for sample in samples], np.int32),
            np.array([sample.flip for sample in samples]),
        )
        data = tf.data.Dataset.from_tensor_slices(columns)
        data = data.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        yield from data.batch(BATCH).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    return batches


def crop_with_pil(content: bytes, sample: Sample) -> np.ndarray:
    """What torchvision's RandomResizedCrop and RandomHorizontalFlip compute, in PIL."""
    top, left, height, width = sample.box
    image = PIL.Image.open(io.BytesIO(content)).convert("RGB")
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((SIZE, SIZE), PIL.Image.Resampling.BILINEAR)
    if sample.flip:
        image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


def normalise(content: bytes, sample: Sample):
    """`crop_with_pil`, then torchvision's ToTensor and Normalize: float32[3, 224, 224]."""
    import torch

    image = torch.from_numpy(crop_with_pil(content, sample))
    image = image.permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return image.sub_(mean).div_(std)


def pil(
    source: InMemorySource, sizes: list[tuple[int, int]], load: Callable = crop_with_pil
) -> Batches:
    """PIL in one thread per core."""

    def batches(steps: range) -> Iterator[np.ndarray]:
        samples = draw_samples(source, sizes, steps)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            images = pool.map(lambda sample: load(source.contents[sample.example], sample), samples)
            for _ in steps:
                yield np.stack(list(itertools.islice(images, BATCH)))

    return batches


@dataclasses.dataclass(frozen=True)
class TorchDataset:
    """A map-style dataset of normalised images for a DataLoader."""

    contents: list[bytes]
    samples: list[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        sample = self.samples[index]
        return normalise(self.contents[sample.example], sample)


def pytorch(source: InMemorySource, sizes: list[tuple[int, int]]) -> Batches:
    """PIL in a DataLoader with a process for each core."""
    from torch.utils.data import DataLoader

    def batches(steps: range) -> Iterator[np.ndarray]:
        dataset = TorchDataset(source.contents, draw_samples(source, sizes, steps))
        for batch in DataLoader(dataset, BATCH, num_workers=os.cpu_count()):
            yield batch.numpy()

    return batches


def images_per_second(batches: Batches, steps: range) -> float:
    """The rate from the first batch to the last."""
    times = [time.perf_counter() for _ in batches(steps)]
    return (len(times) - 1) * BATCH / (times[-1] - times[0])


def waiting_share(batches: Batches, steps: range, rate: float) -> float:
    """The share of the time that an accelerator of `rate` images per second waits for images."""
    waited, ready = 0.0, None
    for _ in batches(steps):
        if ready is not None:
            waited += time.perf_counter() - ready
        time.sleep(BATCH / rate)
        ready = time.perf_counter()
    return waited / (waited + (len(steps) - 1) * BATCH / rate)


def open_source(path: str) -> InMemorySource:
    """Reads the images of a folder or archive."""
    files = splits.open_splits(path, path, holdout=0.5, seed=0).train
    contents = [files.read(index) for index in range(len(files))]
    return InMemorySource(contents, files.labels, files.class_names, list(files.names))


def main() -> None:
    """Measures the pipelines and prints a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", help="a folder or archive of JPEGs, one directory a class")
    parser.add_argument("--resized", help="a copy of them with smaller images")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--rates", type=float, nargs="+", default=[500, 1000, 2000, 4000])
    options = parser.parse_args()
    source = open_source(options.images)
    sizes = [PIL.Image.open(io.BytesIO(content)).size[::-1] for content in source.contents]
    pipelines = {"ours": ours(source, options.workers)}
    if options.resized:
        pipelines["ours, resized"] = ours(open_source(options.resized), options.workers)
    pipelines["tf.data"] = tf_data(source, sizes)
    pipelines["PIL"] = pil(source, sizes)
    if importlib.util.find_spec("torch"):
        pipelines["PIL, floats"] = pil(source, sizes, normalise)
        pipelines["PyTorch"] = pytorch(source, sizes)
    rates = {name: [] for name in pipelines}
    for batches in pipelines.values():
        images_per_second(batches, range(4))
    gc.collect()
    gc.freeze()  # As in training: the garbage collector skips the objects that exist by now.
    for _ in range(ROUNDS):
        for name, batches in pipelines.items():
            rates[name].append(images_per_second(batches, range(options.steps)))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        ratios = (f"{medians[our] / rate:5.2f}" for our in medians if our.startswith("ours"))
        print(f"{name:<14} {rate:>7,.0f} images/s   ours is {' and '.join(ratios)} x", flush=True)
    waiting = {
        name: {rate: waiting_share(batches, range(24), rate) for rate in options.rates}
        for name, batches in pipelines.items()
    }
    for name, shares in waiting.items():
        print(
            f"{name:<14}",
            *(f"  waits {share:.0%} at {rate:,.0f}/s" for rate, share in shares.items()),
        )
    print(json.dumps({"images_per_second": medians, "waiting": waiting}))


if __name__ == "__main__":
    main()
