"""Hidden layers of vectors: as a backbone of embeddings, and before the bits in every head."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from llc_jax.models import layers


class HiddenLayer(nnx.Module):
    """A linear layer, batch normalisation, ReLU and dropout; in float32."""

    def __init__(self, inputs: int, outputs: int, *, dropout: float, rngs: nnx.Rngs):
        init = nnx.initializers.he_normal()
        self.linear = nnx.Linear(inputs, outputs, use_bias=False, kernel_init=init, rngs=rngs)
        self.norm = layers.BatchNorm(outputs, dtype=jnp.float32, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float32[B, inputs] to float32[B, outputs]."""
        return self.dropout(nnx.relu(self.norm(self.linear(x))))


class HiddenLayers(nnx.Module):
    """Hidden layers one after the other; none pass the features through.

    Args:
      num_features: d, of the input.
      widths: of the layers.
      dropout: the probability that a number is dropped in training.
    """

    def __init__(
        self, num_features: int, widths: Sequence[int], *, dropout: float = 0.0, rngs: nnx.Rngs
    ):
        sizes = (num_features, *widths)
        self.blocks = nnx.List(
            HiddenLayer(inputs, outputs, dropout=dropout, rngs=rngs)
            for inputs, outputs in itertools.pairwise(sizes)
        )
        self.num_features = sizes[-1]

    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps float32[B, d] to float32[B, last width]."""
        for block in self.blocks:
            features = block(features)
        return features


class Identity(nnx.Module):
    """The backbone of embeddings that are features already.

    Args:
      num_inputs: d, the numbers of an embedding.
      standardize: subtract the mean of each number and divide by its standard deviation:
        those of the batch in training, their running averages in evaluation.
    """

    def __init__(self, num_inputs: int, *, standardize: bool = True, rngs: nnx.Rngs):
        self.norm = _standardization(num_inputs, rngs) if standardize else None
        self.blocks = nnx.List([])
        self.num_features = num_inputs

    def __call__(self, embeddings: jax.Array) -> jax.Array:
        """Maps float32[B, d] to features, float32[B, d]."""
        return embeddings if self.norm is None else self.norm(embeddings)


class MLP(HiddenLayers):
    """A multi-layer perceptron, the backbone of embeddings that need one.

    Args:
      num_inputs: d, the numbers of an embedding.
      width: of each hidden layer.
      depth: how many there are.
      dropout: as in `HiddenLayers`.
      standardize: as in `Identity`.
    """

    def __init__(
        self,
        num_inputs: int,
        *,
        width: int = 512,
        depth: int = 3,
        dropout: float = 0.3,
        standardize: bool = True,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_inputs, (width,) * depth, dropout=dropout, rngs=rngs)
        self.norm = _standardization(num_inputs, rngs) if standardize else None

    def __call__(self, embeddings: jax.Array) -> jax.Array:
        """Maps float32[B, d] to features, float32[B, width]."""
        return super().__call__(embeddings if self.norm is None else self.norm(embeddings))


def _standardization(size: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(size, momentum=0.9, use_bias=False, use_scale=False, rngs=rngs)
