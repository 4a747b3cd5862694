"""Our input pipeline beside tf.data, PIL and torchvision: from JPEG files to batches.

  pip install tensorflow-cpu pillow torch
  python benchmarks/input_pipeline.py IMAGES [--resized COPY]

All get the same files, in memory, and crop the same boxes to 224 pixels: ours as `Streamed`
does; tf.data with decode_and_crop_jpeg, which does not average where it shrinks; PIL in one
thread a core, up to bytes, and up to torchvision's normalised floats; and those as its users
have them, in one process of a DataLoader a core (floats only where PyTorch is installed). Rounds
alternate; medians. With a resized copy, ours reads that too. Then the share of its time that
an accelerator of a given rate would wait for each. The last line is JSON.
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

Make = Callable[[range], Iterator[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class InRam(Source):
    """Encoded images in memory."""

    contents: list[bytes]
    labels: np.ndarray
    class_names: tuple[str, ...]
    names: list[str]

    def read(self, index: int) -> bytes:
        """Returns an encoded image file."""
        return self.contents[index]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What is drawn of the example at a position of the stream, as `RandomCrop` draws it."""

    example: int
    box: transforms.Box
    flip: bool


def draw(source: InRam, sizes: list[tuple[int, int]], steps: range) -> list[Drawn]:
    """Returns the examples of some steps."""
    positions = np.arange(steps.start * BATCH, steps.stop * BATCH)
    drawn = []
    for position, example in zip(
        positions, pipeline.Shuffled(len(source), SEED)(positions), strict=True
    ):
        rng = np.random.default_rng([SEED, position])
        box = transforms.random_box(*sizes[example], rng)
        drawn.append(Drawn(int(example), box, rng.random() < 0.5))
    return drawn


def ours(source: InRam, workers: int) -> Make:
    """`Streamed`, in threads or in worker processes."""
    images = pipeline.Streamed(source, transforms.RandomCrop(SIZE), workers)
    part = pipeline.ProcessShard(BATCH, np.arange(BATCH))

    def batches(steps: range) -> Iterator[np.ndarray]:
        for batch in pipeline.train_batches(images, part, steps, SEED):
            yield batch["image"]

    return batches


def tf_data(source: InRam, sizes: list[tuple[int, int]]) -> Make:
    """tf.data with as much parallelism as it chooses."""
    import tensorflow as tf

    contents = tf.constant(source.contents)

    def load(example, box, flip):
        image = tf.image.decode_and_crop_jpeg(contents[example], box, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), antialias=False)
        image = tf.cond(flip, lambda: tf.image.flip_left_right(image), lambda: image)
        return tf.cast(image, tf.uint8)

    def batches(steps: range) -> Iterator[np.ndarray]:
        drawn = draw(source, sizes, steps)
        columns = (
            np.array([one.example for one in drawn]),
            np.array([one.box for one in drawn], np.int32),
            np.array([one.flip for one in drawn]),
        )
        data = tf.data.Dataset.from_tensor_slices(columns)
        data = data.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        yield from data.batch(BATCH).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    return batches


def crop_with_pil(content: bytes, one: Drawn) -> np.ndarray:
    """What torchvision's RandomResizedCrop and RandomHorizontalFlip compute, in PIL."""
    top, left, height, width = one.box
    image = PIL.Image.open(io.BytesIO(content)).convert("RGB")
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((SIZE, SIZE), PIL.Image.Resampling.BILINEAR)
    if one.flip:
        image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


def normalise(content: bytes, one: Drawn):
    """The same and torchvision's ToTensor and Normalize: float32[3, 224, 224]."""
    import torch

    image = torch.from_numpy(crop_with_pil(content, one))
    image = image.permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return image.sub_(mean).div_(std)


def pil(source: InRam, sizes: list[tuple[int, int]], load: Callable = crop_with_pil) -> Make:
    """PIL in one thread a core."""

    def batches(steps: range) -> Iterator[np.ndarray]:
        drawn = draw(source, sizes, steps)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            images = pool.map(lambda one: load(source.contents[one.example], one), drawn)
            for _ in steps:
                yield np.stack(list(itertools.islice(images, BATCH)))

    return batches


@dataclasses.dataclass(frozen=True)
class Normalised:
    """What a DataLoader reads."""

    contents: list[bytes]
    drawn: list[Drawn]

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, index: int):
        one = self.drawn[index]
        return normalise(self.contents[one.example], one)


def pytorch(source: InRam, sizes: list[tuple[int, int]]) -> Make:
    """PIL in a DataLoader with a process for each core."""
    from torch.utils.data import DataLoader

    def batches(steps: range) -> Iterator[np.ndarray]:
        images = Normalised(source.contents, draw(source, sizes, steps))
        for batch in DataLoader(images, BATCH, num_workers=os.cpu_count()):
            yield batch.numpy()

    return batches


def rate_of(make: Make, steps: range) -> float:
    """Images a second, from the first batch to the last."""
    times = [time.perf_counter() for _ in make(steps)]
    return (len(times) - 1) * BATCH / (times[-1] - times[0])


def waiting_of(make: Make, steps: range, rate: float) -> float:
    """The share of its time that an accelerator waits which could take `rate` images a second."""
    waited, before = 0.0, None
    for _ in make(steps):
        if before is not None:
            waited += time.perf_counter() - before
        time.sleep(BATCH / rate)
        before = time.perf_counter()
    return waited / (waited + (len(steps) - 1) * BATCH / rate)


def open_source(path: str) -> InRam:
    """Reads the images of a folder or archive."""
    opened = splits.open_splits(path, path, holdout=0.5, seed=0).train
    contents = [opened.read(index) for index in range(len(opened))]
    return InRam(contents, opened.labels, opened.class_names, list(opened.names))


def main() -> None:
    """Measures and prints a line each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", help="a folder or archive of JPEGs, one directory a class")
    parser.add_argument("--resized", help="a copy of them with smaller images")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--rates", type=float, nargs="+", default=[500, 1000, 2000, 4000])
    options = parser.parse_args()
    source = open_source(options.images)
    sizes = [PIL.Image.open(io.BytesIO(content)).size[::-1] for content in source.contents]
    makers = {"ours": ours(source, options.workers)}
    if options.resized:
        makers["ours, resized"] = ours(open_source(options.resized), options.workers)
    makers["tf.data"] = tf_data(source, sizes)
    makers["PIL"] = pil(source, sizes)
    if importlib.util.find_spec("torch"):
        makers["PIL, floats"] = pil(source, sizes, normalise)
        makers["PyTorch"] = pytorch(source, sizes)
    rates = {name: [] for name in makers}
    for make in makers.values():
        rate_of(make, range(4))
    gc.collect()
    gc.freeze()  # As in training: the garbage collector passes over what lives already.
    for _ in range(ROUNDS):
        for name, make in makers.items():
            rates[name].append(rate_of(make, range(options.steps)))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, rate in medians.items():
        ratios = (f"{medians[mine] / rate:5.2f}" for mine in medians if mine.startswith("ours"))
        print(f"{name:<14} {rate:>7,.0f} images/s   ours is {' and '.join(ratios)} x", flush=True)
    waiting = {
        name: {rate: waiting_of(make, range(24), rate) for rate in options.rates}
        for name, make in makers.items()
    }
    for name, shares in waiting.items():
        print(
            f"{name:<14}", *(f"  waits {share:.0%} at {at:,.0f}/s" for at, share in shares.items())
        )
    print(json.dumps({"images_per_second": medians, "waiting": waiting}))


if __name__ == "__main__":
    main()
