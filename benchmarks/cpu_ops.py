"""Measures operations of networks on a CPU: JAX's usual form, ours and PyTorch's.

  python benchmarks/cpu_ops.py [WORD ...]      only operations with a word in their name

Milliseconds, forwards and for the gradients of all inputs, float32 unless said otherwise.
The usual form is compiled with XLA's usual options, ours with those that networks have. The
candidates alternate in one process, and it prints medians.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from alternating import medians
from flax import nnx
from jax import lax

from llc_jax.compiling import jit_network
from llc_jax.models import cpu, layers

SECONDS = 1.5


def usual_conv(x, kernel, stride, padding, groups=1):
    """A convolution as JAX writes it."""
    pads = ((padding, padding),) * 2
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride,) * 2, pads, dimension_numbers=layout, feature_group_count=groups
    )


def convolution(batch, side, inputs, outputs, size, stride=1, padding=None, dtype="float32"):
    """A convolution: name, inputs, and its forms in JAX, here and in PyTorch."""
    depthwise = outputs is None
    groups = inputs if depthwise else 1
    padding = size // 2 if padding is None else padding
    shape = (size, size, 1, inputs) if depthwise else (size, size, inputs, outputs)

    def ours(x, kernel):
        if depthwise:
            return cpu.depthwise_conv(x, kernel[:, :, 0], stride, padding)
        if size == 1:
            return cpu.pointwise_conv(x, kernel[0, 0], stride)
        return cpu.conv(x, kernel, stride, padding)

    def torch_form(x, kernel):
        kernel = kernel.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        return F.conv2d(_channels_first(x), kernel, None, stride, padding, 1, groups)

    usual = functools.partial(usual_conv, stride=stride, padding=padding, groups=groups)
    kind = f"depthwise {size}x{size}" if depthwise else f"{size}x{size}, {inputs} -> {outputs}"
    name = f"{kind}, stride {stride}, {side} pixels, {batch} images, {dtype}"
    if depthwise:
        name = name.replace(",", f", {inputs} channels,", 1)
    return name, [(batch, side, side, inputs), shape], dtype, (usual, ours, torch_form)


def max_pool(batch, side, channels):
    """Max pooling, 3x3 with stride 2."""
    usual = lambda x: nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1),) * 2)  # noqa: E731
    torch_form = lambda x: F.max_pool2d(_channels_first(x), 3, 2, 1)  # noqa: E731
    forms = usual, lambda x: cpu.max_pool(x, 3, 2, 1), torch_form
    name = f"max pool 3x3/2, {side} pixels, {channels} channels, {batch} images"
    return name, [(batch, side, side, channels)], "float32", forms


def batch_norm(batch, side, channels):
    """Batch normalisation and ReLU; the second form is the first with the options of networks."""

    def form(x, scale):
        norm = layers.BatchNorm(channels, dtype=jnp.float32, rngs=nnx.Rngs(0))
        norm.scale[...] = scale
        return nnx.relu(norm(x))

    def torch_form(x, scale):
        x = _channels_first(x)
        return F.relu(F.batch_norm(x, None, None, scale, torch.zeros(channels), training=True))

    name = f"batch norm and ReLU, {side} pixels, {channels} channels, {batch} images"
    return name, [(batch, side, side, channels), (channels,)], "float32", (form, form, torch_form)


def attention(batch, tokens, heads):
    """Softmax attention with heads of 64."""

    def torch_form(*inputs):
        q, k, v = (x.transpose(1, 2) for x in inputs)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    forms = jax.nn.dot_product_attention, cpu.attention, torch_form
    name = f"attention, {tokens} tokens, {heads} heads, {batch} images"
    return name, [(batch, tokens, heads, 64)] * 3, "float32", forms


def dense(rows, inputs, outputs):
    """A matrix product, with GELU after it."""

    def form(x, kernel):
        return nnx.gelu(x @ kernel, approximate=False)

    torch_form = lambda x, kernel: F.gelu(x @ kernel)  # noqa: E731
    name = f"dense and GELU, {inputs} -> {outputs}, {rows} rows"
    return name, [(rows, inputs), (inputs, outputs)], "float32", (form, form, torch_form)


def layer_norm(rows, width):
    """Layer normalisation."""

    def form(x, scale):
        centred = x - jnp.mean(x, -1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
        return centred * lax.rsqrt(variance + 1e-6) * scale

    torch_form = lambda x, scale: F.layer_norm(x, (width,), scale, eps=1e-6)  # noqa: E731
    name = f"layer norm, {rows} rows of {width}"
    return name, [(rows, width), (width,)], "float32", (form, form, torch_form)


OPERATIONS = [
    *(convolution(16, side, channels, None, 3) for side, channels in ((112, 32), (56, 128))),
    convolution(16, 112, 64, None, 3, 2),
    *(convolution(16, side, channels, None, 5) for side, channels in ((28, 240), (7, 1152))),
    convolution(16, 56, 256, 64, 1),
    convolution(16, 56, 64, 256, 1),
    convolution(16, 56, 256, 512, 1, 2),
    convolution(16, 7, 512, 2048, 1),
    convolution(16, 224, 3, 64, 7, 2),
    convolution(16, 224, 3, 64, 11, 4, 2),
    convolution(16, 56, 64, 64, 3),
    convolution(1, 56, 64, 64, 3),
    convolution(8, 56, 64, 64, 3),
    convolution(16, 56, 64, 64, 3, dtype="bfloat16"),
    convolution(16, 56, 128, 128, 3, 2),
    convolution(16, 14, 256, 256, 3),
    convolution(16, 7, 512, 512, 3),
    convolution(128, 32, 16, 16, 3),
    convolution(128, 16, 32, 32, 3),
    convolution(128, 8, 64, 64, 3),
    max_pool(16, 112, 64),
    batch_norm(16, 112, 64),
    batch_norm(128, 32, 16),
    attention(16, 197, 3),
    dense(3152, 192, 768),
    layer_norm(3152, 192),
]


def measure(shapes, dtype, forms):
    """Returns milliseconds of the usual form, ours and PyTorch's: forwards, then gradients."""
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    arrays = [jnp.asarray(array, dtype) for array in inputs]
    tensors = [torch.from_numpy(array).to(getattr(torch, dtype)) for array in inputs]
    usual, ours, torch_form = forms
    output = torch_form(*tensors)
    of_output = jnp.ones(jax.eval_shape(usual, *arrays).shape, dtype)
    for tensor in tensors:
        tensor.requires_grad_()

    def gradients(form):
        return lambda of_output, *arrays: jax.vjp(form, *arrays)[1](of_output)

    def torch_gradients():
        output = torch_form(*tensors)
        return torch.autograd.grad(output, tensors, torch.ones_like(output))

    def torch_forward():
        with torch.inference_mode():
            return torch_form(*tensors)

    forwards, backwards = {"PyTorch": torch_forward}, {"PyTorch": torch_gradients}
    for name, jit, form in (("usual", jax.jit, usual), ("ours", jit_network, ours)):
        call = functools.partial(jit(form), *arrays)
        forwards[name] = functools.partial(_wait, call)
        call = functools.partial(jit(gradients(form)), of_output, *arrays)
        backwards[name] = functools.partial(_wait, call)
    assert output.numel() == of_output.size
    return [medians(candidates, SECONDS) for candidates in (forwards, backwards)]


def _channels_first(x):
    """Returns images in PyTorch's order; in memory the channels stay last."""
    return x.permute(0, 3, 1, 2)


def _wait(call):
    jax.block_until_ready(call())


def main(words):
    """Prints a row for each operation."""
    torch.set_num_threads(2)
    print(f"jax {jax.__version__}, PyTorch {torch.__version__}; forwards / gradients, ms\n")
    print("| operation | usual | ours | PyTorch |\n| --- | --- | --- | --- |")
    for name, shapes, dtype, forms in OPERATIONS:
        if not words or any(word in name for word in words):
            forwards, backwards = measure(shapes, dtype, forms)
            cells = [
                f"{forwards[w]:.1f} / {backwards[w]:.1f}" for w in ("usual", "ours", "PyTorch")
            ]
            print("|", " | ".join([name, *cells]), "|", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
