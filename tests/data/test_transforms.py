import io

import cv2
import numpy as np
import pytest

from llc_jax.data import transforms
from llc_jax.errors import InputError


def gradient(height, width):
    """A smooth image, which lossy formats keep within a few levels."""
    rows, columns = np.linspace(0, 255, height), np.linspace(0, 255, width)
    red = np.broadcast_to(rows[:, None], (height, width))
    green = np.broadcast_to(columns[None, :], (height, width))
    return np.stack([red, green, 255 - red], axis=-1).astype(np.uint8)


def encode(suffix, rgb_or_grey):
    image = rgb_or_grey[..., ::-1] if rgb_or_grey.ndim == 3 else rgb_or_grey
    return cv2.imencode(suffix, image)[1].tobytes()


def with_orientation(jpeg, orientation):
    """Inserts an EXIF segment with the one tag 0x112."""
    tiff = b"MM\0*\0\0\0\x08\0\x01" + b"\x01\x12\0\x03\0\0\0\x01"
    payload = b"Exif\0\0" + tiff + bytes([0, orientation, 0, 0]) + b"\0\0\0\0"
    segment = b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload
    return jpeg[:2] + segment + jpeg[2:]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".webp", ".tiff"])
def test_decodes_rgb(suffix):
    image = gradient(40, 60)
    decoded = transforms.decode(encode(suffix, image), "x")
    assert decoded.dtype == np.uint8
    tolerance = 0 if suffix in (".png", ".bmp", ".tiff") else 12
    assert np.abs(decoded.astype(int) - image).max() <= tolerance


def test_grey_16_bit_and_transparent_images_become_rgb():
    grey = gradient(20, 30)[..., 0]
    as_rgb = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(transforms.decode(encode(".png", grey), "x"), as_rgb)
    deep = encode(".png", grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(transforms.decode(deep, "x"), as_rgb)
    bgra = np.dstack([as_rgb, np.full_like(grey, 7)])
    clear = cv2.imencode(".png", bgra)[1].tobytes()
    np.testing.assert_array_equal(transforms.decode(clear, "x"), as_rgb)


def test_cmyk_jpeg_and_animations():
    image = pytest.importorskip("PIL.Image", reason="needs Pillow to write them")
    red, blue = (image.new("RGB", (30, 20), color) for color in ((200, 30, 60), (0, 0, 255)))
    file = io.BytesIO()
    red.convert("CMYK").save(file, "JPEG", quality=95)
    cmyk = transforms.decode(file.getvalue(), "x")
    assert np.abs(cmyk.astype(int) - [200, 30, 60]).max() <= 3
    for kind in ("GIF", "WEBP", "PNG"):
        file = io.BytesIO()
        red.save(file, kind, save_all=True, append_images=[blue])
        first = transforms.decode(file.getvalue(), "x")
        assert first.shape == (20, 30, 3)
        assert np.abs(first.astype(int) - [200, 30, 60]).max() <= 6


def test_exif_orientation_is_followed_unless_told_otherwise():
    image = gradient(20, 30)
    turned = with_orientation(encode(".jpg", image), 6)
    upright = transforms.decode(turned, "x").astype(int)
    assert upright.shape == (30, 20, 3)
    assert np.abs(upright - np.rot90(image, -1)).max() <= 20
    assert transforms.decode(turned, "x", exif_orientation=False).shape == (20, 30, 3)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".gif"])
def test_damaged_files_are_named(suffix):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    whole = encode(suffix, noise)
    for damaged in (whole[: len(whole) // 2], whole[:-20], whole[:10], b""):
        with pytest.raises(InputError, match=rf"cat/a.x \({len(damaged)} bytes\) is not an image"):
            transforms.decode(damaged, "cat/a.x")


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\0" * 5000, b"GIF89a"])
def test_other_content_is_named(content):
    with pytest.raises(InputError, match=r"cat/a\.jpg .* not an image"):
        transforms.decode(content, "cat/a.jpg")


@pytest.mark.parametrize("shape", [(256, 256), (500, 375), (30, 400), (10, 10), (225, 224)])
def test_center_crop(shape):
    image = gradient(*shape)
    cropped = transforms.center_crop(image, 224, 0.875)
    assert cropped.shape == (224, 224, 3)
    middle = image[shape[0] // 2, shape[1] // 2].astype(int)
    assert np.abs(cropped[112, 112].astype(int) - middle).max() <= 26


def test_center_crop_leaves_the_right_size_alone():
    image = gradient(32, 32)
    assert transforms.center_crop(image, 32, 0.875) is image


def test_center_crop_of_a_large_square_is_resize_and_crop():
    image = gradient(512, 512)
    resized = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(
        transforms.center_crop(image, 224, 0.875), resized[16:240, 16:240]
    )


@pytest.mark.parametrize("shape", [(500, 375), (30, 400), (1, 1), (8, 300)])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_random_crop_is_random_and_repeatable(shape, suffix):
    crop = transforms.RandomCrop(64)
    file = encode(suffix, gradient(*shape))
    crops = [crop(file, "x", np.random.default_rng(seed)) for seed in (0, 1, 0)]
    assert all(crop.shape == (64, 64, 3) for crop in crops)
    np.testing.assert_array_equal(crops[0], crops[2])
    assert (crops[0] != crops[1]).any() or shape == (1, 1)


def test_random_boxes_have_areas_over_the_whole_range_and_lie_inside():
    rng = np.random.default_rng(0)
    boxes = [transforms.random_box(256, 200, rng) for _ in range(1000)]
    areas = np.array([box.height * box.width for box in boxes]) / (256 * 200)
    assert 0.075 < areas.min() < 0.1
    assert 0.9 < areas.max() <= 1
    for top, left, height, width in boxes:
        assert 0 <= top <= 256 - height
        assert 0 <= left <= 200 - width


def test_a_box_is_cut_from_the_upright_image():
    image = gradient(40, 60)
    file = with_orientation(encode(".jpg", image), 6)
    for upright in (True, False):
        whole = transforms.decode(file, "x", exif_orientation=upright)
        box = transforms.decode_box(
            file, "x", lambda height, width: transforms.Box(5, 7, 11, 9), exif_orientation=upright
        )
        np.testing.assert_array_equal(box, whole[5:16, 7:16])


def test_random_flip_mirrors_half():
    image = gradient(4, 6)
    rng = np.random.default_rng(0)
    flips = [bool((transforms.random_flip(image, rng) != image).any()) for _ in range(200)]
    assert 70 < sum(flips) < 130
