import os
import threading

import cv2
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from llc_jax.data import pipeline, transforms
from llc_jax.data.prefetch import Prefetcher, ReadersFailed
from llc_jax.data.sources import ArraySource
from llc_jax.errors import InputError

N, B = 50, 16


class Encoded(ArraySource):
    """Pixels that are read as PNG files."""

    def read(self, index):
        return cv2.imencode(".png", self.images[index][..., ::-1])[1].tobytes()


def source(kind=ArraySource, size=12):
    images = np.random.default_rng(0).integers(0, 256, (N, size, size, 3), np.uint8)
    names = [f"image {index}" for index in range(N)]
    # The label tells the example.
    return kind(images, np.arange(N, dtype=np.int32), tuple(map(str, range(N))), names)


def in_memory():
    return pipeline.InMemory.load(source(), transforms.Crop(12, 1.0))


def streamed(transform=None, workers=0):
    transform = transform or transforms.RandomCrop(8)
    return pipeline.Streamed(source(Encoded), transform, workers=workers)


def full_shard(batch_size=B):
    return pipeline.ProcessShard(batch_size, np.arange(batch_size))


def assert_equal_batches(batches, expected):
    assert len(batches) == len(expected)
    for a, b in zip(batches, expected, strict=True):
        for name in ("input", "label", "mask"):
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("images", [in_memory(), streamed()], ids=["memory", "streamed"])
def test_every_example_once_in_each_epoch(images):
    batches = list(pipeline.train_batches(images, full_shard(10), range(15), seed=1))
    seen = np.concatenate([batch["label"] for batch in batches]).reshape(3, N)
    for epoch in seen:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(N))
    assert (seen[0] != seen[1]).any()
    assert all(batch["mask"].all() for batch in batches)


@pytest.mark.parametrize("images", [in_memory(), streamed()], ids=["memory", "streamed"])
def test_continues_at_any_step(images):
    unbroken = list(pipeline.train_batches(images, full_shard(), range(12), seed=1))
    for start in (1, 5, 11):
        rest = list(pipeline.train_batches(images, full_shard(), range(start, 12), seed=1))
        assert_equal_batches(rest, unbroken[start:])


@pytest.mark.parametrize("images", [in_memory(), streamed()], ids=["memory", "streamed"])
@pytest.mark.parametrize("processes", [2, 4])
def test_the_shards_of_all_processes_are_the_batch(images, processes):
    shards = [pipeline.ProcessShard(B, rows) for rows in np.split(np.arange(B), processes)]
    unbroken = list(pipeline.train_batches(images, full_shard(), range(7), seed=1))
    by_process = [pipeline.train_batches(images, shard, range(7), seed=1) for shard in shards]
    union = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*by_process, strict=True)
    ]
    assert_equal_batches(union, unbroken)


def test_both_kinds_have_the_same_examples_in_the_same_order():
    of_memory = pipeline.train_batches(in_memory(), full_shard(), range(7), seed=1)
    of_stream = pipeline.train_batches(streamed(), full_shard(), range(7), seed=1)
    for a, b in zip(of_memory, of_stream, strict=True):
        np.testing.assert_array_equal(a["label"], b["label"])


@pytest.mark.parametrize("images", [in_memory(), streamed(transforms.Crop(12))])
def test_evaluation_counts_every_example_once(images):
    batches = list(pipeline.eval_batches(images, full_shard()))
    assert [len(batch["label"]) for batch in batches] == [B] * 4
    labels = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(labels, np.arange(N))
    np.testing.assert_array_equal(batches[0]["input"], source().images[:B])
    assert not batches[-1]["input"][~batches[-1]["mask"]].any()


def test_the_seed_decides_order_and_crops():
    first = [
        next(pipeline.train_batches(streamed(), full_shard(), range(1), seed=s)) for s in (1, 1, 2)
    ]
    assert_equal_batches([first[0]], [first[1]])
    assert (first[0]["label"] != first[2]["label"]).any()


def test_the_prefetcher_keeps_order_and_ends_when_it_is_closed():
    generated = []

    def numbers():
        for number in range(100):
            generated.append(number)
            yield number

    prefetcher = Prefetcher(numbers())
    assert [prefetcher.next(5, "numbers") for _ in range(10)] == list(range(10))
    prefetcher.close()
    assert len(generated) < 20
    empty = Prefetcher(number for number in ())
    with pytest.raises(EOFError):
        empty.next(5, "numbers")
    empty.close()


def test_load_crops_images_of_another_size():
    loaded = pipeline.InMemory.load(source(Encoded), transforms.Crop(8, 1.0))
    assert loaded.images.shape == (N, 8, 8, 3)


def test_the_rows_of_a_shard_come_from_the_sharding():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    np.testing.assert_array_equal(pipeline.ProcessShard.of(sharding, 16).rows, np.arange(16))
    with pytest.raises(InputError, match="batch of 20 cannot be divided among 8 devices"):
        pipeline.ProcessShard.of(sharding, 20)


def test_on_devices_keeps_order_and_shards():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    host = list(pipeline.eval_batches(in_memory(), full_shard()))
    device = list(pipeline.on_devices(iter(host), sharding))
    assert_equal_batches(device, host)
    assert device[0]["input"].sharding == sharding


def test_a_damaged_image_is_named():
    images = pipeline.Streamed(source(Broken), transforms.Crop(8))
    with pytest.raises(InputError, match=r"image 7 .* With --config.data.on_error=skip it is"):
        list(pipeline.eval_batches(images, full_shard()))


def test_damaged_images_are_skipped_and_counted():
    images = pipeline.Streamed(source(Broken), transforms.RandomCrop(8), skip=True)
    batches = list(pipeline.train_batches(images, full_shard(10), range(10), seed=1))
    labels, mask = (np.concatenate([b[name] for b in batches]) for name in ("label", "mask"))
    for epoch in range(2):
        in_epoch = slice(epoch * N, (epoch + 1) * N)
        assert sorted(labels[in_epoch][mask[in_epoch]]) == sorted(set(range(N)) - Broken.DAMAGED)
    assert images.damaged == Broken.DAMAGED
    undamaged = pipeline.Streamed(source(Encoded), transforms.RandomCrop(8))
    expected = list(pipeline.train_batches(undamaged, full_shard(10), range(10), seed=1))
    for batch, other in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(batch["input"][batch["mask"]], other["input"][batch["mask"]])


class Fatal(Encoded):
    """An example ends the process that reads it."""

    def read(self, index):
        if index == 20:
            os._exit(3)
        return super().read(index)


def test_a_dead_worker_is_an_error():
    images = pipeline.Streamed(source(Fatal), transforms.Crop(8), workers=1)
    with pytest.raises(ReadersFailed, match=r"has died .*\(exit code 3\).* config.data.workers"):
        list(pipeline.eval_batches(images, full_shard()))


class Hanging(Encoded):
    """An example never comes, until the test is over."""

    test_is_over = threading.Event()

    def read(self, index):
        if index == 20:
            self.test_is_over.wait()
        return super().read(index)


def test_readers_that_hang_are_an_error():
    images = pipeline.Streamed(source(Hanging), transforms.Crop(8), workers=0, timeout=0.5)
    batches = pipeline.eval_batches(images, full_shard())
    next(batches)
    with pytest.raises(ReadersFailed, match="stalled: the images from image 16 on have not come"):
        next(batches)
    Hanging.test_is_over.set()


def test_damaged_images_are_left_out_of_memory():
    images = pipeline.InMemory.load(source(Broken), transforms.Crop(8), skip=True)
    assert images.damaged == Broken.DAMAGED
    assert images.labels.tolist() == sorted(set(range(N)) - Broken.DAMAGED)
    assert len(images.images) == len(images.labels)
    with pytest.raises(InputError, match="All 50 images are damaged"):
        pipeline.InMemory.load(source(AllBroken), transforms.Crop(8), skip=True)


class Broken(Encoded):
    """Some examples are cut short, empty, a page, or of impossible size."""

    DAMAGED = frozenset({7, 8, 20, 49})

    def read(self, index):
        content = super().read(index)
        bomb = content[:16] + b"\x7f\xff\xff\xff" * 2 + content[24:]
        damaged = {7: content[:20], 8: b"", 20: b"<html></html>", 49: bomb}
        return damaged.get(index, content)


class AllBroken(Encoded):
    """No example is an image."""

    def read(self, index):
        return b""
