"""MobileNetV1, a small and fast backbone.

References:
  Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
  Applications, 2017; as in timm, with ReLU6 and symmetric padding.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from llc_jax.models import layers

# Channels and stride of each block.
_BLOCKS = (
    (64, 1),
    *((128, 2), (128, 1)),
    *((256, 2), (256, 1)),
    *((512, 2), *((512, 1),) * 5),
    *((1024, 2), (1024, 1)),
)
_STEM = 32


class Block(nnx.Module):
    """A depthwise separable convolution: depthwise 3x3, then pointwise 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, dtype, rngs: nnx.Rngs):
        norm = functools.partial(layers.BatchNorm, dtype=dtype, rngs=rngs)
        conv = functools.partial(layers.conv, dtype=dtype, rngs=rngs)
        # Fan in equals fan out in a depthwise convolution, but flax counts its fan out over
        # all channels.
        depthwise_init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
        self.depthwise = conv(inputs, inputs, 3, stride, groups=inputs, init=depthwise_init)
        self.depthwise_norm = norm(inputs)
        self.pointwise = conv(inputs, outputs, 1)
        self.pointwise_norm = norm(outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu6(self.depthwise_norm(self.depthwise(x)))
        return nnx.relu6(self.pointwise_norm(self.pointwise(x)))


class MobileNetV1(nnx.Module):
    """A stem and thirteen separable convolutions, then average pooling.

    Args:
      width: width multiplier: every layer has this times the usual channels, rounded to
        a multiple of 8.
      dtype: of the arithmetic; parameters, statistics and features are float32.
    """

    def __init__(self, *, width: float = 1.0, dtype=jnp.float32, rngs: nnx.Rngs):
        channels = layers.round_channels(_STEM * width)
        self.stem = layers.conv(3, channels, 3, 2, dtype=dtype, rngs=rngs)
        self.stem_norm = layers.BatchNorm(channels, dtype=dtype, rngs=rngs)
        blocks = []
        for outputs, stride in _BLOCKS:
            outputs = layers.round_channels(outputs * width)
            blocks.append(Block(channels, outputs, stride, dtype=dtype, rngs=rngs))
            channels = outputs
        self.blocks = nnx.List(blocks)
        self.num_features = channels

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps normalised images, float[B, H, W, 3], to features, float32[B, d]."""
        x = nnx.relu6(self.stem_norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return layers.mean_of_pixels(x)
