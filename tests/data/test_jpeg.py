import io

import cv2
import numpy as np
import pytest

from llc_jax.data import jpeg, transforms

PIL = pytest.importorskip("PIL.Image", reason="needs Pillow to write JPEGs of all kinds")

KINDS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "progressive, 4:4:4": {"progressive": True, "subsampling": 0},
    "restarts": {"restart_marker_rows": 1},
    "no conversion": {"keep_rgb": True},
    "optimised": {"optimize": True, "quality": 30},
}


def picture(height, width, mode="RGB"):
    """Noise that is smooth enough to tell coarse colours from fine ones."""
    rng = np.random.default_rng(height * width)
    pixels = cv2.resize(
        rng.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), np.uint8), (width, height)
    )
    return PIL.fromarray(pixels).convert(mode)


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90} | options)
    return file.getvalue()


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("shape", [(97, 61), (64, 48), (200, 33)])
def test_the_upper_rows_are_those_of_the_whole_image(options, shape, capfd):
    content = encoded(picture(*shape), **options)
    whole = transforms.decode(content, "x")
    header = jpeg.read_header(content)
    assert (header.height, header.width) == shape
    for rows in {1, 7, 8, 15, 16, 17, 33, shape[0] // 2, shape[0] - 1, shape[0]}:
        top = jpeg.decode_top(content, header, rows)
        assert len(top) <= max(rows + 2 * header.mcu_height, 16)
        np.testing.assert_array_equal(top[:rows], whole[:rows])
    assert capfd.readouterr().err == ""


def test_grey_images_become_rgb():
    content = encoded(picture(50, 40, "L"))
    top = jpeg.decode_top(content, jpeg.read_header(content), 9)
    np.testing.assert_array_equal(top[:9], transforms.decode(content, "x")[:9])


def test_other_files_have_no_header():
    image = picture(30, 20)
    whole = encoded(image)
    png = io.BytesIO()
    image.save(png, "PNG")
    other_files = (png.getvalue(), encoded(image.convert("CMYK")), b"", b"\xff\xd8\xff\xd9")
    cut_short = (whole[:-2], whole[:40], whole[: len(whole) // 2])
    for content in (*other_files, *cut_short):
        assert jpeg.read_header(content) is None


def test_damage_in_the_rows_that_are_wanted_is_seen():
    content = encoded(picture(200, 100))
    closed = content[: len(content) // 2] + content[-2:]
    header = jpeg.read_header(closed)
    assert jpeg.decode_top(closed, header, 20) is not None
    assert jpeg.decode_top(closed, header, 190) is None


def test_random_bytes_in_the_header_do_no_harm():
    whole = bytearray(encoded(picture(30, 20)))
    rng = np.random.default_rng(0)
    for _ in range(500):
        content = whole.copy()
        content[rng.integers(2, 620)] = rng.integers(256)
        header = jpeg.read_header(bytes(content))
        if header is not None and header.height * header.width < 1e6:
            rows = min(5, header.height)
            top = jpeg.decode_top(bytes(content), header, rows)
            assert top is None or (len(top) >= rows and top.shape[1:] == (header.width, 3))
