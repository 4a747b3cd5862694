"""The train step: pure, jitted, donated and sharded."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from llc_jax.compiling import jit_network
from llc_jax.mesh import batch_sharding, replicated_sharding
from llc_jax.models.network import PureNetwork
from llc_jax.training import mixup
from llc_jax.training.objectives import Metrics
from llc_jax.training.state import State, Tree

Augment = Callable[[jax.Array, jax.Array], jax.Array]
Step = Callable[[State, dict[str, jax.Array], jax.Array | None], tuple[State, dict]]

# Folded into a step's key to give the keys of the network and of mixup. The numbers are far
# from the small ones that the augmentation uses when it splits the same key.
_NETWORK = 2**31
_MIXUP = 2**31 + 1


def make_step(
    network: PureNetwork,
    objective: Callable[..., Metrics],
    optimizer: optax.GradientTransformation,
    augment: Augment,
    mixup_alpha: float = 0.0,
    *,
    needs: Sequence[str] = (),
    num_steps: int = 1,
) -> Step:
    """Returns the train step, not yet jitted: see `compile_step`.

    It maps (state, batch, class_codes) to the next state and the mean metrics of the
    batch. Normalisation statistics and means are taken over the whole batch, however it
    is sharded.

    Args:
      network: to train.
      objective: (output, labels, class_codes) -> metrics, float32[B] each.
      optimizer: of the network's params.
      augment: (key, inputs) -> inputs, of the same form.
      mixup_alpha: of mixup's Beta(alpha, alpha); 0 for no mixup.
      needs: which of `mask`, bool[B], and `progress`, float32[] from 0 to 1, the objective
        takes by keyword. The progress is the fraction of `num_steps` already taken.
      num_steps: of the whole stage.
    """

    def step(state, batch, class_codes):
        key = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), state["step"])
        network_key = jax.random.fold_in(key, _NETWORK)
        keywords = {"mask": batch["mask"], "progress": state["step"] / num_steps}
        metrics_fn = functools.partial(objective, **{name: keywords[name] for name in needs})
        inputs = augment(key, batch["input"])
        if mixup_alpha:
            mixup_key = jax.random.fold_in(key, _MIXUP)
            lambdas = mixup.sample_lambdas(mixup_key, batch["mask"], mixup_alpha)
            inputs = mixup.mix_inputs(inputs, lambdas)
            metrics_fn = mixup.mix_metrics(metrics_fn, lambdas)

        def loss_fn(params):
            output, batch_stats = network.train(params, state["batch_stats"], inputs, network_key)
            metrics = metrics_fn(output, batch["label"], class_codes)
            means = {name: _mean(values, batch["mask"]) for name, values in metrics.items()}
            return means["loss"], (means, batch_stats)

        gradients, (means, batch_stats) = jax.grad(loss_fn, has_aux=True)(state["params"])
        updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
        next_state = {
            "params": optax.apply_updates(state["params"], updates),
            "batch_stats": batch_stats,
            "opt_state": opt_state,
            "step": state["step"] + 1,
            "rng": state["rng"],
            "epoch": _add_to_epoch(state["epoch"], means),
        }
        return next_state, means

    return step


def _add_to_epoch(epoch: Tree, means: Metrics) -> Tree:
    """Counts a step, and adds its metrics to the epoch's."""
    sums = jax.tree.map(jnp.add, epoch["sums"], means)
    return epoch | {"steps": epoch["steps"] + 1, "sums": sums}


def compile_step(step: Step, mesh: Mesh) -> Step:
    """Jits a step for a mesh: the state replicated and donated, the batch sharded by rows."""
    replicated, batched = replicated_sharding(mesh), batch_sharding(mesh)
    return jit_network(
        step,
        donate_argnums=0,
        in_shardings=(replicated, batched, replicated),
        out_shardings=(replicated, replicated),
    )


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Averages over the examples that count."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
