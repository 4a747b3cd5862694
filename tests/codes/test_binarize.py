import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llc_jax.codes import binarize


def test_sign_of_zero_is_plus_one():
    x = jnp.array([-2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0])
    np.testing.assert_array_equal(binarize.sign_ste(x), [-1, -1, 1, 1, 1, 1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keeps_the_dtype(dtype):
    assert binarize.sign_ste(jnp.ones(3, dtype)).dtype == dtype


def test_gradient_is_passed_straight_through():
    # By hand: d/dc sum_j B(c_j) f_j = f, whatever the values of c.
    f = jnp.array([0.5, -2.0, 7.0, 0.0])
    c = jnp.array([-3.0, 0.0, 0.1, 100.0])
    gradient = jax.jit(jax.grad(lambda c: jnp.sum(binarize.sign_ste(c) * f)))(c)
    np.testing.assert_array_equal(gradient, f)


def test_gradient_of_the_codebook_loss_by_hand():
    # Softmax cross-entropy of logits B(C) f, two classes, label 0:
    # dL/dC = (softmax - onehot) f^T, because dB/dC is the identity.
    f = np.array([0.3, -0.8, 0.1], np.float32)
    latent = np.array([[0.2, -0.4, 0.0], [-1.0, 0.6, -0.1]], np.float32)
    logits = np.where(latent >= 0, 1, -1) @ f
    p = np.exp(logits) / np.exp(logits).sum()
    expected = np.outer(p - [1, 0], f)

    def loss(latent):
        logits = binarize.sign_ste(latent) @ jnp.asarray(f)
        return jax.nn.logsumexp(logits) - logits[0]

    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(latent)), expected, rtol=1e-6)
