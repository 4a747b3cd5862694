import cv2
import numpy as np
import pytest

from llc_jax.data.dataset import open_dataset
from tests import tiny


def write(folder, count):
    """Two classes of images of one colour each."""
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((8, 8, 3), 20 * number, np.uint8))


def open_data(source, **changes):
    options = tiny.get_config().data.to_dict()
    return open_dataset(**options | {"source": str(source), "image_size": 8, "seed": 0} | changes)


@pytest.mark.parametrize("in_memory", [True, False])
def test_self_indices_find_the_queries_in_the_database(tmp_path, in_memory):
    write(tmp_path / "all", 8)
    augment = {} if not in_memory else {"pad": 0, "flip": False}
    options = {"in_memory": in_memory, "augment": augment, "holdout": 0.5}
    disjoint = open_data(tmp_path / "all", **options)
    np.testing.assert_array_equal(disjoint.self_indices, [-1] * 4)
    same = open_data(tmp_path / "all", eval_source=str(tmp_path / "all"), **options)
    np.testing.assert_array_equal(same.self_indices, np.arange(8))


def test_self_indices_skip_damaged_images(tmp_path):
    write(tmp_path / "all", 8)
    (tmp_path / "all" / "a" / "2.png").write_bytes(b"damaged")
    data = open_data(tmp_path / "all", eval_source=str(tmp_path / "all"), on_error="skip")
    np.testing.assert_array_equal(data.self_indices, np.arange(7))
    np.testing.assert_array_equal(data.evaluation.labels, [0, 0, 0, 1, 1, 1, 1])
