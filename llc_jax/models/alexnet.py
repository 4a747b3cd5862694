"""AlexNet as in torchvision; the features are the 4096 activations before the classifier.

References:
  Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llc_jax.models import layers

# Kernel, channels, stride, padding, whether max pooling follows.
_CONVOLUTIONS = (
    (11, 64, 4, 2, True),
    (5, 192, 1, 2, True),
    (3, 384, 1, 1, False),
    (3, 256, 1, 1, False),
    (3, 256, 1, 1, True),
)
_POOLED = 6
_HIDDEN = 4096


class AlexNet(nnx.Module):
    """Five convolutions and two dense layers, without torchvision's classifier.

    Args:
      dropout: dropout rate of the inputs of each dense layer.
      dtype: of the arithmetic; parameters and features are float32.
    """

    def __init__(self, *, dropout: float = 0.5, dtype=jnp.float32, rngs: nnx.Rngs):
        # PyTorch's default: uniform, with the variance 1 / (3 fan in).
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        conv = functools.partial(layers.conv, bias=True, init=init, dtype=dtype, rngs=rngs)
        dense = functools.partial(nnx.Linear, kernel_init=init, dtype=dtype, rngs=rngs)
        blocks, channels = [], 3
        for kernel, outputs, stride, padding, _ in _CONVOLUTIONS:
            blocks.append(conv(channels, outputs, kernel, stride, padding=padding))
            channels = outputs
        sizes = (channels * _POOLED**2, _HIDDEN, _HIDDEN)
        blocks += [dense(*pair) for pair in itertools.pairwise(sizes)]
        self.blocks = nnx.List(blocks)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.num_features = _HIDDEN

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps normalised images, float[B, H, W, 3], to features, float32[B, 4096]."""
        x = images
        for block, (*_, pooled) in zip(self.blocks, _CONVOLUTIONS, strict=False):
            x = nnx.relu(block(x))
            if pooled:
                x = layers.max_pool(x, 3, 2)
        if not x.size:
            raise ValueError("AlexNet takes images of at least 63 pixels.")
        x = _adaptive_avg_pool(x, _POOLED)
        # The pretrained dense weights expect the channels first.
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        for dense in self.blocks[len(_CONVOLUTIONS) :]:
            x = nnx.relu(dense(self.dropout(x)))
        return x.astype(jnp.float32)


def _adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Adaptive average pooling of [B, H, W, C] to [B, size, size, C], as in PyTorch."""
    if x.shape[1:3] == (size, size):
        return x
    rows, columns = (_windows(length, size) for length in x.shape[1:3])
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows.astype(x.dtype), columns.astype(x.dtype))


def _windows(length: int, size: int) -> np.ndarray:
    """Returns weights [size, length]; row i averages from floor(i l / s) to ceil((i + 1) l / s)."""
    weights = np.zeros((size, length), np.float32)
    for i in range(size):
        start, stop = i * length // size, -(-(i + 1) * length // size)
        weights[i, start:stop] = 1 / (stop - start)
    return weights
