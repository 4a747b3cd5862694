"""The optimizer: SGD with momentum, as PyTorch has it, and its learning rate."""

import jax
import optax


def schedule(
    learning_rate: float, *, kind: str, num_steps: int, warmup_steps: int
) -> optax.Schedule:
    """Returns the learning rate at each step.

    Args:
      learning_rate: the highest.
      kind: "cosine" (to 0 at the last step) or "constant".
      num_steps: steps of the whole stage.
      warmup_steps: steps of linear rise at the start, at most `num_steps`.
    """
    warmup_steps = min(warmup_steps, num_steps)
    rise = optax.linear_schedule(
        learning_rate / max(1, warmup_steps), learning_rate, max(1, warmup_steps - 1)
    )
    if kind == "cosine":
        rest = optax.cosine_decay_schedule(learning_rate, max(1, num_steps - warmup_steps))
    else:
        rest = optax.constant_schedule(learning_rate)
    return optax.join_schedules([rise, rest], [warmup_steps])


def sgd(
    learning_rate: optax.Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    codebook_rate: float,
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
    """
    scales = {"codebook": optax.scale(codebook_rate), "rest": optax.identity()}
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum, nesterov),
        optax.partition(scales, _label),
        optax.scale_by_learning_rate(learning_rate),
    )


def _label(params):
    """Names each parameter's group: the latent codebook is `head/latent`."""

    def name(path, _):
        is_codebook = path[0].key == "head" and path[1].key == "latent"
        return "codebook" if is_codebook else "rest"

    return jax.tree_util.tree_map_with_path(name, params)
