"""Operations of networks in the forms that are fast on a CPU.

XLA's CPU backend is slow in some convolutions and in the gradients that JAX derives. Here
are the same operations, equal but for rounding, with their gradients written out;
`benchmarks/cpu_ops.py` measures both forms. Arrays are [B, H, W, C], kernels square.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# What a function is traced for, where that is not the platform of this machine.
_TRACED_FOR: contextvars.ContextVar[str] = contextvars.ContextVar("traced_for")


def is_default() -> bool:
    """Returns whether what is traced is computed on a CPU."""
    return _TRACED_FOR.get(jax.default_backend()) == "cpu"


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Networks traced within are for a platform, "cpu" or another, whatever this machine has."""
    token = _TRACED_FOR.set(platform)
    try:
        yield
    finally:
        _TRACED_FOR.reset(token)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolves with a kernel [K, K, C, D]."""
    return _derivable_conv(x, kernel, stride, padding)


def _derivable_conv(x, kernel, stride, padding):
    pads = ((padding, padding),) * 2
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, pads, dimension_numbers=layout)


def _conv_forward(x, kernel, stride, padding):
    x = compute_once(x)
    return conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride, padding, residuals, gradient):
    _, pull_back = jax.vjp(lambda *inputs: _derivable_conv(*inputs, stride, padding), *residuals)
    return pull_back(compute_once(gradient))


conv.defvjp(_conv_forward, _conv_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def pointwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves with a 1x1 kernel [C, D]: a matrix product."""
    return x[:, ::stride, ::stride] @ kernel


def _pointwise_forward(x, kernel, stride):
    x = compute_once(x)
    return pointwise_conv(x, kernel, stride), (x, kernel)


def _pointwise_backward(stride, residuals, gradient):
    x, kernel = residuals
    # The gradient that JAX derives transposes the larger operand in memory.
    pixels = (((0, 1, 2), (0, 1, 2)), ((), ()))
    of_kernel = lax.dot_general(x[:, ::stride, ::stride], gradient, pixels)
    return _spread(gradient @ kernel.T, stride, (0, 0), x.shape), of_kernel


pointwise_conv.defvjp(_pointwise_forward, _pointwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolves each channel with its own kernel, [K, K, C]: a weighted sum of shifts."""
    shifts = _shifts(x, len(kernel), stride, padding)
    return sum(shift * _weights(kernel, place) for place, shift in shifts)


def _depthwise_forward(x, kernel, stride, padding):
    return depthwise_conv(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride, padding, residuals, gradient):
    x, kernel = residuals
    size = len(kernel)

    def add_image(index, total):
        # The shifts of one image stay in the cache.
        image = lax.dynamic_index_in_dim(x, index)
        of_image = lax.dynamic_index_in_dim(gradient, index)
        shifts = _shifts(image, size, stride, padding)
        sums = [jnp.sum(shift * of_image, (0, 1, 2), jnp.float32) for _, shift in shifts]
        return total + jnp.stack(sums)

    start = jnp.zeros((size * size, x.shape[-1]), jnp.float32)
    of_kernel = lax.fori_loop(0, len(x), add_image, start).reshape(kernel.shape)
    if size <= 3:
        of_x = sum(
            _spread(
                gradient * _weights(kernel, (i, j)), stride, (i - padding, j - padding), x.shape
            )
            for i, j in np.ndindex(size, size)
        )
    else:
        batch, height, width, channels = x.shape
        shape = (batch, height + size - 1, width + size - 1, channels)
        spread = _spread(gradient, stride, (size - 1 - padding,) * 2, shape)
        of_x = depthwise_conv(spread, kernel[::-1, ::-1], 1, 0)
    return of_x, of_kernel.astype(kernel.dtype)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


@jax.custom_vjp
def mean_of_pixels(x: jax.Array) -> jax.Array:
    """Averages over the pixels: float32[B, C].

    Newer versions of XLA, such as that of jax 0.11, merge the last convolutions into the mean,
    which in bfloat16 then is NaN.
    """
    x = compute_once(x) if x.dtype == jnp.bfloat16 else x
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def _mean_forward(x):
    return mean_of_pixels(x), x


def _mean_backward(x, gradient):
    of_pixel = (gradient / (x.shape[1] * x.shape[2])).astype(x.dtype)
    return (jnp.broadcast_to(of_pixel[:, None, None], x.shape),)


mean_of_pixels.defvjp(_mean_forward, _mean_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """Takes the maximum of each window; the gradient goes to the first pixel that has it."""
    pads = ((0, 0), *((padding, padding),) * 2, (0, 0))
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, window, strides, pads)


def _max_pool_forward(x, size, stride, padding):
    # Computed again, x could be rounded otherwise, and then equal none of the maxima.
    x = compute_once(x)
    y = max_pool(x, size, stride, padding)
    return y, (x, y)


def _max_pool_backward(size, stride, padding, residuals, gradient):
    x, y = residuals
    first = jnp.full(y.shape, size * size, jnp.int32)
    for (i, j), shift in reversed(list(_shifts(x, size, stride, padding, fill=-np.inf))):
        first = jnp.where(shift == y, i * size + j, first)
    of_places = (
        (i - padding, j - padding, jnp.where(first == i * size + j, gradient, 0))
        for i, j in np.ndindex(size, size)
    )
    return (sum(_spread(of_place, stride, (i, j), x.shape) for i, j, of_place in of_places),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Softmax attention of [B, T, N, H], as `jax.nn.dot_product_attention`.

    The weights are divided by their sum after the product with the values.
    """
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    logits = jnp.einsum("bnth,bnsh->bnts", query, key, preferred_element_type=jnp.float32)
    logits = logits / np.sqrt(query.shape[-1]).astype(np.float32)
    maxima = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - maxima)
    sums = jnp.sum(weights, axis=-1, keepdims=True)
    product = jnp.einsum("bnts,bnsh->bnth", weights.astype(value.dtype), value)
    return (product / sums).astype(value.dtype).transpose(0, 2, 1, 3)


def _shifts(
    x: jax.Array, size: int, stride: int, padding: int, fill: float = 0.0
) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields each place in a window of a size, and the pixels there of all windows."""
    batch, height, width, channels = x.shape
    pad = (padding, padding, 0)
    padded = lax.pad(x, np.array(fill, x.dtype), ((0, 0, 0), pad, pad, (0, 0, 0)))
    rows, columns = (
        (length + 2 * padding - size) // stride * stride + 1 for length in (height, width)
    )
    for i, j in np.ndindex(size, size):
        limits = (batch, i + rows, j + columns, channels)
        yield (i, j), lax.slice(padded, (0, i, j, 0), limits, (1, stride, stride, 1))


def _spread(x: jax.Array, stride: int, start: tuple[int, int], shape: tuple[int, ...]) -> jax.Array:
    """Puts pixels into zeros of a shape: at every stride-th row and column from a start."""
    pads = [
        (first, want - first - (have - 1) * stride - 1, stride - 1)
        for have, want, first in zip(x.shape[1:3], shape[1:3], start, strict=True)
    ]
    return lax.pad(x, np.array(0, x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))


def _weights(kernel: jax.Array, place: tuple[int, int]) -> jax.Array:
    """Returns the weights [1, 1, 1, C] of a place in depthwise kernels [K, K, C]."""
    return kernel[place][None, None, None]


def compute_once(x: jax.Array) -> jax.Array:
    """Returns x, and keeps XLA from computing it again in each operation that reads it.

    XLA merges cheap operations into every one that reads their result. Where that one reads
    it transposed, as the gradient of a kernel does, this takes several times as long as
    all else. Nothing is merged through a loop. This one hardly ever runs, and sign times
    magnitude is x again; XLA knows neither, so that it has to keep the loop.
    """
    is_nan = jnp.isnan(x[(0,) * x.ndim])

    def body(state):
        return jnp.zeros((), bool), jnp.sign(state[1]) * jnp.abs(state[1])

    return lax.while_loop(lambda state: state[0], body, (is_nan, x))[1]
