"""A backbone and a head as pure functions over plain trees of arrays."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llc_jax.errors import InputError
from llc_jax.models.heads import Output

Tree = Any


class Network(nnx.Module):
    """What makes the inputs ready, then a backbone, then a head.

    Args:
      backbone: maps prepared inputs to features, float32[B, d].
      head: maps features to logits.
      prepare: maps inputs, images or vectors, to what the backbone takes.

    Attributes:
      takes_features: whether the inputs are the backbone's features, float[B, d], so that the
        backbone itself has nothing to do.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        head: nnx.Module,
        prepare: Callable[[jax.Array], jax.Array],
    ):
        self.backbone = backbone
        self.head = head
        self.prepare = prepare
        self.takes_features = False

    def __call__(self, inputs: jax.Array) -> Output:
        """Maps B inputs to the head's logits."""
        return self.head(self.features(inputs))

    def features(self, inputs: jax.Array) -> jax.Array:
        """Maps B inputs to the backbone's features, float32[B, d]."""
        if self.takes_features:
            return inputs.astype(jnp.float32)
        return self.backbone(self.prepare(inputs))


@dataclasses.dataclass(frozen=True)
class PureNetwork:
    """A network as pure functions.

    Attributes:
      init: key -> (params, batch_stats), float32 trees.
      train: (params, batch_stats, inputs, key) -> (Output, updated batch_stats).
      evaluate: (params, batch_stats, inputs) -> Output.
      features: (params, batch_stats, inputs) -> float32[B, d], the backbone's in `evaluate`.
      abstract: the forms of params and batch_stats.
      frozen: a tree of bool like the params, True where `train` stops the gradient.
      on_features: makes the network of the same weights whose inputs are the backbone's features.
    """

    init: Callable[[jax.Array], tuple[Tree, Tree]]
    train: Callable[[Tree, Tree, jax.Array, jax.Array], tuple[Output, Tree]]
    evaluate: Callable[[Tree, Tree, jax.Array], Output]
    features: Callable[[Tree, Tree, jax.Array], jax.Array]
    abstract: tuple[Tree, Tree]
    frozen: Tree
    on_features: Callable[[], "PureNetwork"]


def functionalize(
    create: Callable[[nnx.Rngs], Network], trainable_blocks: int | None = None
) -> PureNetwork:
    """Turns an NNX module into pure functions.

    Args:
      create: builds the module from its random streams; it is called here to get the
        shapes, without computing anything, and in `init` to get the values.
      trainable_blocks: train only the head and this many of the backbone's last `blocks`;
        frozen layers normalise with their running statistics. None trains all.

    Raises:
      InputError: if the backbone has fewer blocks.
    """
    module = nnx.eval_shape(lambda: create(nnx.Rngs(0)))
    is_frozen = _frozen_paths(module, trainable_blocks)

    def init(key):
        _, params, stats, _ = nnx.split(
            create(nnx.Rngs(key)), nnx.Param, nnx.BatchStat, nnx.RngState
        )
        return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

    return _as_functions(module, init, is_frozen)


def _as_functions(
    module: Network, init: Callable[[jax.Array], tuple[Tree, Tree]], is_frozen: Callable
) -> PureNetwork:
    """Returns the pure functions of a module as it is now."""
    graphdefs = {}
    for mode in ("train", "eval"):
        getattr(module, mode)()
        for path, submodule in nnx.iter_modules(module):
            if isinstance(submodule, nnx.BatchNorm) and is_frozen(path):
                submodule.eval()
        graphdefs[mode], params, stats, rngs = nnx.split(
            module, nnx.Param, nnx.BatchStat, nnx.RngState
        )
    abstract = (nnx.to_pure_dict(params), nnx.to_pure_dict(stats))
    frozen = jax.tree_util.tree_map_with_path(
        lambda path, _: is_frozen([entry.key for entry in path]), abstract[0]
    )

    def train(params, stats, inputs, key):
        params = jax.tree.map(
            lambda leaf, fixed: jax.lax.stop_gradient(leaf) if fixed else leaf, params, frozen
        )
        network = nnx.merge(graphdefs["train"], params, stats, _reseed(rngs, key))
        output = network(inputs)
        return output, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    def merge(params, stats):
        # Evaluation draws no random numbers, so the key does not matter.
        return nnx.merge(graphdefs["eval"], params, stats, _reseed(rngs, jax.random.key(0)))

    def evaluate(params, stats, inputs):
        return merge(params, stats)(inputs)

    def features(params, stats, inputs):
        return merge(params, stats).features(inputs)

    def on_features():
        module.takes_features = True
        return _as_functions(module, init, is_frozen)

    return PureNetwork(init, train, evaluate, features, abstract, frozen, on_features)


def _frozen_paths(module: Network, trainable_blocks: int | None) -> Callable[[Sequence], bool]:
    """Returns a function from a path in the network to whether it is frozen.

    A backbone's layers outside `blocks` come before the blocks, except those whose names
    start with `final_`: they come after them.
    """
    if trainable_blocks is None:
        return lambda path: False
    count = len(module.backbone.blocks)
    if not 0 <= trainable_blocks <= count:
        raise InputError(
            f"trainable_blocks is from 0 to {count} for this backbone, or None for all of it, "
            f"not {trainable_blocks}."
        )

    def is_frozen(path: Sequence) -> bool:
        if len(path) < 2 or path[0] != "backbone":
            return False
        if path[1] == "blocks":
            return len(path) > 2 and path[2] < count - trainable_blocks
        return not (path[1].startswith("final_") and trainable_blocks > 0)

    return is_frozen


def _reseed(rngs: Tree, key: jax.Array) -> Tree:
    """Returns the state of a module's random streams, seeded by a key."""
    leaves, structure = jax.tree.flatten(rngs)
    seeded = [
        jax.random.fold_in(key, number)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, seeded)
