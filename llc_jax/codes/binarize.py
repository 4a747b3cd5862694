"""The binarisation B(a): +1 if a >= 0, else -1."""

import jax
import jax.numpy as jnp


def sign(x: jax.Array) -> jax.Array:
    """Returns B(x) in the dtype of `x`: +1 where x >= 0 (zero included), else -1."""
    return jnp.where(x >= 0, 1, -1).astype(x.dtype)


@jax.custom_vjp
def sign_ste(x: jax.Array) -> jax.Array:
    """Binarises with the straight-through gradient.

    Args:
      x: float[...], any shape.

    Returns:
      float[...] of +1 and -1, in the dtype of `x`; B(0) = +1. The gradient with
      respect to `x` is the incoming gradient, unchanged.

    References:
      Kusupati et al., LLC, NeurIPS 2021, algorithm 4.

    Example:
      >>> llc_jax.sign_ste(np.array([-0.5, 0.0, 2.0], np.float32))
      Array([-1.,  1.,  1.], dtype=float32)
      >>> jax.grad(lambda x: 3 * llc_jax.sign_ste(x))(np.float32(-0.5))
      Array(3., dtype=float32)
    """
    return sign(x)


def _forward(x):
    return sign(x), None


def _backward(_, gradient):
    return (gradient,)


sign_ste.defvjp(_forward, _backward)
