"""Heads: from backbone features to class logits, code logits, or both.

Heads compute in float32 whatever the backbone's dtype. A later stage takes over
the parameters that its head shares by name with the earlier one: `projection`.
"""

from typing import NamedTuple

import jax
from flax import nnx

from llc_jax.codes.binarize import sign_ste


class Output(NamedTuple):
    """What a head says of B images.

    Attributes:
      code_logits: float32[B, k], f = F(x) P, or None (linear head).
      class_logits: float32[B, L], or None (code head).
      class_vectors: float32[L, k], s B(C), whose products with the code logits the
        class logits are; or None (linear and code head).
    """

    code_logits: jax.Array | None
    class_logits: jax.Array | None
    class_vectors: jax.Array | None = None


class LinearHead(nnx.Module):
    """The baseline: a linear classifier of the features."""

    def __init__(self, num_features: int, *, num_classes: int, num_bits: int, rngs: nnx.Rngs):
        del num_bits
        self.classifier = nnx.Linear(num_features, num_classes, rngs=rngs)

    def __call__(self, features: jax.Array) -> Output:
        """Maps float32[B, d] to class logits."""
        return Output(code_logits=None, class_logits=self.classifier(features))


class CodebookHead(nnx.Module):
    """Phase 1: class logits s B(C) f of the code logits f = F(x) P.

    Args:
      logit_scale: s. The B(C) f of equation 2 has a standard deviation of sqrt(k)
        times that of one code logit; 1 / sqrt(k) keeps them alike.
      latent_std: standard deviation of the initial C. Only its ratio to the
        codebook's learning rate matters, as the sign forgets the scale.
      projection_gain: variance of the initial P times d.

    References:
      LLC, equation 2. The official code has s = 1, latent_std = sqrt(2 / k) and
      projection_gain = 2.
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_classes: int,
        num_bits: int,
        logit_scale: float = 1.0,
        latent_std: float = 1.0,
        projection_gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        self.logit_scale = logit_scale
        self.projection = _projection(num_features, num_bits, projection_gain, rngs)
        latent = latent_std * jax.random.normal(rngs.params(), (num_classes, num_bits))
        self.latent = nnx.Param(latent)

    def __call__(self, features: jax.Array) -> Output:
        """Maps float32[B, d] to code logits and class logits."""
        code_logits = self.projection(features)
        class_vectors = self.logit_scale * sign_ste(self.latent[...])
        return Output(code_logits, code_logits @ class_vectors.T, class_vectors)


class CodeHead(nnx.Module):
    """Phase 2: the code logits f = F(x) P alone; the codebook is fixed outside.

    References:
      LLC, equation 3.
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_classes: int,
        num_bits: int,
        projection_gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        del num_classes
        self.projection = _projection(num_features, num_bits, projection_gain, rngs)

    def __call__(self, features: jax.Array) -> Output:
        """Maps float32[B, d] to code logits."""
        return Output(code_logits=self.projection(features), class_logits=None)


def _projection(num_features: int, num_bits: int, gain: float, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.variance_scaling(gain, "fan_in", "normal")
    return nnx.Linear(num_features, num_bits, use_bias=False, kernel_init=init, rngs=rngs)


HEADS = {"linear": LinearHead, "codebook": CodebookHead, "code": CodeHead}
