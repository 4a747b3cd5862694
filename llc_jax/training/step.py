"""The train step: pure, jitted, donated and sharded."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from llc_jax.mesh import batch_sharding, replicated_sharding
from llc_jax.models.network import PureNetwork
from llc_jax.training import mixup
from llc_jax.training.objectives import Figures
from llc_jax.training.state import State

Augment = Callable[[jax.Array, jax.Array], jax.Array]
Step = Callable[[State, dict[str, jax.Array], jax.Array | None], tuple[State, dict]]

# What to fold into a step's key for what the network and mixup draw; apart from the small
# numbers that splitting the key for the augmentation stands for.
_NETWORK = 2**31
_MIXUP = 2**31 + 1


def make_step(
    network: PureNetwork,
    objective: Callable[..., Figures],
    optimizer: optax.GradientTransformation,
    augment: Augment,
    mixup_alpha: float = 0.0,
    *,
    needs: Sequence[str] = (),
    num_steps: int = 1,
) -> Step:
    """Returns the function of one step.

    It maps (state, batch, class_codes) to the next state and the batch's mean
    figures. Normalisation statistics and means are those of the whole batch,
    however it lies on devices. Not jitted: see `compile_step`. The figures of examples
    that `mixup` has blended, by shares of Beta(alpha, alpha), are blended too; an alpha
    of 0 leaves mixup out.

    An objective that `needs` them is given, by keyword, the `mask` of the batch and the
    `progress`: the part that was taken of the stage's `num_steps`, float32[] from 0 to 1.
    """

    def step(state, batch, class_codes):
        key = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), state["step"])
        own = jax.random.fold_in(key, _NETWORK)
        known = {"mask": batch["mask"], "progress": state["step"] / num_steps}
        judge = functools.partial(objective, **{name: known[name] for name in needs})
        images = augment(key, batch["image"])
        if mixup_alpha:
            mixup_key = jax.random.fold_in(key, _MIXUP)
            shares = mixup.draw_shares(mixup_key, batch["mask"], mixup_alpha)
            images, judge = mixup.mix_images(images, shares), mixup.mix_figures(judge, shares)

        def loss(params):
            output, batch_stats = network.train(params, state["batch_stats"], images, own)
            figures = judge(output, batch["label"], class_codes)
            means = {name: _mean(values, batch["mask"]) for name, values in figures.items()}
            return means["loss"], (means, batch_stats)

        gradients, (means, batch_stats) = jax.grad(loss, has_aux=True)(state["params"])
        updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
        epoch = state["epoch"] | {
            "steps": state["epoch"]["steps"] + 1,
            "sums": jax.tree.map(jnp.add, state["epoch"]["sums"], means),
        }
        after = {
            "params": optax.apply_updates(state["params"], updates),
            "batch_stats": batch_stats,
            "opt_state": opt_state,
            "step": state["step"] + 1,
            "rng": state["rng"],
            "epoch": epoch,
        }
        return after, means

    return step


def compile_step(step: Step, mesh: Mesh) -> Step:
    """Jits a step for a mesh: the state replicated and donated, the batch split by rows."""
    replicated, batched = replicated_sharding(mesh), batch_sharding(mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(replicated, batched, replicated),
        out_shardings=(replicated, replicated),
    )


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
