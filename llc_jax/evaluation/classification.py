"""How often images are classified right, by each decoder."""

import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from llc_jax.codes import hamming, packing
from llc_jax.models.heads import Output

TOP = 5


class Classification:
    """Accuracy of class logits and of decoded instance codes.

    Args:
      encode: uint8[B, H, W, 3] -> Output, jitted.
      class_codes: uint32[L, ceil(k / 32)], or None where the classes have no codes.
      prefixes: also report what the first so many bits alone achieve.
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

    def run(self, batches: Iterable[dict[str, jax.Array]]) -> dict[str, float]:
        """Returns mean figures over all examples that the batches do not mask.

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
        totals = []
        for batch in batches:
            output = self._encode(batch["image"])
            total = _count(output, batch["label"], batch["mask"], self._class_codes, self._prefixes)
            totals.append(total)
        totals = jax.device_get(totals)
        if not totals:
            raise ValueError("There are no batches to evaluate.")
        sums = {name: math.fsum(total[name] for total in totals) for name in totals[0]}
        examples = sums.pop("examples")
        return {name: total / examples for name, total in sums.items()}


@jax.jit(static_argnums=4)
def _count(
    output: Output,
    labels: jax.Array,
    mask: jax.Array,
    class_codes: jax.Array | None,
    prefixes: tuple[int, ...],
) -> dict[str, jax.Array]:
    """Sums each figure over the examples of a batch."""
    figures = {"examples": jnp.ones(labels.shape)}
    if output.class_logits is not None:
        figures |= _of_logits("class_logits", output.class_logits, labels)
    if output.code_logits is not None and class_codes is not None:
        figures |= _of_codes(output.code_logits, labels, class_codes)
        for bits in prefixes:
            signs = packing.unpack(class_codes, output.code_logits.shape[1])
            class_prefixes = packing.pack(signs[:, :bits])
            shorter = _of_codes(output.code_logits[:, :bits], labels, class_prefixes)
            figures |= {f"prefix_{bits}/{name}": values for name, values in shorter.items()}
    return {
        name: jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0))
        for name, values in figures.items()
    }


def _of_logits(name: str, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    figures = {name: jnp.argmax(logits, axis=1) == labels}
    if logits.shape[1] > TOP:
        _, best = jax.lax.top_k(logits, TOP)
        figures[f"{name}_top{TOP}"] = jnp.any(best == labels[:, None], axis=1)
    return figures


def _of_codes(
    code_logits: jax.Array, labels: jax.Array, class_codes: jax.Array
) -> dict[str, jax.Array]:
    num_bits = code_logits.shape[1]
    codes = packing.pack(code_logits)
    nearest = hamming.nearest(codes, class_codes)
    distance = hamming.distance(codes, class_codes[labels])
    exact = distance == 0
    class_logits = code_logits @ packing.unpack(class_codes, num_bits).astype(jnp.float32).T
    return {
        "ed_official": exact,
        "ed": exact / nearest.ties,
        "mhd": (distance == nearest.distance) / nearest.ties,
        "mhd_first": nearest.index == labels,
        **_of_logits("soft", class_logits, labels),
        "bits_right": num_bits - distance,
    }
