"""What each stage minimises: one pure function each.

An objective maps the network's output, the labels and the packed class codes (or
None, where the stage has no fixed codebook) to named figures for each example,
float32[B]. The one called `loss` is minimised; the others are logged.

The first three are those of LLC; the others are its rivals.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from llc_jax.codes import packing
from llc_jax.codes.binarize import sign
from llc_jax.models.heads import Output

Figures = dict[str, jax.Array]


def softmax(
    output: Output, labels: jax.Array, class_codes: None = None, *, label_smoothing: float = 0.0
) -> Figures:
    """Softmax cross-entropy of the class logits: the linear baseline.

    Args:
      output: class logits float32[B, L].
      labels: int32[B].
      class_codes: not used.
      label_smoothing: share of the target that is spread evenly over all classes.
    """
    del class_codes
    logits = output.class_logits
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    target = (1 - label_smoothing) * chosen + label_smoothing * jnp.mean(logits, axis=1)
    return {
        "loss": jax.nn.logsumexp(logits, axis=1) - target,
        "accuracy": (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32),
    }


def codebook(
    output: Output,
    labels: jax.Array,
    class_codes: None = None,
    *,
    label_smoothing: float = 0.0,
    prefixes: Sequence[int] = (),
) -> Figures:
    """Softmax cross-entropy of the logits s B(C) f: phase 1.

    `logit_scale` is the standard deviation of an example's class logits. Where it
    falls to 0 and stays there, the features have died: the loss is ln L for good.

    Args:
      output: code logits f, class logits and class vectors s B(C).
      labels: int32[B].
      class_codes: not used.
      label_smoothing: as in `softmax`.
      prefixes: of a nested codebook; the loss is the mean over the whole code and its
        first so many bits.

    References:
      LLC, equation 2; section 4.4 for nested codebooks.
    """
    del class_codes
    smooth_softmax = functools.partial(softmax, labels=labels, label_smoothing=label_smoothing)
    figures, losses = smooth_softmax(output), []
    for bits in prefixes:
        class_logits = output.code_logits[:, :bits] @ output.class_vectors[:, :bits].T
        losses.append(smooth_softmax(Output(None, class_logits))["loss"])
    return figures | {
        "loss": sum(losses, figures["loss"]) / (len(losses) + 1),
        "logit_scale": jnp.std(output.class_logits, axis=1),
    }


def instance(
    output: Output, labels: jax.Array, class_codes: jax.Array, *, prefixes: Sequence[int] = ()
) -> Figures:
    """Binary cross-entropy of each code logit with the class's bit: phase 2.

    Args:
      output: code logits float32[B, k].
      labels: int32[B].
      class_codes: uint32[L, ceil(k / 32)]. Only the B codes of the labels are
        unpacked, so the cost does not grow with L.
      prefixes: as in `codebook`.

    References:
      LLC, equation 3, averaged over the bits as in the official code.
    """
    logits = output.code_logits
    targets = packing.unpack(class_codes[labels], logits.shape[1])
    losses = optax.sigmoid_binary_cross_entropy(logits, (targets > 0).astype(jnp.float32))
    means = [jnp.mean(losses[:, :bits], axis=1) for bits in (*prefixes, logits.shape[1])]
    return {
        "loss": sum(means) / len(means),
        "bits_right": jnp.mean((sign(logits) == targets).astype(jnp.float32), axis=1),
    }


def hashnet(
    output: Output,
    labels: jax.Array,
    class_codes: None = None,
    *,
    mask: jax.Array,
    progress: jax.Array,
    scale: float = 10.0,
    growth: float = 50.0,
    power: float = 0.5,
    stages: int = 50,
) -> Figures:
    """HashNet: the weighted likelihood of which pairs of a batch share a class.

    With h = tanh(beta f), a pair is similar with probability sigmoid(scale / k <h_i, h_j>).
    Similar and dissimilar pairs have the same weight in all. While beta grows, h comes
    closer to the signs of f: beta = (1 + growth t)^power, where t is the progress, in so
    many stages.

    Args:
      output: code logits f, float32[B, k].
      labels: int32[B].
      class_codes: not used.
      mask: bool[B], False for examples that do not count.
      progress: float32[], the part of all steps taken, from 0 to 1.
      scale: alpha k.
      growth, power, stages: of beta.

    References:
      Cao et al., HashNet: deep learning to hash by continuation, ICCV 2017. The values are those
      of its code: scale 10, and beta (1 + 0.005 n)^0.5 after n of 10,000 steps, renewed every
      200 steps. The weights count the pairs of the batch, not of the training set, and no
      example is paired with itself.
    """
    del class_codes
    num_examples, num_bits = output.code_logits.shape
    beta = (1 + growth * jnp.floor(progress * stages) / stages) ** power
    h = jnp.tanh(beta * output.code_logits)
    likeness = scale / num_bits * (h @ h.T)
    pairs = mask[:, None] & mask[None] & ~jnp.eye(num_examples, dtype=bool)
    same = labels[:, None] == labels[None]
    losses = jax.nn.softplus(likeness) - jnp.where(same, likeness, 0.0)
    counted = (pairs & same, pairs & ~same)
    shares = [kind / jnp.maximum(jnp.sum(kind), 1) for kind in counted]
    # The mean over the examples is the sum over the pairs.
    loss = jnp.sum(mask) * jnp.sum(losses * sum(shares), axis=1)
    return {"loss": loss, "beta": jnp.full_like(loss, beta)}


def greedy_hash(
    output: Output, labels: jax.Array, class_codes: None = None, *, penalty: float = 1.0
) -> Figures:
    """Greedy Hash: softmax cross-entropy of a classifier of the signs, and a cubic penalty.

    Args:
      output: code logits f float32[B, k], and class logits of their signs.
      labels: int32[B].
      class_codes: not used.
      penalty: weight of the mean over the bits of ||f_j| - 1|^3.

    References:
      Su et al., Greedy Hash, NeurIPS 2018. The penalty is 1 in its code for ImageNet, and 0.1
      in that for CIFAR-10.
    """
    figures = softmax(output, labels, class_codes)
    away = jnp.mean(jnp.abs(jnp.abs(output.code_logits) - 1) ** 3, axis=1)
    return figures | {"loss": figures["loss"] + penalty * away, "penalty": away}


def csq(
    output: Output, labels: jax.Array, class_codes: jax.Array, *, penalty: float = 0.05
) -> Figures:
    """CSQ: binary cross-entropy of (tanh(f) + 1) / 2 with the class's centre.

    It is phase 2 of LLC with f twice as large, but for the penalty, which draws |tanh(f)|
    to 1 and here is averaged over the bits like the cross-entropy.

    Args:
      output: code logits f, float32[B, k].
      labels: int32[B].
      class_codes: uint32[L, ceil(k / 32)], the centres: rows of a Hadamard matrix where
        there are enough.
      penalty: lambda, the weight of log cosh(|tanh(f_j)| - 1).

    References:
      Yuan et al., Central similarity quantization, CVPR 2020, for the two terms. The weight is
      that of its code, which has the square in place of log cosh, and a third term, for pairs.
    """
    figures = instance(output._replace(code_logits=2 * output.code_logits), labels, class_codes)
    away = jnp.abs(jnp.tanh(output.code_logits)) - 1
    log_cosh = jnp.mean(jnp.logaddexp(away, -away) - jnp.log(2.0), axis=1)
    return figures | {"loss": figures["loss"] + penalty * log_cosh, "penalty": log_cosh}


def orthohash(
    output: Output,
    labels: jax.Array,
    class_codes: jax.Array,
    *,
    scale: float = 8.0,
    margin: float = 0.2,
) -> Figures:
    """OrthoHash: softmax cross-entropy of the cosines with the class codes, less a margin.

    Args:
      output: code logits float32[B, k], of a head with `batch_norm`.
      labels: int32[B].
      class_codes: uint32[L, ceil(k / 32)], far from each other.
      scale: s, of the cosines.
      margin: m, which the cosine with the own class has to be larger by.

    References:
      Hoe et al., One loss for all, NeurIPS 2021; the default values are those of its code.
    """
    num_bits = output.code_logits.shape[1]
    codes = packing.unpack(class_codes, num_bits).astype(jnp.float32)
    lengths = jnp.sqrt(jnp.sum(output.code_logits**2, axis=1, keepdims=True) + 1e-12)
    cosines = (output.code_logits / lengths) @ codes.T / num_bits**0.5
    own = labels[:, None] == jnp.arange(len(codes))[None]
    loss = softmax(Output(None, scale * (cosines - margin * own)), labels)["loss"]
    return {"loss": loss, "accuracy": softmax(Output(None, cosines), labels)["accuracy"]}


class Objective(NamedTuple):
    """An objective and what it needs.

    Attributes:
      function: (output, labels, class_codes) -> figures, with keyword options.
      heads: those that it trains.
      figures: the names of what it reports.
      fixed_codebook: whether it needs class codes from outside.
      nested: whether it has the option `prefixes`.
      needs: what the step gives it by keyword: the batch's `mask`, where an example's
        figures depend on the others, and `progress`.
    """

    function: Callable[..., Figures]
    heads: tuple[str, ...]
    figures: tuple[str, ...]
    fixed_codebook: bool = False
    nested: bool = False
    needs: tuple[str, ...] = ()


OBJECTIVES = {
    "softmax": Objective(softmax, ("linear", "bottleneck", "class_number"), ("loss", "accuracy")),
    "codebook": Objective(
        codebook, ("codebook",), ("loss", "accuracy", "logit_scale"), nested=True
    ),
    "instance": Objective(
        instance, ("code",), ("loss", "bits_right"), fixed_codebook=True, nested=True
    ),
    "hashnet": Objective(hashnet, ("code",), ("loss", "beta"), needs=("mask", "progress")),
    "greedy_hash": Objective(greedy_hash, ("bottleneck",), ("loss", "accuracy", "penalty")),
    "csq": Objective(csq, ("code",), ("loss", "bits_right", "penalty"), fixed_codebook=True),
    "orthohash": Objective(orthohash, ("code",), ("loss", "accuracy"), fixed_codebook=True),
}
