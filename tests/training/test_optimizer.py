import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llc_jax.training import optimizer


def test_cosine_with_warm_up():
    rate = optimizer.schedule(0.4, kind="cosine", num_steps=100, warmup_steps=10)
    values = np.array([rate(step) for step in range(101)])
    np.testing.assert_allclose(values[:10], 0.4 * np.arange(1, 11) / 10, rtol=1e-5)
    expected = 0.2 * (1 + np.cos(np.pi * np.arange(91) / 90))
    np.testing.assert_allclose(values[10:], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("kind", "last"), [("cosine", 0.0), ("constant", 0.3)])
def test_without_warm_up(kind, last):
    rate = optimizer.schedule(0.3, kind=kind, num_steps=50, warmup_steps=0)
    np.testing.assert_allclose([rate(0), rate(50)], [0.3, last], rtol=1e-6, atol=1e-8)


def test_warm_up_longer_than_the_stage():
    rate = optimizer.schedule(0.3, kind="cosine", num_steps=5, warmup_steps=20)
    np.testing.assert_allclose(rate(4), 0.3, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_pytorchs_by_hand(nesterov):
    # v <- m v + (g + d w); w <- w - lr (v, or g + d w + m v with Nesterov).
    lr, momentum, decay, codebook_rate = 0.1, 0.9, 0.01, 5.0
    sgd = optimizer.sgd(
        optax.constant_schedule(lr),
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=decay,
        codebook_rate=codebook_rate,
    )
    start = {"backbone": {"w": 2.0, "scale": 1.0}, "head": {"latent": -1.0, "projection": 0.5}}
    params = jax.tree.map(jnp.float32, start)
    state = sgd.init(params)
    weights, velocities = dict(jax.tree_util.tree_leaves_with_path(start)), {}
    for step in range(4):
        gradients = jax.tree.map(lambda w, step=step: 0.3 * w + step, params)
        updates, state = sgd.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for path, weight in weights.items():
            gradient = 0.3 * weight + step + decay * weight
            velocity = velocities[path] = momentum * velocities.get(path, 0.0) + gradient
            direction = gradient + momentum * velocity if nesterov else velocity
            rate = lr * codebook_rate if path[-1].key == "latent" else lr
            weights[path] = weight - rate * direction
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        np.testing.assert_allclose(value, weights[path], rtol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_adamw_by_hand(nesterov):
    # m <- b m + (1 - b) g, v <- c v + (1 - c) g^2, both without their bias towards 0;
    # w <- w - lr (m / sqrt(v) + d w). With Nesterov, m looks one step ahead.
    lr, b, c, decay, codebook_rate = 0.1, 0.9, 0.999, 0.01, 5.0
    adamw = optimizer.adamw(
        optax.constant_schedule(lr),
        momentum=b,
        nesterov=nesterov,
        weight_decay=decay,
        codebook_rate=codebook_rate,
    )
    params = {"head": {"latent": jnp.float32(-1.0), "projection": jnp.float32(0.5)}}
    state = adamw.init(params)
    weights, means, squares = {"latent": -1.0, "projection": 0.5}, {}, {}
    for step in range(1, 5):
        gradients = jax.tree.map(lambda w, step=step: 0.3 * w + step, params)
        updates, state = adamw.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, weight in weights.items():
            gradient = 0.3 * weight + step
            mean = means[name] = b * means.get(name, 0.0) + (1 - b) * gradient
            square = squares[name] = c * squares.get(name, 0.0) + (1 - c) * gradient**2
            unbiased = mean / (1 - b**step)
            if nesterov:
                ahead = (1 - b) * gradient / (1 - b**step)
                unbiased = b * mean / (1 - b ** (step + 1)) + ahead
            direction = unbiased / (square / (1 - c**step)) ** 0.5 + decay * weight
            rate = lr * codebook_rate if name == "latent" else lr
            weights[name] = weight - rate * direction
    for name, value in params["head"].items():
        np.testing.assert_allclose(value, weights[name], rtol=1e-4, atol=1e-5)
