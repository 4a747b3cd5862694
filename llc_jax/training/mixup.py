"""Mixup: each example of a batch blended with another, images and losses alike.

The loss of a blend of two labels is the blend of the losses of either, and so are the other
figures reported: for a loss that is linear in the target that is the same. An objective that
compares the images of a batch has no mixup. The partner of an example is the one before it
in the batch, which is shuffled; one share serves the whole batch, as in the paper's code. It
depends on the key alone, not on how the batch lies on devices.

References:
  Zhang et al., mixup: beyond empirical risk minimization, 2018.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llc_jax.training.objectives import Figures


def draw_shares(key: jax.Array, mask: jax.Array, alpha: float) -> jax.Array:
    """Draws how much of itself each example keeps; the rest is its partner's.

    Args:
      key: of the batch.
      mask: bool[B]; an example stays whole where it or its partner is False.
      alpha: the share is of Beta(alpha, alpha): near 0, it is close to 0 or 1.

    Returns:
      float32[B].
    """
    share = jax.random.beta(key, alpha, alpha)
    return jnp.where(mask & _partners(mask), share, 1.0)


def mix_images(images: jax.Array, shares: jax.Array) -> jax.Array:
    """Blends uint8[B, H, W, 3] with the partners' by float32[B], rounded to whole levels."""
    own, others = (each.astype(jnp.float32) for each in (images, _partners(images)))
    shares = shares[:, None, None, None]
    return jnp.round(shares * own + (1 - shares) * others).astype(images.dtype)


def mix_figures(objective: Callable[..., Figures], shares: jax.Array) -> Callable[..., Figures]:
    """Returns an objective whose figures are the blend of those of both labels.

    Args:
      objective: (output, labels, class_codes) -> float32[B] figures by name.
      shares: float32[B].
    """

    def mixed(output, labels, class_codes):
        figures = objective(output, labels, class_codes)
        others = objective(output, _partners(labels), class_codes)
        return {name: shares * own + (1 - shares) * others[name] for name, own in figures.items()}

    return mixed


def _partners(rows: jax.Array) -> jax.Array:
    """Puts each row's partner in its place."""
    return jnp.roll(rows, 1, axis=0)
