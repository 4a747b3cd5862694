"""What each stage minimises: one pure function each.

An objective maps the network's output, the labels and the packed class codes (or
None, where the stage has no fixed codebook) to named figures for each example,
float32[B]. The one called `loss` is minimised; the others are logged.
"""

from collections.abc import Callable
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
    output: Output, labels: jax.Array, class_codes: None = None, *, label_smoothing: float = 0.0
) -> Figures:
    """Softmax cross-entropy of the logits s B(C) f: phase 1.

    `logit_scale` is the standard deviation of an example's class logits. Where it
    falls to 0 and stays there, the features have died: the loss is ln L for good.

    References:
      LLC, equation 2.
    """
    figures = softmax(output, labels, class_codes, label_smoothing=label_smoothing)
    return figures | {"logit_scale": jnp.std(output.class_logits, axis=1)}


def instance(output: Output, labels: jax.Array, class_codes: jax.Array) -> Figures:
    """Binary cross-entropy of each code logit with the class's bit: phase 2.

    Args:
      output: code logits float32[B, k].
      labels: int32[B].
      class_codes: uint32[L, ceil(k / 32)]. Only the B codes of the labels are
        unpacked, so the cost does not grow with L.

    References:
      LLC, equation 3, averaged over the bits as in the official code.
    """
    logits = output.code_logits
    targets = packing.unpack(class_codes[labels], logits.shape[1])
    losses = optax.sigmoid_binary_cross_entropy(logits, (targets > 0).astype(jnp.float32))
    return {
        "loss": jnp.mean(losses, axis=1),
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
