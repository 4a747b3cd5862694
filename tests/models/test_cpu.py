"""The forms for CPUs against the usual ones, which GPUs and TPUs keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from llc_jax import compiling
from llc_jax.models import cpu, layers, registry

# One of each family, and the side of its images here; the others differ in depth and width.
# Roundings of the params that gradients are compared with.
MOVES = 6
SIZES = {"cnn": 8, "resnet8_small": 32}
SLOW = {
    "alexnet": 64,
    "efficientnet_lite0": 75,
    "mobilenet_v1": 96,
    "resnet18": 64,
    "resnet50": 64,
    "vit_tiny_patch16": 32,
}


def close(value, expected, tolerance=1e-5):
    expected = np.asarray(expected, np.float32)
    atol = tolerance * max(np.abs(expected).max(), 1e-6)
    np.testing.assert_allclose(np.asarray(value, np.float32), expected, rtol=0, atol=atol)


def same(form, usual, *inputs, tolerance=1e-5):
    """Compares outputs and gradients of two functions."""
    output, pull_back = jax.vjp(jax.jit(usual), *inputs)
    rng = np.random.default_rng(0)
    gradient = jnp.asarray(rng.normal(size=output.shape), output.dtype)
    expected = [output, *pull_back(gradient)]
    output, pull_back = jax.vjp(jax.jit(form), *inputs)
    for value, wanted in zip([output, *pull_back(gradient)], expected, strict=True):
        assert value.dtype == wanted.dtype
        close(value, wanted, tolerance)


def random(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def usual_conv(stride, padding, groups=1):
    def convolve(x, kernel):
        pads = ((padding, padding),) * 2
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride,) * 2, pads, dimension_numbers=layout, feature_group_count=groups
        )

    return convolve


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (5, 6)])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions(shape, stride):
    x = random(3, *shape, 4)
    for size, padding in [(3, 1), (5, 2), (3, 0)]:
        kernel, depthwise = random(size, size, 4, 6, seed=1), random(size, size, 1, 4, seed=2)
        form = lambda x, kernel, p=padding: cpu.conv(x, kernel, stride, p)  # noqa: E731
        same(form, usual_conv(stride, padding), x, kernel)
        form = lambda x, kernel, p=padding: cpu.depthwise_conv(x, kernel[:, :, 0], stride, p)  # noqa: E731
        same(form, usual_conv(stride, padding, groups=4), x, depthwise)
    form = lambda x, kernel: cpu.pointwise_conv(x, kernel[0, 0], stride)  # noqa: E731
    same(form, usual_conv(stride, 0), x, random(1, 1, 4, 6, seed=3))


def test_convolutions_in_bfloat16():
    x, kernel = (random(2, 6, 6, 4, dtype=jnp.bfloat16), random(3, 3, 1, 4, dtype=jnp.bfloat16))
    form = lambda x, kernel: cpu.depthwise_conv(x, kernel[:, :, 0], 2, 1)  # noqa: E731
    same(form, usual_conv(2, 1, groups=4), x, kernel, tolerance=0.03)
    form = lambda x, kernel: cpu.pointwise_conv(x, kernel, 2)  # noqa: E731
    usual = lambda x, kernel: usual_conv(2, 0)(x, kernel[None, None])  # noqa: E731
    same(form, usual, x, random(4, 6, dtype=jnp.bfloat16), tolerance=0.03)


@pytest.mark.parametrize(("shape", "padding"), [((8, 8), 1), ((7, 9), 0), ((5, 6), 1)])
def test_max_pool(shape, padding):
    # Whole numbers: many windows have their maximum more than once.
    x = jnp.round(random(3, *shape, 4))
    pads = ((padding, padding),) * 2
    usual = lambda x: nnx.max_pool(x, (3, 3), (2, 2), padding=pads)  # noqa: E731
    same(lambda x: cpu.max_pool(x, 3, 2, padding), usual, x)


def test_mean_of_pixels():
    usual = lambda x: jnp.mean(x, axis=(1, 2), dtype=jnp.float32)  # noqa: E731
    same(cpu.mean_of_pixels, usual, random(3, 4, 5, 6))


def test_networks_in_bfloat16_are_those_in_float32_but_for_rounding():
    options = {"num_classes": 10, "num_bits": 8}
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    logits = {}
    for dtype in ("bfloat16", "float32"):
        model = {"name": "resnet8_small", "dtype": dtype}
        network = registry.build(model, {"name": "code"}, **options)
        weights = jax.jit(network.init)(jax.random.key(0))
        logits[dtype] = compiling.jit_network(network.evaluate)(*weights, images).code_logits
    np.testing.assert_allclose(logits["bfloat16"], logits["float32"], atol=0.05)


def test_attention():
    inputs = [random(2, 5, 3, 8, seed=seed) for seed in range(3)]
    same(cpu.attention, jax.nn.dot_product_attention, *inputs)
    huge = [100 * x for x in inputs]
    close(cpu.attention(*huge), jax.nn.dot_product_attention(*huge))


def outputs_and_gradients(network, images):
    """Returns a function of the params and statistics, compiled."""

    def loss(params, stats):
        output, new_stats = network.train(params, stats, images, jax.random.key(1))
        return jnp.sum(jnp.cos(output.class_logits)), (output.class_logits, new_stats)

    def everything(params, stats):
        gradients, trained = jax.grad(loss, has_aux=True)(params, stats)
        return gradients, trained, network.evaluate(params, stats, images).class_logits

    return jax.jit(everything)


def away_from_kinks(params, key):
    """Small gains of normalisations: near the kinks of ReLU, rounding switches gradients."""

    def change(path, leaf):
        is_gain = "norm" in str(path) and "scale" in str(path)
        return jax.random.uniform(key, leaf.shape, minval=0.1, maxval=0.2) if is_gain else leaf

    return jax.tree_util.tree_map_with_path(change, params)


@jax.jit
def rounded(params, key):
    """Params of which a third each are a rounding larger, smaller, and as they were."""

    def move(leaf, key):
        return leaf * (1 + 2**-23 * jax.random.randint(key, leaf.shape, -1, 2))

    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, map(move, leaves, keys))


@pytest.mark.parametrize(
    ("name", "size"),
    [*SIZES.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items())],
)
def test_networks(name, size, monkeypatch):
    model = {"name": name} | ({"image_size": size} if name.startswith("vit") else {})
    network = registry.build(model, {"name": "linear"}, num_classes=5, num_bits=8)
    params, stats = jax.jit(network.init)(jax.random.key(0))
    params = away_from_kinks(params, jax.random.key(2))
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8)
    values = outputs_and_gradients(network, images)(params, stats)
    monkeypatch.setattr(cpu, "is_default", lambda: False)
    usual = outputs_and_gradients(network, images)
    expected = usual(params, stats)
    # A kink of ReLU6 within rounding of a value moves gradients by more: as far as they move
    # when the params themselves are rounded otherwise.
    moves = [usual(rounded(params, jax.random.key(seed)), stats) for seed in range(MOVES)]

    def compare(value, wanted, *moved):
        distance = max(float(jnp.max(jnp.abs(other - wanted))) for other in moved)
        close(value, wanted, max(1e-5, 2 * distance / max(float(jnp.max(jnp.abs(wanted))), 1e-6)))

    jax.tree.map(compare, values, expected, *moves)


@pytest.mark.parametrize("platform", ["cuda", pytest.param("tpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("efficientnet_lite0", "mobilenet_v1", "vit_tiny_patch16")
        ),
    ],
)
def test_the_programs_of_accelerators_are_the_usual_ones(name, platform, monkeypatch):
    network = registry.build({"name": name}, {"name": "linear"}, num_classes=5, num_bits=8)
    params, stats = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), np.uint8)

    def program():
        def loss(params, stats, images):
            output, new_stats = network.train(params, stats, images, jax.random.key(1))
            return jnp.sum(output.class_logits), new_stats

        traced = jax.jit(jax.grad(loss, has_aux=True)).trace(params, stats, images)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    on_a_cpu = program()
    monkeypatch.setattr(cpu, "is_default", lambda: False)
    on_an_accelerator = program()
    monkeypatch.setattr(layers.Conv, "__call__", nnx.Conv.__call__)
    assert on_an_accelerator == program()
    assert on_an_accelerator != on_a_cpu


def test_options_of_the_compiler(monkeypatch):
    options = compiling.cpu_options.__wrapped__
    monkeypatch.setenv("XLA_FLAGS", "")
    assert options() in ({compiling.CPU_LIBRARY: "LIBRARY_FUSION_TYPE_REDUCE"}, None)
    monkeypatch.setenv("XLA_FLAGS", f"--{compiling.CPU_LIBRARY}=LIBRARY_FUSION_TYPE_DOT")
    assert options() is None
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(compiling, "CPU_LIBRARY", "xla_cpu_no_such_option")
    assert options() is None
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert options() is None


def test_what_is_computed_once_is_the_same():
    x = jnp.asarray([[0.0, -0.0, 1.5, -jnp.inf, jnp.nan]])
    for first in (jnp.nan, 1.0):
        value = x.at[0, 0].set(first)
        np.testing.assert_array_equal(jax.jit(cpu.compute_once)(value), value)
        np.testing.assert_array_equal(jnp.signbit(cpu.compute_once(value)), jnp.signbit(value))
    text = jax.jit(lambda x: cpu.compute_once(2 * x) + 1).lower(x).compile().as_text()
    assert "while" in text
