"""A small convolutional network for 8-pixel images, such as scikit-learn's digits."""

import jax
import jax.numpy as jnp
from flax import nnx

from llc_jax.models import layers


class CNN(nnx.Module):
    """Three 3x3 convolutions, the last two with stride 2, then average pooling.

    Args:
      width: channels of the first convolution; each later one has twice as many.
      dtype: of the arithmetic; parameters, statistics and features are float32.
    """

    def __init__(self, *, width: int = 32, dtype=jnp.float32, rngs: nnx.Rngs):
        channels = [3, width, 2 * width, 4 * width]
        self.blocks = nnx.List(
            nnx.Sequential(
                layers.conv(
                    inputs,
                    outputs,
                    3,
                    stride,
                    init=nnx.initializers.lecun_normal(),
                    dtype=dtype,
                    rngs=rngs,
                ),
                layers.BatchNorm(outputs, dtype=dtype, rngs=rngs),
            )
            for inputs, outputs, stride in zip(channels, channels[1:], (1, 2, 2), strict=False)
        )
        self.num_features = channels[-1]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps normalised images, float[B, H, W, 3], to features, float32[B, d]."""
        x = images
        for block in self.blocks:
            x = nnx.relu(block(x))
        return layers.mean_of_pixels(x)
