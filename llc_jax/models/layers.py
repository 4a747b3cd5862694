"""Layers that several backbones share.

`dtype` is that of the arithmetic; parameters and statistics are float32.
"""

import jax
import jax.numpy as jnp
from flax import nnx

HE_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation with PyTorch's arithmetic, in one pass over the batch.

    As in PyTorch, the running variance averages the unbiased variance. The batch statistics
    are computed in float32 from the differences to the running mean. Flax computes them as
    E[x^2] - E[x]^2, which loses precision where the mean is larger than the deviation.
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
    """Returns a convolution with a square kernel, by default with padding kernel // 2."""
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
