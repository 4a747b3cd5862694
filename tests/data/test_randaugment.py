import cv2
import numpy as np
import pytest
import scipy.ndimage

from llc_jax.data import randaugment, transforms
from llc_jax.data.randaugment import OPERATIONS
from llc_jax.errors import InputError

NO_STRENGTH = {"auto_contrast", "equalize"}
SHIFTS = {"translate_x", "translate_y"}
STRENGTHS = (-0.9, -0.4, 0.3, 0.9)


def photo(height=90, width=120):
    """Smooth patches of colour with some grain; the levels of a channel do not fill 0 to 255."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 200, (6, 8, 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 5, smooth.shape), 10, 230).astype(np.uint8)


def assert_close(found, expected, tolerance):
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= tolerance


def test_there_are_the_14_operations_of_the_paper():
    assert len(OPERATIONS) == 14


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - NO_STRENGTH))
def test_no_strength_is_no_change(name):
    image = photo()
    np.testing.assert_array_equal(OPERATIONS[name].apply(image, 0), image)


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - NO_STRENGTH - SHIFTS - {"identity"}))
def test_what_is_stronger_changes_more(name):
    operation, image = OPERATIONS[name], photo()
    changes = [
        np.abs(operation.apply(image, operation.max_strength * share).astype(int) - image).mean()
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert (np.diff(changes) > 0).all()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("level", [0, 77, 255])
def test_takes_images_of_one_colour_and_of_one_pixel_and_leaves_them_alone(name, level):
    operation = OPERATIONS[name]
    for shape in ((12, 7, 3), (1, 1, 3)):
        image = np.full(shape, level, np.uint8)
        changed = operation.apply(image, operation.max_strength)
        assert (changed.shape, changed.dtype) == (shape, np.uint8)
        assert (image == level).all()
        if name in NO_STRENGTH:
            np.testing.assert_array_equal(changed, image)


def test_pillow_stretches_and_equalizes_alike():
    pillow, ops = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageOps")
    image = photo()
    same = pillow.fromarray(image)
    assert_close(randaugment.auto_contrast(image, 0), ops.autocontrast(same), 1)
    # Pillow rounds the pixels a level to a whole number.
    assert_close(randaugment.equalize(image, 0), ops.equalize(same), 3)
    image[:30] = 240
    assert_close(randaugment.equalize(image, 0), ops.equalize(pillow.fromarray(image)), 3)


def test_pillow_solarizes_and_posterizes_alike():
    pillow, ops = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageOps")
    image = photo()
    same = pillow.fromarray(image)
    for strength in (0, 64, 128, 256):
        expected = ops.solarize(same, 256 - strength)
        assert_close(randaugment.solarize(image, strength), expected, 0)
    for strength in (0, 0.4, 1, 2.2, 4):
        expected = ops.posterize(same, 8 - round(strength))
        assert_close(randaugment.posterize(image, strength), expected, 0)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness"])
def test_pillow_enhances_alike(name, strength):
    pillow, enhance = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageEnhance")
    image = photo()
    expected = getattr(enhance, name.title())(pillow.fromarray(image)).enhance(1 + strength)
    assert_close(OPERATIONS[name].apply(image, strength), expected, 2)


def test_turns_by_90_degrees_to_the_left():
    image = photo(64, 64)
    np.testing.assert_array_equal(randaugment.rotate(image, 90), np.rot90(image))
    np.testing.assert_array_equal(randaugment.rotate(image, -90), np.rot90(image, -1))


@pytest.mark.parametrize("degrees", [-30, -7, 12.5, 30])
def test_scipy_turns_alike(degrees):
    image = photo()
    expected = scipy.ndimage.rotate(
        image, degrees, reshape=False, order=1, mode="grid-constant", cval=128
    )
    assert_close(randaugment.rotate(image, degrees), expected, 1)


@pytest.mark.parametrize("strength", [-0.3, 0.11, 0.3])
def test_scipy_shears_alike(strength):
    image = photo()
    for axis, shear in ((1, randaugment.shear_x), (0, randaugment.shear_y)):
        # From where in the image each pixel comes: rows, columns, channels.
        back = np.eye(3)
        back[axis, 1 - axis] = -strength
        expected = scipy.ndimage.affine_transform(
            image, back, order=1, mode="grid-constant", cval=128
        )
        assert_close(shear(image, strength), expected, 1)


def test_shifts_by_whole_pixels_and_grey_comes_in():
    image = photo(40, 60)
    right, up = randaugment.translate_x(image, 0.1), randaugment.translate_y(image, -0.26)
    np.testing.assert_array_equal(right[:, 6:], image[:, :-6])
    assert (right[:, :6] == 128).all()
    np.testing.assert_array_equal(up[:-10], image[10:])
    assert (up[-10:] == 128).all()


def test_draws_every_operation_equally_often_and_with_both_signs(monkeypatch):
    drawn = []
    for name, operation in OPERATIONS.items():

        def record(image, strength, name=name):
            drawn.append((name, strength))
            return image

        monkeypatch.setitem(OPERATIONS, name, operation._replace(apply=record))
    rng = np.random.default_rng(0)
    for _ in range(2000):
        randaugment.randaugment(photo(4, 4), rng, layers=3, magnitude=5)
    assert len(drawn) == 6000
    for name, operation in OPERATIONS.items():
        strengths = [strength for drawn_name, strength in drawn if drawn_name == name]
        assert 350 < len(strengths) < 510
        half = operation.max_strength / 2
        assert set(strengths) == ({-half, half} if operation.random_sign else {half})


def test_comes_after_the_crop_which_stays_the_same(monkeypatch):
    image = photo(300, 400)
    crop, augmenting = transforms.RandomCrop(64), transforms.RandomCrop(64, randaugment=(2, 9))
    monkeypatch.setattr(randaugment, "randaugment", lambda pixels, rng, **options: pixels)
    for seed in range(5):
        pixels, same = (
            transform(image, "x", np.random.default_rng(seed)) for transform in (crop, augmenting)
        )
        np.testing.assert_array_equal(pixels, same)


def test_is_random_and_repeatable():
    crop = transforms.RandomCrop(64, scale=(1, 1), flip=False, randaugment=(2, 9))
    image = photo(64, 64)
    crops = [crop(image, "x", np.random.default_rng(seed)) for seed in (*range(20), 0)]
    np.testing.assert_array_equal(crops[0], crops[-1])
    assert len({crop.tobytes() for crop in crops}) > 10


@pytest.mark.parametrize("options", [(), (2,), (0, 9), (2, 11), (2, -1), (1.5, 9), ("2", 9), 2])
def test_wrong_options_are_named(options):
    with pytest.raises(InputError, match=r"randaugment is the number of layers, .*, not [^ ]"):
        transforms.RandomCrop(64, randaugment=options)
