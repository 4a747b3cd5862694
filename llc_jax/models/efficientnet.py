"""EfficientNet-Lite, small backbones without squeeze and excitation.

References:
  Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019,
  in the Lite form of the authors' TensorFlow code: ReLU6, and a stem and a last convolution
  of the same width in all sizes. Stochastic depth, which they train with, is left out.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from llc_jax.models import layers

# Of each stage: blocks, kernel, stride of the first block, expansion, channels. Depth
# multipliers leave the first and the last stage as they are.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM = 32
_FEATURES = 1280
# Of the batch normalisation, as in the authors' code.
_MOMENTUM, _EPSILON = 0.99, 1e-3


class Block(nnx.Module):
    """An inverted residual: widened by 1x1, depthwise, and narrowed by 1x1."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        expansion: int,
        *,
        dtype,
        rngs: nnx.Rngs,
    ):
        norm, conv = _layers(dtype, rngs)
        inner = expansion * inputs
        self.expand = conv(inputs, inner, 1) if expansion > 1 else None
        self.expand_norm = norm(inner) if expansion > 1 else None
        # Fan in equals fan out here, too, but flax counts its fan out over all channels.
        init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
        self.depthwise = conv(
            inner, inner, kernel, stride, padding=layers.SAME, groups=inner, init=init
        )
        self.depthwise_norm = norm(inner)
        self.project = conv(inner, outputs, 1)
        self.project_norm = norm(outputs)
        self.has_shortcut = stride == 1 and inputs == outputs

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x
        if self.expand is not None:
            x = nnx.relu6(self.expand_norm(self.expand(x)))
        x = nnx.relu6(self.depthwise_norm(self.depthwise(x)))
        x = self.project_norm(self.project(x))
        return x + shortcut if self.has_shortcut else x


class EfficientNetLite(nnx.Module):
    """A stem, inverted residuals and a 1x1 convolution, then average pooling.

    Args:
      width: every layer but the first and the last has this times the channels of Lite0,
        rounded to a multiple of 8.
      depth: every stage but the first and the last has this times the blocks of Lite0,
        rounded up.
      dtype: of the arithmetic; parameters, statistics and features are float32.
    """

    def __init__(
        self, *, width: float = 1.0, depth: float = 1.0, dtype=jnp.float32, rngs: nnx.Rngs
    ):
        norm, conv = _layers(dtype, rngs)
        self.stem = conv(3, _STEM, 3, 2, padding=layers.SAME)
        self.stem_norm = norm(_STEM)
        blocks, channels = [], _STEM
        for count, kernel, stride, expansion, outputs in _STAGES:
            outputs = layers.round_channels(outputs * width)
            count = count if count == 1 else math.ceil(count * depth)
            for position in range(count):
                step = stride if position == 0 else 1
                form = (kernel, step, expansion)
                blocks.append(Block(channels, outputs, *form, dtype=dtype, rngs=rngs))
                channels = outputs
        self.blocks = nnx.List(blocks)
        self.final_conv = conv(channels, _FEATURES, 1)
        self.final_norm = norm(_FEATURES)
        self.num_features = _FEATURES

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps normalised images, float[B, H, W, 3], to features, float32[B, d]."""
        x = nnx.relu6(self.stem_norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        x = nnx.relu6(self.final_norm(self.final_conv(x)))
        return layers.mean_of_pixels(x)


def _layers(dtype, rngs: nnx.Rngs) -> tuple[functools.partial, functools.partial]:
    """Returns the constructors of a normalisation and of a convolution."""
    norm = functools.partial(
        layers.BatchNorm, momentum=_MOMENTUM, epsilon=_EPSILON, dtype=dtype, rngs=rngs
    )
    return norm, functools.partial(layers.conv, dtype=dtype, rngs=rngs)
