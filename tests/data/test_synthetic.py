import dataclasses
import pickle

import cv2
import numpy as np
import pytest

from llc_jax.data import synthetic
from llc_jax.data.pipeline import InOrder, ProcessShard, Shuffled, Streamed
from llc_jax.data.sources import ArraySource
from llc_jax.data.synthetic import KINDS, Altered
from llc_jax.data.transforms import Crop
from llc_jax.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
SMOOTH = np.stack([cv2.GaussianBlur(image, (0, 0), 2) for image in IMAGES])
CROP = Crop(32)


def pixels(images, order, **options):
    """The images as a stream gives them, by their labels."""
    names = [f"{index}.png" for index in range(len(images))]
    source = ArraySource(images, np.arange(len(images), dtype=np.int32), ("x",), names)
    shard = ProcessShard(3, np.arange(3))
    batches = Streamed(source, Altered(CROP, **options)).batches(order, shard, range(2))
    found = {}
    for batch in batches:
        found |= dict(zip(batch["label"].tolist(), batch["input"], strict=True))
    return np.stack([found[label] for label in range(len(images))])


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_altered_in_one_way_wherever_it_is_in_the_stream(kind):
    in_order = pixels(IMAGES, InOrder(6), kind=kind)
    assert in_order.shape == IMAGES.shape
    np.testing.assert_array_equal(in_order, pixels(IMAGES, Shuffled(6, seed=5), kind=kind))
    other = pixels(IMAGES, InOrder(6), kind=kind, seed=1)
    assert np.array_equal(in_order, other) == (kind == "blur")
    altered = Altered(CROP, kind)
    again = pickle.loads(pickle.dumps(altered))
    np.testing.assert_array_equal(again(IMAGES[2], "2.png"), in_order[2])
    assert repr(altered) != repr(Altered(CROP, kind, seed=1))


def test_what_the_kinds_keep_and_what_they_take_away():
    rng = np.random.default_rng(1)
    shuffled = synthetic.noise(SMOOTH[0], rng)
    assert not np.array_equal(shuffled, SMOOTH[0])
    colours = [sorted(map(tuple, image.reshape(-1, 3))) for image in (shuffled, SMOOTH[0])]
    assert colours[0] == colours[1]
    blurred = synthetic.blur(IMAGES[1], rng)
    assert blurred.std() < IMAGES[1].std() / 10
    np.testing.assert_allclose(blurred.mean(), IMAGES[1].mean(), atol=3)
    texture = synthetic.texture(SMOOTH[2], rng)
    np.testing.assert_array_equal(texture[:8, :8], texture[8:16, 24:])  # Repeated,
    np.testing.assert_array_equal(texture[:4], texture[7:3:-1])  # and mirrored.
    patches = np.lib.stride_tricks.sliding_window_view(SMOOTH[2], (4, 4), axis=(0, 1))
    patch = texture[:4, :4].transpose(2, 0, 1)
    assert any(np.array_equal(found, patch) for found in patches.reshape(-1, 3, 4, 4))


@pytest.mark.parametrize("side", [1, 7, 33])
@pytest.mark.parametrize("kind", KINDS)
def test_any_size(kind, side):
    altered = Altered(Crop(side), kind, quality=50)
    assert altered(np.zeros((40, 50, 3), np.uint8), "x").shape == (side, side, 3)


def test_jpeg_keeps_the_colours_in_their_order():
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0] = 200
    coded = synthetic.recode(image, 90)
    assert coded.shape == image.shape
    np.testing.assert_allclose(coded.mean(axis=(0, 1)), [200, 0, 0], atol=5)


def test_images_are_cropped_to_the_side_coded_and_resized():
    altered = Altered(Crop(48), side=16, quality=75)
    image = cv2.resize(SMOOTH[3], (64, 64))
    small = Crop(16)(image, "")
    expected = cv2.resize(synthetic.recode(small, 75), (48, 48), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(altered(image, "x"), expected)
    # A JPEG of a higher quality is hardly told from its original, once both are coded alike.
    before, after = SMOOTH[4], synthetic.recode(SMOOTH[4], 98)
    difference = np.abs(before.astype(int) - after).mean()
    alike = [Altered(CROP, quality=75)(pixels, "x").astype(int) for pixels in (before, after)]
    assert 0 < np.abs(alike[0] - alike[1]).mean() < 1.5 * difference + 1


def test_without_options_nothing_changes():
    np.testing.assert_array_equal(Altered(CROP)(IMAGES[0], "x"), IMAGES[0])


@pytest.mark.parametrize("options", [{"side": -1}, {"quality": 101}, {"quality": -1}])
def test_wrong_numbers_are_one_sentence(options):
    with pytest.raises(InputError, match="side is at least 0 pixels and the quality of JPEG from"):
        dataclasses.replace(Altered(CROP), **options)
