"""Layers that several backbones share.

`dtype` is that of the arithmetic; parameters and statistics are float32.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from llc_jax.models import cpu

# The padding of TensorFlow: ceil(side / stride) windows, and the odd pixel of zeros behind.
SAME = "SAME"

_MULTIPLE = 8

HE_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation with PyTorch's arithmetic, in one pass over the batch.

    As in PyTorch, the running variance averages the unbiased variance. The batch statistics
    are computed in float32 from the differences to the running mean. Flax computes them as
    E[x^2] - E[x]^2, which loses precision where the mean is larger than the deviation.

    Args:
      channels: C.
      momentum: what stays of the running statistics in a step; PyTorch's is 1 less this.
      epsilon: is added to the variance.
      scale_init: of the gain; by default ones.
      dtype: of the result.
    """

    def __init__(
        self,
        channels: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        scale_init=None,
        dtype,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            channels,
            momentum=momentum,
            epsilon=epsilon,
            dtype=dtype,
            scale_init=scale_init or nnx.initializers.ones,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises float[..., C] over all axes but the last."""

        def expand(vector: jax.Array) -> jax.Array:
            return jnp.expand_dims(vector, range(x.ndim - 1))

        mean, var = self.mean[...], self.var[...]
        x32 = x.astype(jnp.float32)
        if not self.use_running_average:
            axes, count = range(x.ndim - 1), x.size // x.shape[-1]
            shifted = x32 - expand(mean)
            shift, square = jnp.mean(shifted, axes), jnp.mean(jnp.square(shifted), axes)
            batch_mean, batch_var = mean + shift, jnp.maximum(square - jnp.square(shift), 0)
            unbiased = batch_var * (count / max(count - 1, 1))
            self.mean[...] = self.momentum * mean + (1 - self.momentum) * batch_mean
            self.var[...] = self.momentum * var + (1 - self.momentum) * unbiased
            mean, var = batch_mean, batch_var
        gain = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return ((x32 - expand(mean)) * expand(gain) + expand(self.bias[...])).astype(self.dtype)


class Conv(nnx.Conv):
    """A convolution with a square kernel, and the same padding on all sides or SAME.

    On a CPU it is computed in the forms of `models.cpu`.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[B, H, W, C] to float[B, H', W', D]."""
        is_depthwise = self.feature_group_count == self.in_features == self.out_features
        if not cpu.is_default() or (self.feature_group_count > 1 and not is_depthwise):
            return super().__call__(x)
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        stride = self.strides
        if self.padding == SAME:
            pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride,) * 2, SAME)
            x, padding = jnp.pad(x, ((0, 0), *pads, (0, 0))), 0
        else:
            padding = self.padding[0][0]
        if is_depthwise:
            y = cpu.depthwise_conv(x, kernel[:, :, 0], stride, padding)
        elif len(kernel) == 1 and padding == 0:
            y = cpu.pointwise_conv(x, kernel[0, 0], stride)
        else:
            y = cpu.conv(x, kernel, stride, padding)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)[None, None, None]


def max_pool(x: jax.Array, size: int, stride: int, padding: int = 0) -> jax.Array:
    """Takes the maximum of each window of float[B, H, W, C]."""
    if cpu.is_default():
        return cpu.max_pool(x, size, stride, padding)
    return nnx.max_pool(x, (size, size), (stride, stride), padding=((padding, padding),) * 2)


def mean_of_pixels(x: jax.Array) -> jax.Array:
    """Averages float[B, H, W, C] over the pixels: float32[B, C]."""
    return (
        cpu.mean_of_pixels(x) if cpu.is_default() else jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    )


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    padding: int | str | None = None,
    groups: int = 1,
    bias: bool = False,
    init=HE_FAN_OUT,
    dtype,
    rngs: nnx.Rngs,
) -> Conv:
    """Returns a convolution with a square kernel, by default with padding kernel // 2.

    A padding is a number of pixels, or SAME.
    """
    padding = kernel // 2 if padding is None else padding
    return Conv(
        inputs,
        outputs,
        (kernel, kernel),
        stride,
        padding=SAME if padding == SAME else ((padding, padding),) * 2,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=init,
        dtype=dtype,
        rngs=rngs,
    )


def round_channels(channels: float) -> int:
    """Rounds a width to a multiple of 8, at least 8, and never down by more than a tenth."""
    rounded = max(_MULTIPLE, int(channels + _MULTIPLE / 2) // _MULTIPLE * _MULTIPLE)
    return rounded if rounded >= 0.9 * channels else rounded + _MULTIPLE
