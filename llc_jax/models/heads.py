"""Heads: from backbone features to class logits, code logits, or both.

Heads compute in float32, whatever the backbone's dtype. A stage that starts from an
earlier one takes the head's parameters that have the same name and shape in both:
`hidden`, `projection` and `classifier`.

Every head has the options `hidden`, the widths of hidden layers between the features and the
rest, and `dropout` in them; see `models.mlp`. By default there are none, as in the paper.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from llc_jax.codes.binarize import sign_ste
from llc_jax.errors import InputError
from llc_jax.models.mlp import HiddenLayers


class Output(NamedTuple):
    """A head's output for B images.

    Attributes:
      code_logits: float32[B, k], k real numbers whose signs are the code, usually
        f = F(x) P; None if the head gives no codes (`LinearHead`).
      class_logits: float32[B, L]; None if the head gives no classes (`CodeHead`).
      class_vectors: float32[L, k], s B(C): the class logits are their inner products with
        the code logits (`CodebookHead`); None in the other heads.
      features: float32[B, h], what the linear classifier takes (`LinearHead`); None in the
        other heads.
    """

    code_logits: jax.Array | None
    class_logits: jax.Array | None
    class_vectors: jax.Array | None = None
    features: jax.Array | None = None


class LinearHead(nnx.Module):
    """The baseline: a linear classifier of the features, or of hidden layers of them."""

    def __init__(
        self,
        num_features: int,
        *,
        num_classes: int,
        num_bits: int,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        del num_bits
        self.hidden = HiddenLayers(num_features, hidden, dropout=dropout, rngs=rngs)
        self.classifier = nnx.Linear(self.hidden.num_features, num_classes, rngs=rngs)

    def __call__(self, features: jax.Array) -> Output:
        """Maps float32[B, d] to class logits."""
        features = self.hidden(features)
        return Output(None, self.classifier(features), features=features)


class CodebookHead(nnx.Module):
    """Phase 1: class logits s B(C) f of the code logits f = F(x) P.

    Args:
      logit_scale: s. The standard deviation of B(C) f in equation 2 is sqrt(k) times
        that of one code logit; with 1 / sqrt(k) the two are equal.
      latent_std: standard deviation of the initial C. Only its ratio to the
        codebook's learning rate matters, as the sign does not depend on the scale.
      projection_gain: the initial P has the variance projection_gain / d.

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
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.logit_scale = logit_scale
        self.hidden = HiddenLayers(num_features, hidden, dropout=dropout, rngs=rngs)
        self.projection = _projection(self.hidden.num_features, num_bits, projection_gain, rngs)
        latent = latent_std * jax.random.normal(rngs.params(), (num_classes, num_bits))
        self.latent = nnx.Param(latent)

    def __call__(self, features: jax.Array) -> Output:
        """Maps float32[B, d] to code logits and class logits."""
        code_logits = self.projection(self.hidden(features))
        class_vectors = self.logit_scale * sign_ste(self.latent[...])
        return Output(code_logits, code_logits @ class_vectors.T, class_vectors)


class CodeHead(nnx.Module):
    """Phase 2 and some baselines: only the code logits f = F(x) P, without class codes.

    Args:
      projection_gain: the initial P has the variance projection_gain / d.
      batch_norm: normalise each code logit over the batch. This balances the code: each
        bit is then set in about half of the images.

    References:
      LLC, equation 3. Hoe et al., OrthoHash, NeurIPS 2021, for the normalisation.
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_classes: int,
        num_bits: int,
        projection_gain: float = 1.0,
        batch_norm: bool = False,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        del num_classes
        self.hidden = HiddenLayers(num_features, hidden, dropout=dropout, rngs=rngs)
        self.projection = _projection(self.hidden.num_features, num_bits, projection_gain, rngs)
        self.normalization = (
            nnx.BatchNorm(num_bits, momentum=0.9, rngs=rngs) if batch_norm else None
        )

    def __call__(self, features: jax.Array) -> Output:
        """Maps float32[B, d] to code logits."""
        code_logits = self.projection(self.hidden(features))
        if self.normalization is not None:
            code_logits = self.normalization(code_logits)
        return Output(code_logits=code_logits, class_logits=None)


class BottleneckHead(nnx.Module):
    """A linear classifier of the k real numbers f = F(x) P, or of their signs.

    Args:
      binary: whether to classify the signs, with the straight-through gradient and without
        a bias, as Greedy Hash does. The real numbers are a baseline for codes of k bits.
      projection_gain: the initial P has the variance projection_gain / d.

    References:
      LLC, table 4 (real numbers). Su et al., Greedy Hash, NeurIPS 2018, and its code (signs).
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_classes: int,
        num_bits: int,
        binary: bool = False,
        projection_gain: float = 1.0,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.binary = binary
        self.hidden = HiddenLayers(num_features, hidden, dropout=dropout, rngs=rngs)
        self.projection = _projection(self.hidden.num_features, num_bits, projection_gain, rngs)
        self.classifier = nnx.Linear(num_bits, num_classes, use_bias=not binary, rngs=rngs)

    def __call__(self, features: jax.Array) -> Output:
        """Maps float32[B, d] to code logits, the k real numbers, and class logits."""
        code_logits = self.projection(self.hidden(features))
        bottleneck = sign_ste(code_logits) if self.binary else code_logits
        return Output(code_logits=code_logits, class_logits=self.classifier(bottleneck))


class ClassNumberHead(nnx.Module):
    """A linear classifier; the code of an image is the index of its predicted class.

    No code is learnt. As a baseline it shows what classification alone achieves in
    retrieval where the queries and the database are of the training classes.

    References:
      Sablayrolles et al., How should we evaluate supervised hashing?, ICASSP 2017.
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_classes: int,
        num_bits: int,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        if 2**num_bits < num_classes:
            raise InputError(
                f"{num_bits} bits do not hold the numbers of {num_classes} classes: "
                f"{(num_classes - 1).bit_length()} do."
            )
        self.num_bits = num_bits
        self.hidden = HiddenLayers(num_features, hidden, dropout=dropout, rngs=rngs)
        self.classifier = nnx.Linear(self.hidden.num_features, num_classes, rngs=rngs)

    def __call__(self, features: jax.Array) -> Output:
        """Maps float32[B, d] to class logits, and codes of +1 and -1 as code logits."""
        class_logits = self.classifier(self.hidden(features))
        return Output(codes_of_predictions(class_logits, self.num_bits), class_logits)


def codes_of_predictions(class_logits: jax.Array, num_bits: int) -> jax.Array:
    """Returns the index of the most likely class as a binary number of +1 and -1.

    Args:
      class_logits: float32[B, L].
      num_bits: k, with 2^k >= L; bit 0 is the least significant.

    Returns:
      float32[B, k].
    """
    classes = jnp.argmax(class_logits, axis=1)
    bits = (classes[:, None] >> jnp.minimum(jnp.arange(num_bits), 31)[None]) & 1
    return jnp.where(bits, 1.0, -1.0)


def _projection(num_features: int, num_bits: int, gain: float, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.variance_scaling(gain, "fan_in", "normal")
    return nnx.Linear(num_features, num_bits, use_bias=False, kernel_init=init, rngs=rngs)


HEADS = {
    "linear": LinearHead,
    "codebook": CodebookHead,
    "code": CodeHead,
    "bottleneck": BottleneckHead,
    "class_number": ClassNumberHead,
}
