import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llc_jax.models import cpu, layers


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_padding_of_tensorflow(kernel, stride, groups, monkeypatch):
    rng = np.random.default_rng(0)
    for height, width in [(8, 8), (7, 9), (6, 3)]:
        x = jnp.asarray(rng.normal(size=(2, height, width, 4)), jnp.float32)
        options = {"padding": layers.SAME, "groups": groups, "dtype": jnp.float32}
        conv = layers.conv(4, 4, kernel, stride, **options, rngs=nnx.Rngs(0))
        found = conv(x)
        assert found.shape == (2, -(-height // stride), -(-width // stride), 4)
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "is_default", lambda: False)
            np.testing.assert_allclose(found, conv(x), rtol=1e-4, atol=1e-5)


def test_an_odd_pixel_of_zeros_comes_last():
    x = jnp.arange(1.0, 5).reshape(1, 2, 2, 1)
    conv = layers.conv(1, 1, 3, 2, padding=layers.SAME, dtype=jnp.float32, rngs=nnx.Rngs(0))
    kernel = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
    conv.kernel[...] = jnp.asarray(kernel)
    assert float(conv(x)[0, 0, 0, 0]) == 1 * 0 + 2 * 1 + 3 * 3 + 4 * 4


def test_batch_norm_of_another_momentum_and_epsilon():
    norm = layers.BatchNorm(1, momentum=0.75, epsilon=3.0, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.asarray([[0.0], [2.0]])
    np.testing.assert_allclose(norm(x), [[-0.5], [0.5]], rtol=1e-6)
    np.testing.assert_allclose(norm.mean[...], [0.25], rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], [0.75 + 0.25 * 2], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_batch_norm_is_that_of_the_definition(dtype):
    rng = np.random.default_rng(0)
    norm = layers.BatchNorm(3, dtype=dtype, rngs=nnx.Rngs(0))
    gain, bias = rng.normal(size=(2, 3)).astype(np.float32)
    norm.scale[...], norm.bias[...] = jnp.asarray(gain), jnp.asarray(bias)
    x = jnp.asarray(rng.normal([2, -1, 0], [1, 3, 0.1], (5, 4, 4, 3)), dtype)
    exact = np.asarray(x, np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    expected = (exact - mean) / np.sqrt(var + 1e-5) * gain + bias
    y = norm(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(
        y.astype(jnp.float32), expected, rtol=1e-2 if dtype == jnp.bfloat16 else 1e-4, atol=1e-2
    )
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * var * 80 / 79, rtol=1e-4)


def test_the_variance_is_exact_where_the_mean_is_known_to_be_large():
    rng = np.random.default_rng(0)
    norm = layers.BatchNorm(1, dtype=jnp.float32, rngs=nnx.Rngs(0))
    norm.mean[...] = jnp.full(1, 999.0)
    x = rng.normal(1000, 0.1, (64, 8, 8, 1)).astype(np.float32)
    norm(x)
    expected = 0.9 + 0.1 * x.astype(np.float64).var(ddof=1)
    np.testing.assert_allclose(norm.var[...], [expected], rtol=1e-6)


def test_a_single_value_a_channel():
    norm = layers.BatchNorm(2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(norm(jnp.ones((1, 1, 1, 2))), np.zeros((1, 1, 1, 2)))
    assert np.isfinite(norm.var[...]).all()
