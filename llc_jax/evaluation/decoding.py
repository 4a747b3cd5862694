"""How right and how fast each decoder is, on the code logits of the evaluation images."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.decoding import decoders
from llc_jax.evaluation.gathering import gather
from llc_jax.models.heads import Output

_ROUNDS = 7


class Decoding:
    """Accuracy and throughput of decoders.

    Args:
      encode: uint8[B, H, W, 3] -> Output, jitted.
      codebook: of the classes.
      names: of decoders, as `decoders.make` takes them.
    """

    def __init__(
        self, encode: Callable[[jax.Array], Output], codebook: Codebook, names: Sequence[str]
    ):
        self._encode = encode
        self._decoders = {name: decoders.make(name, codebook) for name in names}

    def run(self, batches: Iterable[dict[str, jax.Array]]) -> dict[str, float]:
        """Returns figures over all examples that the batches do not mask.

        For each decoder:

          <name>/accuracy: how often its label is the true one
          <name>/rejected: how often it gives none
          <name>/codes_per_second: from packed codes (logits where it needs them) to
            labels and distances, all examples in one call; median of seven
        """
        logits, labels, _ = gather(lambda images: self._encode(images).code_logits, batches)
        # On a CPU, decoders are fastest with NumPy arrays; else they use the accelerator.
        place = np.asarray if jax.default_backend() == "cpu" else jax.device_put
        logits, codes = place(logits), place(packing.pack(logits))
        figures = {}
        for name, decoder in self._decoders.items():
            given = logits if decoder.needs_logits else codes
            found = np.asarray(decoder(given)[0])
            figures[f"{name}/accuracy"] = float(np.mean(found == labels))
            figures[f"{name}/rejected"] = float(np.mean(found == decoders.REJECTED))
            figures[f"{name}/codes_per_second"] = len(labels) / _seconds(decoder, given)
        return figures


def _seconds(decoder: decoders.Decoder, given: jax.Array) -> float:
    def timed() -> float:
        start = time.perf_counter()
        jax.block_until_ready(decoder(given))
        return time.perf_counter() - start

    return statistics.median(timed() for _ in range(_ROUNDS))
