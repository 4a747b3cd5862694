import functools

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from llc_jax.data.augment import pad_crop_flip


def images(batch=64):
    return np.random.default_rng(0).integers(1, 256, (batch, 8, 8, 3), np.uint8)


def test_every_image_is_one_of_its_shifts():
    batch = images()
    shifted = np.asarray(pad_crop_flip(jax.random.key(0), batch, pad=2, flip=True))
    assert shifted.dtype == np.uint8
    shifts = set()
    for image, result in zip(batch, shifted, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        matches = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if (padded[top : top + 8, left : left + 8][:, :: -1 if mirrored else 1] == result).all()
        ]
        assert len(matches) == 1
        shifts.add(matches[0])
    assert len(shifts) > 30


def test_nothing_to_do_changes_nothing():
    batch = images()
    np.testing.assert_array_equal(pad_crop_flip(jax.random.key(0), batch, pad=0, flip=False), batch)


def test_does_not_depend_on_the_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    augment = functools.partial(pad_crop_flip, pad=2, flip=True)
    over_devices = NamedSharding(mesh, PartitionSpec("data"))
    key, batch = jax.random.key(3), images()
    spread = jax.jit(augment)(key, jax.device_put(batch, over_devices))
    np.testing.assert_array_equal(spread, jax.jit(augment)(key, batch))
