"""Mixup: each example of a batch is mixed with a partner, in inputs and in metrics.

The mixing coefficient lambda, which the paper draws from Beta(alpha, alpha), is the weight of
the example itself; its partner has the weight 1 - lambda. The paper mixes the labels. Here
the metrics for either label are mixed with the same weights, which gives the same loss where
the loss is linear in the target. Objectives that compare the examples of a batch cannot be
mixed this way. The partner of an example is the one before it in the shuffled batch. As in
the paper's code, one lambda is drawn for the whole batch. It depends on the key alone, not on
how the batch is sharded.

References:
  Zhang et al., mixup: beyond empirical risk minimization, 2018.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llc_jax.training.objectives import Metrics


def sample_lambdas(key: jax.Array, mask: jax.Array, alpha: float) -> jax.Array:
    """Draws the mixing coefficient of a batch, and sets it to 1 where nothing is mixed.

    Args:
      key: of the batch.
      mask: bool[B]; an example is not mixed where it or its partner is False.
      alpha: of Beta(alpha, alpha); for an alpha near 0, lambda is close to 0 or 1.

    Returns:
      float32[B].
    """
    lambda_ = jax.random.beta(key, alpha, alpha)
    return jnp.where(mask & _partners(mask), lambda_, 1.0)


def mix(examples: dict[str, jax.Array], key: jax.Array, alpha: float) -> dict[str, jax.Array]:
    """Returns a batch with mixed inputs, the `partner_label` of each example, and its `lambda`.

    Args:
      examples: `input`, `label` and `mask` of a batch.
      key, alpha: as for `sample_lambdas`.
    """
    lambdas = sample_lambdas(key, examples["mask"], alpha)
    return examples | {
        "input": mix_inputs(examples["input"], lambdas),
        "partner_label": _partners(examples["label"]),
        "lambda": lambdas,
    }


def mix_inputs(inputs: jax.Array, lambdas: jax.Array) -> jax.Array:
    """Mixes images, uint8[B, H, W, 3], or vectors, float[B, d], with the partners by float32[B].

    Images are rounded to uint8 again.
    """
    values, partners = (each.astype(jnp.float32) for each in (inputs, _partners(inputs)))
    lambdas = jnp.expand_dims(lambdas, range(1, inputs.ndim))
    mixed = lambdas * values + (1 - lambdas) * partners
    rounded = jnp.round(mixed) if jnp.issubdtype(inputs.dtype, jnp.integer) else mixed
    return rounded.astype(inputs.dtype)


def mix_metrics(
    objective: Callable[..., Metrics], examples: dict[str, jax.Array]
) -> Callable[..., Metrics]:
    """Returns an objective whose metrics are mixed from those for the label and the partner's.

    Args:
      objective: (output, labels, class_codes) -> metrics, float32[B] each.
      examples: a batch that `mix` returned, or a part of it.
    """

    def mixed(output, labels, class_codes):
        metrics = objective(output, labels, class_codes)
        partners = objective(output, examples["partner_label"], class_codes)
        lambdas = examples["lambda"]
        return {
            name: lambdas * values + (1 - lambdas) * partners[name]
            for name, values in metrics.items()
        }

    return mixed


def _partners(rows: jax.Array) -> jax.Array:
    """Returns the partner of each row, in its place."""
    return jnp.roll(rows, 1, axis=0)
