"""The optimizer: SGD with momentum, as PyTorch has it, and its learning rate."""

from typing import Any

import jax
import optax

Tree = Any


def cosine(learning_rate: float, num_steps: int) -> optax.Schedule:
    """Falls from the learning rate to 0 at the last step, as half a cosine."""
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
      kind: a name in SCHEDULES, for what follows the warm-up.
      num_steps: steps of the whole stage.
      warmup_steps: steps of linear rise at the start, at most `num_steps`.
    """
    warmup_steps = min(warmup_steps, num_steps)
    rest = SCHEDULES[kind](learning_rate, num_steps - warmup_steps)
    if not warmup_steps:
        return rest
    rise = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps - 1)
    return optax.join_schedules([rise, rest], [warmup_steps])


def sgd(
    learning_rate: optax.Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    codebook_rate: float,
    frozen: Tree | None = None,
) -> optax.GradientTransformation:
    """SGD with momentum and weight decay on all weights, as the official code has it.

    The decay is added to the gradient, before the momentum. Normalisation gains,
    biases and the latent codebook decay like every other weight.

    Args:
      learning_rate: step -> rate.
      momentum: of the running sum of gradients.
      nesterov: whether to look ahead.
      weight_decay: times the weight, added to its gradient.
      codebook_rate: the latent codebook's rate is `learning_rate` times this.
      frozen: params' tree of bool, True where they stay as they are; None trains all.
    """
    scales = {"codebook": optax.scale(codebook_rate), "rest": optax.identity()}
    descend = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum, nesterov),
        optax.partition(scales, _label),
        optax.scale_by_learning_rate(learning_rate),
    )
    if frozen is None or not any(jax.tree.leaves(frozen)):
        return descend
    return optax.partition({True: optax.set_to_zero(), False: descend}, frozen)


def _label(params):
    """Names each parameter's group: the latent codebook is `head/latent`."""

    def name(path, _):
        is_codebook = path[0].key == "head" and path[1].key == "latent"
        return "codebook" if is_codebook else "rest"

    return jax.tree_util.tree_map_with_path(name, params)
