"""The optimizers, SGD with momentum and AdamW, as in PyTorch, and learning rate schedules."""

from typing import Any

import jax
import optax

Tree = Any


def cosine(learning_rate: float, num_steps: int) -> optax.Schedule:
    """Decays from the learning rate to 0 at the last step, along half a cosine."""
    return optax.cosine_decay_schedule(learning_rate, max(1, num_steps))


def constant(learning_rate: float, num_steps: int) -> optax.Schedule:
    """Stays at the learning rate."""
    del num_steps
    return optax.constant_schedule(learning_rate)


SCHEDULES = {"constant": constant, "cosine": cosine}


def schedule(
    learning_rate: float, *, kind: str, num_steps: int, warmup_steps: int
) -> optax.Schedule:
    """Returns the learning rate at each step.

    Args:
      learning_rate: the highest.
      kind: a name in SCHEDULES, of the schedule after the warm-up.
      num_steps: steps of the whole stage.
      warmup_steps: steps of linear increase at the start, at most `num_steps`.
    """
    warmup_steps = min(warmup_steps, num_steps)
    decay = SCHEDULES[kind](learning_rate, num_steps - warmup_steps)
    if not warmup_steps:
        return decay
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps - 1)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def sgd(
    learning_rate: optax.Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    codebook_rate: float,
    frozen: Tree | None = None,
) -> optax.GradientTransformation:
    """SGD with momentum and weight decay on all weights, as in the official code.

    The decay is added to the gradient, before the momentum. It applies to all weights:
    also to normalisation gains, biases and the latent codebook.

    Args:
      learning_rate: step -> rate.
      momentum: decay of the running sum of gradients.
      nesterov: whether to use Nesterov momentum.
      weight_decay: this times the weight is added to its gradient.
      codebook_rate: the latent codebook's learning rate is `learning_rate` times this.
      frozen: a tree of bool like the params, True where they are not trained; None trains all.
    """
    direction = optax.chain(
        optax.add_decayed_weights(weight_decay), optax.trace(momentum, nesterov)
    )
    return _descend(direction, learning_rate, codebook_rate, frozen)


def adamw(
    learning_rate: optax.Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    codebook_rate: float,
    frozen: Tree | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay on all weights.

    Args:
      learning_rate: step -> rate.
      momentum: beta 1, the decay of the mean of gradients; beta 2 is 0.999.
      nesterov: whether to use Nesterov momentum, as NAdam.
      weight_decay: the learning rate times this times the weight is taken off each weight.
      codebook_rate, frozen: as in `sgd`.

    References:
      Loshchilov and Hutter, Decoupled weight decay regularization, ICLR 2019.
    """
    direction = optax.chain(
        optax.scale_by_adam(b1=momentum, nesterov=nesterov),
        optax.add_decayed_weights(weight_decay),
    )
    return _descend(direction, learning_rate, codebook_rate, frozen)


OPTIMIZERS = {"adamw": adamw, "sgd": sgd}


def _descend(
    direction: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    codebook_rate: float,
    frozen: Tree | None,
) -> optax.GradientTransformation:
    """Steps against a direction, with the rate of each group of parameters."""
    rate_scales = {"codebook": optax.scale(codebook_rate), "rest": optax.identity()}
    optimizer = optax.chain(
        direction,
        optax.partition(rate_scales, _parameter_groups),
        optax.scale_by_learning_rate(learning_rate),
    )
    if frozen is None or not any(jax.tree.leaves(frozen)):
        return optimizer
    return optax.partition({True: optax.set_to_zero(), False: optimizer}, frozen)


def _parameter_groups(params):
    """Returns the group of each parameter; the latent codebook is `head/latent`."""

    def name(path, _):
        is_codebook = path[0].key == "head" and path[1].key == "latent"
        return "codebook" if is_codebook else "rest"

    return jax.tree_util.tree_map_with_path(name, params)
