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
    num_microbatches: int = 1,
) -> Step:
    """Returns the train step, not yet jitted: see `compile_step`.

    It maps (state, batch, class_codes) to the next state and the mean metrics of the batch.
    Normalisation statistics are of the whole microbatch, however it is sharded.

    Args:
      network: to train.
      objective: (output, labels, class_codes) -> metrics, float32[B] each.
      optimizer: of the network's params.
      augment: (key, inputs) -> inputs, of the same form.
      mixup_alpha: of mixup's Beta(alpha, alpha); 0 for no mixup.
      needs: what the objective takes by keyword: arrays of the batch, or `progress`, float32[]
        from 0 to 1, the fraction of `num_steps` already taken.
      num_steps: of the whole stage.
      num_microbatches: parts of the batch, of which one at a time has its activations in memory.
    """

    def step(state, batch, class_codes):
        key = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), state["step"])
        network_key = jax.random.fold_in(key, _NETWORK)
        progress = state["step"] / num_steps
        examples = batch | {"input": augment(key, batch["input"])}
        if mixup_alpha:
            examples = mixup.mix(examples, jax.random.fold_in(key, _MIXUP), mixup_alpha)

        def loss_fn(params, batch_stats, examples, key):
            keywords = {name: (examples | {"progress": progress})[name] for name in needs}
            metrics_fn = functools.partial(objective, **keywords)
            if mixup_alpha:
                metrics_fn = mixup.mix_metrics(metrics_fn, examples)
            output, batch_stats = network.train(params, batch_stats, examples["input"], key)
            metrics = metrics_fn(output, examples["label"], class_codes)
            masks = (examples["mask"], batch["mask"])
            means = {name: _mean(values, *masks) for name, values in metrics.items()}
            return means["loss"], (means, batch_stats)

        gradient_fn = _accumulate(jax.grad(loss_fn, has_aux=True), num_microbatches)
        params, stats = state["params"], state["batch_stats"]
        gradients, (means, batch_stats) = gradient_fn(params, stats, examples, network_key)
        updates, opt_state = optimizer.update(gradients, state["opt_state"], params)
        return state | {
            "params": optax.apply_updates(params, updates),
            "batch_stats": batch_stats,
            "opt_state": opt_state,
            "step": state["step"] + 1,
            "epoch": _add_to_epoch(state["epoch"], means),
        }, means

    return step


def _accumulate(gradient_fn: Callable, num_microbatches: int) -> Callable:
    """Returns a function that adds up the gradients and the means of microbatches.

    Where an example's metrics do not depend on the others, and nothing is normalised over the
    batch, they are those of the whole batch but for rounding. Batch normalisation takes the
    statistics of a microbatch, and its running statistics move once for each.

    Args:
      gradient_fn: (params, batch_stats, examples, key) -> (gradients, (means, batch_stats)).
      num_microbatches: in which the examples are divided.
    """
    if num_microbatches == 1:
        return gradient_fn

    def split(rows: jax.Array) -> jax.Array:
        # Every microbatch has rows of every device, so that none moves to another.
        return jnp.swapaxes(rows.reshape(-1, num_microbatches, *rows.shape[1:]), 0, 1)

    def accumulated(params, batch_stats, examples, key):
        def add(carry, microbatch):
            sums, batch_stats = carry
            number, examples = microbatch
            microbatch_key = jax.random.fold_in(key, number)
            gradients, (means, batch_stats) = gradient_fn(
                params, batch_stats, examples, microbatch_key
            )
            return (jax.tree.map(jnp.add, sums, (gradients, means)), batch_stats), None

        microbatches = (jnp.arange(num_microbatches), jax.tree.map(split, examples))
        _, (means, _) = jax.eval_shape(gradient_fn, params, batch_stats, examples, key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (params, means))
        (sums, batch_stats), _ = jax.lax.scan(add, (zeros, batch_stats), microbatches)
        gradients, means = sums
        return gradients, (means, batch_stats)

    return accumulated


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


def _mean(values: jax.Array, mask: jax.Array, batch_mask: jax.Array) -> jax.Array:
    """Returns a microbatch's part of the mean over the examples of the batch that count."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(batch_mask), 1)
