"""What each stage minimises: one pure function each.

An objective maps the network's output, the labels and the packed class codes (or
None, where the stage has no fixed codebook) to named figures for each example,
float32[B]. The one called `loss` is minimised; the others are logged.
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


class Objective(NamedTuple):
    """An objective and what it needs.

    Attributes:
      function: (output, labels, class_codes) -> figures, with keyword options.
      head: the head that it trains.
      figures: the names of what it reports.
      fixed_codebook: whether it needs class codes from outside.
    """

    function: Callable[..., Figures]
    head: str
    figures: tuple[str, ...]
    fixed_codebook: bool = False


OBJECTIVES = {
    "softmax": Objective(softmax, "linear", ("loss", "accuracy")),
    "codebook": Objective(codebook, "codebook", ("loss", "accuracy", "logit_scale")),
    "instance": Objective(instance, "code", ("loss", "bits_right"), fixed_codebook=True),
}
