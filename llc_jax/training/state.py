"""The state of training: a plain tree of arrays under named keys.

params, batch_stats: weights and normalisation statistics of the network
opt_state: of the optimizer
step: int32, steps taken in this stage
rng: uint32[2], the key of the stage; step s uses it folded with s
epoch: running totals of the current epoch: the `steps` taken, the `sums` of their metrics
  and, where a codebook is learnt, its packed `codes` at the start of the epoch. They are
  saved, so that a run that was interrupted logs the same values as an unbroken one.
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
    metrics: tuple[str, ...],
    key: jax.Array,
) -> State:
    """Returns the state before the first step.

    Args:
      network: whose parameters are initialised.
      optimizer: whose state is initialised.
      metrics: the names of the objective's.
      key: the random key of the stage.
    """
    init_key, step_key = jax.random.split(key)
    params, batch_stats = network.init(init_key)
    state = {
        "params": params,
        "batch_stats": batch_stats,
        "opt_state": optimizer.init(params),
        "step": jnp.zeros((), jnp.int32),
        "rng": jax.random.key_data(step_key),
        "epoch": {"sums": {name: jnp.zeros(()) for name in metrics}},
    }
    return begin_epoch(state)


def create_on(sharding: jax.sharding.Sharding, create: Callable[[], State]) -> State:
    """Runs `create` in one compiled call; its result has the sharding.

    Initialising many layers takes little time to run but long to compile. On a CPU,
    compiling without optimisation takes a quarter of the time.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(create, out_shardings=sharding, compiler_options=options)()


def create_from(
    sharding: jax.sharding.Sharding, create: Callable[[], State], weights: Tree
) -> State:
    """Runs `create` for a state that starts from other weights, on the sharding.

    The backbone is taken from the weights, and what would initialise it is not compiled.

    Args:
      sharding: of the state.
      create: makes the state before the first step.
      weights, Raises: as in `warm_start`.
    """

    def create_rest():
        state = create()
        rest = {
            kind: {name: tree for name, tree in state[kind].items() if name not in taken[kind]}
            for kind in taken
        }
        return state | rest

    taken = {kind: {"backbone"} & weights[kind].keys() for kind in ("params", "batch_stats")}
    abstract, state = jax.eval_shape(create), create_on(sharding, create_rest)
    for kind in taken:
        state[kind] = abstract[kind] | state[kind]
    return warm_start(state, jax.device_put(weights, sharding))


def begin_epoch(state: State) -> State:
    """Resets the running totals for a new epoch."""
    epoch = {
        "steps": jnp.zeros((), jnp.int32),
        "sums": jax.tree.map(jnp.zeros_like, state["epoch"]["sums"]),
    }
    if "latent" in state["params"]["head"]:
        epoch["codes"] = packing.pack(state["params"]["head"]["latent"])
    return state | {"epoch": epoch}


def warm_start(state: State, weights: Tree) -> State:
    """Returns the state with the weights of an earlier stage or of a pretrained network.

    The backbone's are taken as a whole; of the head's, those that have the same name and
    shape in both.

    Args:
      state: of the new stage.
      weights: `params` and `batch_stats` to start from.

    Raises:
      InputError: if the backbones differ.
    """
    merged = {}
    for kind in ("params", "batch_stats"):
        current, initial = state[kind], weights[kind]
        if not _same_shapes(current.get("backbone", {}), initial.get("backbone", {})):
            raise InputError(
                f"The backbone's {kind} have other shapes than in the stage to start from: "
                "both stages need the same model."
            )
        merged[kind] = {module: initial.get(module, tree) for module, tree in current.items()}
        if "head" in current:
            head = dict(current["head"])
            for name, value in initial.get("head", {}).items():
                if name in head and _same_shapes(head[name], value):
                    head[name] = value
            merged[kind]["head"] = head
    return state | merged


def _same_shapes(a: Tree, b: Tree) -> bool:
    return jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)
