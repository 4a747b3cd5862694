"""The state of training: a plain tree of arrays under named keys.

params, batch_stats, opt_state: what the network and the optimizer hold
step: int32, steps taken in this stage
rng: uint32[2], the key of the stage; step s uses it folded with s
epoch: figures of the epoch under way, so that a run that was stopped logs what
  an unbroken one logs: `steps` taken, the `sums` of their figures and, where a
  codebook is learnt, its packed `codes` at the epoch's start
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llc_jax.codes import packing
from llc_jax.errors import InputError
from llc_jax.models.network import PureNetwork

State = dict[str, Any]
Tree = Any


def create(
    network: PureNetwork,
    optimizer: optax.GradientTransformation,
    figures: tuple[str, ...],
    key: jax.Array,
) -> State:
    """Returns the state before the first step.

    Args:
      network: whose parameters to draw.
      optimizer: whose state to start.
      figures: names of what the objective reports.
      key: of everything random in the stage.
    """
    init_key, step_key = jax.random.split(key)
    params, batch_stats = network.init(init_key)
    state = {
        "params": params,
        "batch_stats": batch_stats,
        "opt_state": optimizer.init(params),
        "step": jnp.zeros((), jnp.int32),
        "rng": jax.random.key_data(step_key),
        "epoch": {"sums": {name: jnp.zeros(()) for name in figures}},
    }
    return begin_epoch(state)


def create_on(sharding: jax.sharding.Sharding, create: Callable[[], State]) -> State:
    """Runs `create` in one compiled call, its result sharded.

    Drawing the weights of many layers is little work but much code: on a CPU it is
    compiled in a quarter of the time without optimisation.
    """
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(create, out_shardings=sharding, compiler_options=quick)()


def begin_epoch(state: State) -> State:
    """Starts the figures of an epoch anew."""
    epoch = {
        "steps": jnp.zeros((), jnp.int32),
        "sums": jax.tree.map(jnp.zeros_like, state["epoch"]["sums"]),
    }
    if "latent" in state["params"]["head"]:
        epoch["codes"] = packing.pack(state["params"]["head"]["latent"])
    return state | {"epoch": epoch}


def adopt(state: State, earlier: Tree) -> State:
    """Takes over the weights of an earlier stage: its backbone, and what the heads share.

    Args:
      state: of the new stage.
      earlier: `params` and `batch_stats` of the earlier one.

    Raises:
      InputError: if the backbones differ.
    """
    adopted = {}
    for kind in ("params", "batch_stats"):
        mine, theirs = (tree[kind].get("backbone", {}) for tree in (state, earlier))
        if not _same_shapes(mine, theirs):
            raise InputError(
                f"The backbone's {kind} have other shapes than in the stage to start from: "
                "both stages need the same model."
            )
        adopted[kind] = {part: earlier[kind].get(part, own) for part, own in state[kind].items()}
        if "head" in state[kind]:
            head = dict(state[kind]["head"])
            for name, value in earlier[kind].get("head", {}).items():
                if name in head and _same_shapes(head[name], value):
                    head[name] = value
            adopted[kind]["head"] = head
    return state | adopted


def _same_shapes(a: Tree, b: Tree) -> bool:
    return jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)
