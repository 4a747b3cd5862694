"""Classification accuracy of class logits and of decoded instance codes."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from llc_jax.codes import hamming, packing
from llc_jax.models.heads import Output

TOP_K = 5


class Classified(NamedTuple):
    """What `Classification` finds for the N examples that are not masked.

    Attributes:
      figures: by name.
      labels: the true classes, int32[N].
      predictions: the classes they were given, int32[N]: the first of the nearest where the
        classes have codes, else the argmax of the class logits; None where there are neither.
      code_logits: float32[N, k]; None where the network has none.
      indices: int64[N], the places of the examples among all, with those that are masked.
    """

    figures: dict[str, float]
    labels: np.ndarray
    predictions: np.ndarray | None
    code_logits: np.ndarray | None
    indices: np.ndarray


class Classification:
    """Accuracy of class logits and of decoded instance codes.

    Args:
      encode: B inputs, images or vectors -> Output, jitted.
      class_codes: uint32[L, ceil(k / 32)], or None where the classes have no codes.
      prefixes: numbers of bits n; the figures of the first n bits alone are also reported.
    """

    def __init__(
        self,
        encode: Callable[[jax.Array], Output],
        class_codes: jax.Array | None = None,
        prefixes: tuple[int, ...] = (),
    ):
        self._encode = encode
        self._class_codes = class_codes
        self._prefixes = prefixes

    def run(self, batches: Iterable[dict[str, jax.Array]]) -> Classified:
        """Classifies all examples that the batches do not mask; the figures are means over them.

        Where the network has class logits:

          class_logits, class_logits_top5: accuracy of their argmax

        Where it has code logits f and the classes have codes, with g = B(f) and c the code
        of the true class:

          ed_official: how often g = c
          ed: the same, with credit 1 / (classes whose code is g) (exact decoding)
          mhd: credit 1 / (classes nearest to g), where the true one is among them
          mhd_first: how often the true one is the first of them
          soft, soft_top5: accuracy of the argmax of B(C) f
          bits_right: mean number of bits in which g = c

        The figures for the best five of L classes exist where L > 5. Those of the first
        n bits alone are `prefix_<n>/mhd` and so on.
        """
        batch_sums, classified = [], []
        for batch in batches:
            output, labels, mask = self._encode(batch["input"]), batch["label"], batch["mask"]
            sums, predictions = _sum_figures(
                output, labels, mask, self._class_codes, self._prefixes
            )
            batch_sums.append(sums)
            classified.append(((labels, predictions, output.code_logits), mask))
        batch_sums = jax.device_get(batch_sums)
        if not batch_sums:
            raise ValueError("There are no batches to evaluate.")
        totals = {name: math.fsum(sums[name] for sums in batch_sums) for name in batch_sums[0]}
        num_examples = totals.pop("examples")
        figures = {name: total / num_examples for name, total in totals.items()}
        gathered = [multihost_utils.process_allgather(arrays, tiled=True) for arrays in classified]
        mask = np.concatenate([of_batch for _, of_batch in gathered])
        of_batches = zip(*(arrays for arrays, _ in gathered), strict=True)
        labels, predictions, code_logits = (
            None if parts[0] is None else np.concatenate(parts)[mask] for parts in of_batches
        )
        return Classified(figures, labels, predictions, code_logits, np.flatnonzero(mask))


@jax.jit(static_argnums=4)
def _sum_figures(
    output: Output,
    labels: jax.Array,
    mask: jax.Array,
    class_codes: jax.Array | None,
    prefixes: tuple[int, ...],
) -> tuple[dict[str, jax.Array], jax.Array | None]:
    """Returns the sum of each figure over the examples of a batch, and their classes, int32[B]."""
    figures, predictions = {"examples": jnp.ones(labels.shape)}, None
    if output.class_logits is not None:
        figures |= _logit_figures("class_logits", output.class_logits, labels)
        predictions = jnp.argmax(output.class_logits, axis=1)
    if output.code_logits is not None and class_codes is not None:
        of_codes, predictions = _code_figures(output.code_logits, labels, class_codes)
        figures |= of_codes
        for bits in prefixes:
            signs = packing.unpack(class_codes, output.code_logits.shape[1])
            class_prefixes = packing.pack(signs[:, :bits])
            of_prefix, _ = _code_figures(output.code_logits[:, :bits], labels, class_prefixes)
            figures |= {f"prefix_{bits}/{name}": values for name, values in of_prefix.items()}
    sums = {
        name: jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0))
        for name, values in figures.items()
    }
    return sums, predictions


def _logit_figures(name: str, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Returns whether each example is right by class logits, bool[B], first and in the top 5."""
    figures = {name: jnp.argmax(logits, axis=1) == labels}
    if logits.shape[1] > TOP_K:
        _, top_classes = jax.lax.top_k(logits, TOP_K)
        figures[f"{name}_top{TOP_K}"] = jnp.any(top_classes == labels[:, None], axis=1)
    return figures


def _code_figures(
    code_logits: jax.Array, labels: jax.Array, class_codes: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns the figures of each example by its code logits, [B]; see `Classification.run`.

    And the first of the classes that are nearest, int32[B].
    """
    num_bits = code_logits.shape[1]
    codes = packing.pack(code_logits)
    nearest = hamming.nearest(codes, class_codes)
    distance = hamming.distance(codes, class_codes[labels])
    exact = distance == 0
    class_logits = code_logits @ packing.unpack(class_codes, num_bits).astype(jnp.float32).T
    figures = {
        "ed_official": exact,
        "ed": exact / nearest.ties,
        "mhd": (distance == nearest.distance) / nearest.ties,
        "mhd_first": nearest.index == labels,
        **_logit_figures("soft", class_logits, labels),
        "bits_right": num_bits - distance,
    }
    return figures, nearest.index
