"""Residual networks for 224-pixel images (v1.5) and for small images.

References:
  He et al., Deep Residual Learning for Image Recognition, CVPR 2016. The 3x3 convolution
  of a bottleneck has the stride, as in torchvision ("v1.5").
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from llc_jax.models import layers


class Block(nnx.Module):
    """A residual block: convolutions of the given kernel sizes, and a shortcut."""

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        kernels: Sequence[int],
        stride: int,
        *,
        conv,
        norm,
        zero_init_residual: bool,
    ):
        convs, norms = [], []
        channels = inputs
        for position, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
            # The first 3x3 convolution has the stride.
            conv_stride = stride if position == kernels.index(3) else 1
            is_last = position == len(widths) - 1
            scale_init = nnx.initializers.zeros if is_last and zero_init_residual else None
            convs.append(conv(channels, width, kernel, conv_stride))
            norms.append(norm(width, scale_init=scale_init))
            channels = width
        self.convs, self.norms = nnx.List(convs), nnx.List(norms)
        same_shape = stride == 1 and inputs == channels
        self.shortcut = nnx.data(
            None
            if same_shape
            else nnx.Sequential(conv(inputs, channels, 1, stride), norm(channels))
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            x = nnx.relu(norm(conv(x)))
        return nnx.relu(self.norms[-1](self.convs[-1](x)) + shortcut)


class ResNet(nnx.Module):
    """A residual network from images to pooled features.

    Args:
      depths: blocks in each stage; every stage after the first halves the image
        and doubles the width.
      width: channels of the first stage's 3x3 convolutions.
      bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions, the last with four times the
        width, instead of two 3x3 convolutions.
      small_images: a 3x3 stem without pooling, for images of about 32 pixels,
        instead of 7x7 with stride 2 and max pooling.
      zero_init_residual: whether the last normalisation of each block has the initial
        gain 0, so that each block starts as its shortcut.
      conv_init: "fan_out" (He et al.) or "fan_in" (the official LLC code).
      dtype: of the activations and of the arithmetic; parameters, statistics and features
        are float32.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        width: int,
        bottleneck: bool = False,
        small_images: bool = False,
        zero_init_residual: bool = True,
        conv_init: str = "fan_out",
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.variance_scaling(2.0, conv_init, "normal")
        conv = functools.partial(layers.conv, init=init, dtype=dtype, rngs=rngs)
        norm = functools.partial(layers.BatchNorm, dtype=dtype, rngs=rngs)
        self.small_images = small_images
        self.stem = conv(3, width, 3, 1) if small_images else conv(3, width, 7, 2)
        self.stem_norm = norm(width)
        blocks, channels = [], width
        for stage, depth in enumerate(depths):
            inner = width * 2**stage
            widths = (inner, inner, 4 * inner) if bottleneck else (inner, inner)
            kernels = (1, 3, 1) if bottleneck else (3, 3)
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(
                    Block(
                        channels,
                        widths,
                        kernels,
                        stride,
                        conv=conv,
                        norm=norm,
                        zero_init_residual=zero_init_residual,
                    )
                )
                channels = widths[-1]
        self.blocks = nnx.List(blocks)
        self.num_features = channels

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps normalised images, float[B, H, W, 3], to features, float32[B, d]."""
        x = nnx.relu(self.stem_norm(self.stem(images)))
        if not self.small_images:
            x = layers.max_pool(x, 3, 2, padding=1)
        for block in self.blocks:
            x = block(x)
        return layers.mean_of_pixels(x)
