"""Accuracy and throughput of decoders, on the code logits of the evaluation images."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.decoding import decoders
from llc_jax.evaluation.gathering import add_up, embed_images
from llc_jax.models.heads import Output

_REPETITIONS = 7


class Decoding:
    """Accuracy and throughput of decoders.

    Args:
      encode: uint8[B, H, W, 3] -> Output, jitted.
      codebook: the class codes.
      names: the decoders, as `decoders.make` takes their names.
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
          <name>/rejected: how often it gives no label
          <name>/codes_per_second: from packed codes (logits where it needs them) to
            labels and distances, all examples of this process in one call; median of seven
        """
        logits, labels, *_ = embed_images(lambda inputs: self._encode(inputs).code_logits, batches)
        # On a CPU, decoders are fastest with NumPy arrays; else they use the accelerator.
        place = np.asarray if jax.default_backend() == "cpu" else jax.device_put
        logits, codes = place(logits), place(packing.pack(logits))
        figures = {}
        for name, decoder in self._decoders.items():
            inputs = logits if decoder.needs_logits else codes
            predictions = np.asarray(decoder(inputs)[0])
            counts = {
                "accuracy": np.sum(predictions == labels),
                "rejected": np.sum(predictions == decoders.REJECTED),
                "examples": np.array(len(labels)),
            }
            counts = add_up(counts)
            num_examples = counts.pop("examples")
            figures |= {f"{name}/{key}": float(n / num_examples) for key, n in counts.items()}
            figures[f"{name}/codes_per_second"] = len(labels) / _median_seconds(decoder, inputs)
        return figures


def _median_seconds(decoder: decoders.Decoder, inputs: jax.Array) -> float:
    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(decoder(inputs))
        return time.perf_counter() - start

    return statistics.median(seconds() for _ in range(_REPETITIONS))
