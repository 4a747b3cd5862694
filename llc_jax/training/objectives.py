"""What each stage minimises: one pure function each.

An objective maps the network's output, the labels and the packed class codes (or
None, where the stage has no fixed codebook) to named metrics of each example,
float32[B]. The metric `loss` is minimised; the others are logged.

`softmax`, `codebook` and `instance` are those of LLC; the others are baselines.
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

Metrics = dict[str, jax.Array]


def softmax(
    output: Output, labels: jax.Array, class_codes: None = None, *, label_smoothing: float = 0.0
) -> Metrics:
    """Softmax cross-entropy of the class logits: the linear baseline.

    Args:
      output: class logits float32[B, L].
      labels: int32[B].
      class_codes: not used.
      label_smoothing: part of the target probability that is spread evenly over all classes.
    """
    del class_codes
    logits = output.class_logits
    label_logits = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    target_logits = (1 - label_smoothing) * label_logits
    target_logits += label_smoothing * jnp.mean(logits, axis=1)
    return {
        "loss": jax.nn.logsumexp(logits, axis=1) - target_logits,
        "accuracy": (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32),
    }


def codebook(
    output: Output,
    labels: jax.Array,
    class_codes: None = None,
    *,
    label_smoothing: float = 0.0,
    prefixes: Sequence[int] = (),
) -> Metrics:
    """Softmax cross-entropy of the logits s B(C) f: phase 1.

    `logit_scale` is the standard deviation of an example's class logits. Where it
    falls to 0 and stays there, the features have collapsed and the loss stays at ln L.

    Args:
      output: code logits f, class logits and class vectors s B(C).
      labels: int32[B].
      class_codes: not used.
      label_smoothing: as in `softmax`.
      prefixes: lengths of the nested codes, in bits; the loss is the mean over the
        whole code and its prefixes of these lengths.

    References:
      LLC, equation 2; section 4.4 for nested codebooks.
    """
    del class_codes
    smooth_softmax = functools.partial(softmax, labels=labels, label_smoothing=label_smoothing)
    metrics, prefix_losses = smooth_softmax(output), []
    for bits in prefixes:
        class_logits = output.code_logits[:, :bits] @ output.class_vectors[:, :bits].T
        prefix_losses.append(smooth_softmax(Output(None, class_logits))["loss"])
    return metrics | {
        "loss": sum(prefix_losses, metrics["loss"]) / (len(prefix_losses) + 1),
        "logit_scale": jnp.std(output.class_logits, axis=1),
    }


def instance(
    output: Output,
    labels: jax.Array,
    class_codes: jax.Array,
    *,
    prefixes: Sequence[int] = (),
    targets: jax.Array | None = None,
    label_share: float = 0.5,
) -> Metrics:
    """Binary cross-entropy of each code logit with the same bit of the class code: phase 2.

    Args:
      output: code logits float32[B, k].
      labels: int32[B].
      class_codes: uint32[L, ceil(k / 32)]. Only the B codes of the labels are
        unpacked, so the cost does not grow with L.
      prefixes: as in `codebook`.
      targets: float[B, k], the probability that a bit is +1, of a teacher; None for none.
      label_share: the part of a bit's target that is the label's, where there is a teacher. All
        of the teacher makes better classifiers, and worse codes for retrieval, than half.

    References:
      LLC, equation 3, averaged over the bits as in the official code.
    """
    logits = output.code_logits
    bits = packing.unpack(class_codes[labels], logits.shape[1])
    of_labels = (bits > 0).astype(jnp.float32)
    if targets is None:
        targets = of_labels
    else:
        targets = label_share * of_labels + (1 - label_share) * targets
    bit_losses = optax.sigmoid_binary_cross_entropy(logits, targets)
    losses = [jnp.mean(bit_losses[:, :bits], axis=1) for bits in (*prefixes, logits.shape[1])]
    return {
        "loss": sum(losses) / len(losses),
        "bits_right": jnp.mean((sign(logits) == bits).astype(jnp.float32), axis=1),
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
) -> Metrics:
    """HashNet: weighted negative log-likelihood of the pairwise similarity in a batch.

    A pair is similar if its labels are equal. With h = tanh(beta f), the model gives a pair
    the probability sigmoid(scale / k <h_i, h_j>) of being similar. All similar pairs together
    weigh as much as all dissimilar pairs. As beta grows, h approaches the signs of f:
    beta = (1 + growth t)^power, where t is the progress rounded down to a multiple of
    1 / stages.

    Args:
      output: code logits f, float32[B, k].
      labels: int32[B].
      class_codes: not used.
      mask: bool[B], False for examples that do not count.
      progress: float32[], the fraction of the stage's steps already taken, from 0 to 1.
      scale: the paper's alpha times k.
      growth, power, stages: of the schedule of beta.

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
    pair_logits = scale / num_bits * (h @ h.T)
    valid = mask[:, None] & mask[None] & ~jnp.eye(num_examples, dtype=bool)
    similar = labels[:, None] == labels[None]
    pair_losses = jax.nn.softplus(pair_logits) - jnp.where(similar, pair_logits, 0.0)
    pair_sets = (valid & similar, valid & ~similar)
    weights = [pairs / jnp.maximum(jnp.sum(pairs), 1) for pairs in pair_sets]
    # Scaled so that the mean over the examples is the weighted sum over the pairs.
    loss = jnp.sum(mask) * jnp.sum(pair_losses * sum(weights), axis=1)
    return {"loss": loss, "beta": jnp.full_like(loss, beta)}


def greedy_hash(
    output: Output, labels: jax.Array, class_codes: None = None, *, penalty: float = 1.0
) -> Metrics:
    """Greedy Hash: softmax cross-entropy of a classifier of the signs, and a cubic penalty.

    Args:
      output: code logits f float32[B, k], and class logits of their signs.
      labels: int32[B].
      class_codes: not used.
      penalty: weight of the quantization penalty: the mean over the bits of ||f_j| - 1|^3.

    References:
      Su et al., Greedy Hash, NeurIPS 2018. The penalty is 1 in its code for ImageNet, and 0.1
      in that for CIFAR-10.
    """
    metrics = softmax(output, labels, class_codes)
    cubic = jnp.mean(jnp.abs(jnp.abs(output.code_logits) - 1) ** 3, axis=1)
    return metrics | {"loss": metrics["loss"] + penalty * cubic, "penalty": cubic}


def csq(
    output: Output, labels: jax.Array, class_codes: jax.Array, *, penalty: float = 0.05
) -> Metrics:
    """CSQ: binary cross-entropy of (tanh(f) + 1) / 2 with the hash centre of the class.

    The cross-entropy is that of LLC's phase 2 for the code logits 2 f. The quantization
    penalty pushes |tanh(f)| towards 1; like the cross-entropy it is averaged over the bits.

    Args:
      output: code logits f, float32[B, k].
      labels: int32[B].
      class_codes: uint32[L, ceil(k / 32)], the hash centres: rows of a Hadamard matrix
        where there are enough.
      penalty: lambda, the weight of log cosh(|tanh(f_j)| - 1).

    References:
      Yuan et al., Central similarity quantization, CVPR 2020, for the two terms. The weight is
      that of its code, which has the square in place of log cosh, and a third term, for pairs.
    """
    metrics = instance(output._replace(code_logits=2 * output.code_logits), labels, class_codes)
    deviation = jnp.abs(jnp.tanh(output.code_logits)) - 1
    log_cosh = jnp.mean(jnp.logaddexp(deviation, -deviation) - jnp.log(2.0), axis=1)
    return metrics | {"loss": metrics["loss"] + penalty * log_cosh, "penalty": log_cosh}


def orthohash(
    output: Output,
    labels: jax.Array,
    class_codes: jax.Array,
    *,
    scale: float = 8.0,
    margin: float = 0.2,
) -> Metrics:
    """OrthoHash: softmax cross-entropy of the cosines with the class codes, with a margin.

    Args:
      output: code logits float32[B, k], of a head with `batch_norm`.
      labels: int32[B].
      class_codes: uint32[L, ceil(k / 32)], far from each other.
      scale: s, by which the cosines are multiplied to give logits.
      margin: m, which is subtracted from the cosine with the code of the label.

    References:
      Hoe et al., One loss for all, NeurIPS 2021; the default values are those of its code.
    """
    num_bits = output.code_logits.shape[1]
    codes = packing.unpack(class_codes, num_bits).astype(jnp.float32)
    norms = jnp.sqrt(jnp.sum(output.code_logits**2, axis=1, keepdims=True) + 1e-12)
    cosines = (output.code_logits / norms) @ codes.T / num_bits**0.5
    is_label = labels[:, None] == jnp.arange(len(codes))[None]
    loss = softmax(Output(None, scale * (cosines - margin * is_label)), labels)["loss"]
    return {"loss": loss, "accuracy": softmax(Output(None, cosines), labels)["accuracy"]}


class Objective(NamedTuple):
    """An objective and its requirements.

    Attributes:
      function: (output, labels, class_codes) -> metrics, with keyword options.
      heads: names of the heads that it can train.
      metrics: their names.
      fixed_codebook: whether it needs the codes of a fixed codebook.
      nested: whether it has the option `prefixes`.
      needs: keyword arguments that the train step passes to it: the batch's `mask`, where
        an example's metrics depend on the other examples, and `progress`.
      taught: whether it has the option `targets`.
    """

    function: Callable[..., Metrics]
    heads: tuple[str, ...]
    metrics: tuple[str, ...]
    fixed_codebook: bool = False
    nested: bool = False
    needs: tuple[str, ...] = ()
    taught: bool = False


OBJECTIVES = {
    "softmax": Objective(softmax, ("linear", "bottleneck", "class_number"), ("loss", "accuracy")),
    "codebook": Objective(
        codebook, ("codebook",), ("loss", "accuracy", "logit_scale"), nested=True
    ),
    "instance": Objective(
        instance, ("code",), ("loss", "bits_right"), fixed_codebook=True, nested=True, taught=True
    ),
    "hashnet": Objective(hashnet, ("code",), ("loss", "beta"), needs=("mask", "progress")),
    "greedy_hash": Objective(greedy_hash, ("bottleneck",), ("loss", "accuracy", "penalty")),
    "csq": Objective(csq, ("code",), ("loss", "bits_right", "penalty"), fixed_codebook=True),
    "orthohash": Objective(orthohash, ("code",), ("loss", "accuracy"), fixed_codebook=True),
}
