"""A small convolutional network for 8-pixel images, such as scikit-learn's digits."""

import jax
import jax.numpy as jnp
from flax import nnx


class CNN(nnx.Module):
    """Three 3x3 convolutions, the last two with stride 2, then average pooling.

    Args:
      width: channels of the first convolution; each later one doubles them.
      dtype: of the arithmetic; parameters, statistics and features are float32.
    """

    def __init__(self, *, width: int = 32, dtype=jnp.float32, rngs: nnx.Rngs):
        channels = [3, width, 2 * width, 4 * width]
        convs, norms = [], []
        for position in range(3):
            inputs, outputs = channels[position : position + 2]
            stride = 1 if position == 0 else 2
            convs.append(
                nnx.Conv(
                    inputs,
                    outputs,
                    (3, 3),
                    stride,
                    padding=1,
                    use_bias=False,
                    dtype=dtype,
                    rngs=rngs,
                )
            )
            norms.append(nnx.BatchNorm(outputs, momentum=0.9, dtype=dtype, rngs=rngs))
        self.convs, self.norms = nnx.List(convs), nnx.List(norms)
        self.num_features = channels[-1]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps normalised images, float[B, H, W, 3], to features, float32[B, d]."""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
