"""Layers that several backbones share.

Each takes a `dtype` for its arithmetic; parameters and statistics are float32.
"""

import jax
import jax.numpy as jnp
from flax import nnx

HE_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation with PyTorch's arithmetic, in one pass over the batch.

    Like PyTorch's it averages the unbiased variance. The batch's own statistics are
    summed in float32 around the running mean: around zero, as flax sums them, the variance
    loses as many digits as the mean is larger than the spread.
    """

    def __init__(self, channels: int, *, scale_init=None, dtype, rngs: nnx.Rngs):
        super().__init__(
            channels,
            momentum=0.9,
            epsilon=1e-5,
            dtype=dtype,
            scale_init=scale_init or nnx.initializers.ones,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises float[..., C] over all axes but the last."""

        def wide(vector: jax.Array) -> jax.Array:
            return jnp.expand_dims(vector, range(x.ndim - 1))

        mean, var = self.mean[...], self.var[...]
        whole = x.astype(jnp.float32)
        if not self.use_running_average:
            axes, count = range(x.ndim - 1), x.size // x.shape[-1]
            around = whole - wide(mean)
            offset, square = jnp.mean(around, axes), jnp.mean(jnp.square(around), axes)
            batch_mean, batch_var = mean + offset, jnp.maximum(square - jnp.square(offset), 0)
            unbiased = batch_var * (count / max(count - 1, 1))
            self.mean[...] = self.momentum * mean + (1 - self.momentum) * batch_mean
            self.var[...] = self.momentum * var + (1 - self.momentum) * unbiased
            mean, var = batch_mean, batch_var
        gain = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return ((whole - wide(mean)) * wide(gain) + wide(self.bias[...])).astype(self.dtype)


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    padding: int | None = None,
    groups: int = 1,
    bias: bool = False,
    init=HE_FAN_OUT,
    dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Returns a square convolution; by default padded to keep the size at stride 1."""
    padding = kernel // 2 if padding is None else padding
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        stride,
        padding=((padding, padding),) * 2,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=init,
        dtype=dtype,
        rngs=rngs,
    )
