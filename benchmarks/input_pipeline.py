"""Our input pipeline beside tf.data and PIL: from JPEG files to batches of 224 pixels.

  pip install tensorflow-cpu pillow
  python benchmarks/input_pipeline.py FOLDER_OR_ZIP

All three get the same files, in memory, and crop the same boxes: ours as `Streamed` does,
tf.data with decode_and_crop_jpeg, and PIL in threads with the arithmetic of torchvision.
Rounds alternate; medians. Then the share of its time that an accelerator of a given rate
would wait for each. The last line is JSON.
"""

import argparse
import concurrent.futures
import dataclasses
import io
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image
from absl import app, flags

from llc_jax.data import pipeline, splits, transforms
from llc_jax.data.sources import Source

SIZE, BATCH, SEED = 224, 64, 0
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

    content: bytes
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
        drawn.append(Drawn(source.contents[example], box, rng.random() < 0.5))
    return drawn


def ours(source: InRam, workers: int) -> Make:
    """`Streamed`, in threads or in worker processes."""
    images = pipeline.Streamed(source, transforms.RandomCrop(SIZE), workers)
    part = pipeline.Slice(BATCH, np.arange(BATCH))

    def batches(steps: range) -> Iterator[np.ndarray]:
        for batch in pipeline.train_batches(images, part, steps, SEED):
            yield batch["image"]

    return batches


def tf_data(source: InRam, sizes: list[tuple[int, int]]) -> Make:
    """tf.data with as much parallelism as it chooses."""
    import tensorflow as tf

    def load(content, box, flip):
        image = tf.image.decode_and_crop_jpeg(content, box, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), antialias=False)
        image = tf.cond(flip, lambda: tf.image.flip_left_right(image), lambda: image)
        return tf.cast(image, tf.uint8)

    def batches(steps: range) -> Iterator[np.ndarray]:
        drawn = draw(source, sizes, steps)
        columns = (
            [one.content for one in drawn],
            np.array([one.box for one in drawn], np.int32),
            np.array([one.flip for one in drawn]),
        )
        data = tf.data.Dataset.from_tensor_slices(columns)
        data = data.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        yield from data.batch(BATCH).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    return batches


def pil(source: InRam, sizes: list[tuple[int, int]]) -> Make:
    """PIL in one thread a core, as torchvision's transforms compute."""

    def load(one: Drawn) -> np.ndarray:
        top, left, height, width = one.box
        image = PIL.Image.open(io.BytesIO(one.content)).convert("RGB")
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((SIZE, SIZE), PIL.Image.Resampling.BILINEAR)
        if one.flip:
            image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image)

    def batches(steps: range) -> Iterator[np.ndarray]:
        drawn = draw(source, sizes, steps)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            images = pool.map(load, drawn)
            for _ in steps:
                yield np.stack(list(itertools.islice(images, BATCH)))

    return batches


def rate_of(make: Make, steps: range) -> float:
    """Images a second, from the first batch on."""
    batches = make(steps)
    next(batches)
    start = time.perf_counter()
    count = sum(len(batch) for batch in batches)
    return count / (time.perf_counter() - start)


def waiting_of(make: Make, steps: range, rate: float) -> float:
    """The share of its time that an accelerator waits which could take `rate` images a second."""
    batches = make(steps)
    next(batches)
    start = time.perf_counter()
    busy = 0.0
    for batch in batches:
        time.sleep(len(batch) / rate)
        busy += len(batch) / rate
    return max(0.0, 1 - busy / (time.perf_counter() - start))


def parse_flags(arguments: list[str]) -> list[str]:
    """Lets absl, which Grain's worker processes need, have no flags; argparse has them all."""
    flags.FLAGS(arguments[:1])
    return arguments


def main(arguments: list[str]) -> None:
    """Measures and prints a line each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", help="a folder or archive of JPEGs, one directory a class")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rates", type=float, nargs="+", default=[500, 1000, 2000, 4000])
    options = parser.parse_args(arguments[1:])
    whole = splits.open_splits(options.images, options.images, holdout=0.5, seed=0).train
    contents = [whole.read(index) for index in range(len(whole))]
    source = InRam(contents, whole.labels, whole.class_names, list(whole.names))
    sizes = [PIL.Image.open(io.BytesIO(content)).size[::-1] for content in contents]
    makers = {
        "ours": ours(source, options.workers),
        "tf.data": tf_data(source, sizes),
        "PIL": pil(source, sizes),
    }
    steps = range(options.steps)
    rates = {name: [] for name in makers}
    for make in makers.values():
        rate_of(make, range(4))
    for _ in range(ROUNDS):
        for name, make in makers.items():
            rates[name].append(rate_of(make, steps))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    waiting = {
        name: {rate: waiting_of(make, steps, rate) for rate in options.rates}
        for name, make in makers.items()
    }
    for name, rate in medians.items():
        line = f"{name:<8} {rate:>8,.0f} images/s   ours is {medians['ours'] / rate:.2f} x"
        print(line, *(f"  waits {share:.0%} at {at:,.0f}/s" for at, share in waiting[name].items()))
    print(json.dumps({"images_per_second": medians, "waiting": waiting}))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
