"""Augmentation of whole batches on the device, for small images."""

import jax
import jax.numpy as jnp


def pad_crop_flip(key: jax.Array, images: jax.Array, *, pad: int, flip: bool) -> jax.Array:
    """Pads each image with `pad` black pixels, crops it at random, and mirrors half of them.

    The crop and flip of an image depend on the key and its row in the batch alone, not on how
    the batch is sharded over devices.

    Args:
      key: a random key for the batch.
      images: uint8[B, H, W, 3].
      pad: pixels, at least 0.
      flip: whether to mirror left to right, with probability 1/2.

    Returns:
      uint8[B, H, W, 3].
    """
    batch, height, width, channels = images.shape
    shift_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(shift_key, (batch, 2), 0, 2 * pad + 1)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(image, corner):
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    images = jax.vmap(crop)(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images
