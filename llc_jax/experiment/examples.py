"""What the report shows of a stage's network, kept in a file of the stage.

These are the images of `report.examples`, of which only those few are read; and the weights of
a linear classifier, which represent its classes.
"""

from typing import NamedTuple

import cv2
import jax
import numpy as np

from llc_jax.data.pipeline import Images, ProcessShard
from llc_jax.data.vectors import Vectors
from llc_jax.evaluation.classification import Classified
from llc_jax.experiment.stage import Stage
from llc_jax.experiment.workdir import on_first_process
from llc_jax.files import write_arrays
from llc_jax.report.examples import Examples, choose, shown
from llc_jax.training.state import State

# The side of a thumbnail at most, in pixels, and its quality as WebP, of 100.
_SIDE, _QUALITY = 72, 80
# Images that one thread reads at a time.
_READ = 16


class Chosen(NamedTuple):
    """The order of chosen images; see `data.pipeline.Order`."""

    indices: np.ndarray
    seed: int = 0

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Maps int64[n] positions to int64[n] images, -1 beyond the last one."""
        inside = positions < len(self.indices)
        return np.where(inside, self.indices[np.where(inside, positions, 0)], -1)


def keep_examples(stage: Stage, images: Images, weights: State, classified: Classified) -> None:
    """Writes what the report shows of a stage's network; of some there is nothing.

    Args:
      stage: that is trained.
      images: those that were evaluated, as they are before any frozen backbone.
      weights: `params` and `batch_stats`.
      classified: what the evaluation found for the images.
    """
    path = stage.directory.examples_file
    if stage.head == "linear":
        kernel = jax.device_get(weights["params"]["head"]["classifier"]["kernel"])
        on_first_process(write_arrays, path, {"class_weights": kernel.T})
    elif stage.has_binary_codes and not isinstance(images, Vectors):
        on_first_process(
            lambda: write_arrays(path, _make_examples(stage, images, classified).as_arrays())
        )


def _make_examples(stage: Stage, images: Images, classified: Classified) -> Examples:
    chosen, choice = shown(choose(classified.code_logits))
    predictions = classified.predictions
    unknown = np.full(len(classified.labels), -1, np.int32)
    return Examples(
        choice=choice,
        thumbnails=_thumbnails(images, classified.indices[chosen]),
        codes=classified.code_logits[chosen] >= 0,
        labels=classified.labels[chosen],
        predictions=(unknown if predictions is None else predictions)[chosen],
        class_names=tuple(map(str, stage.dataset.class_names)),
    )


def _thumbnails(images: Images, indices: np.ndarray) -> tuple[bytes, ...]:
    """Reads some images, as the network sees them, and returns them small, as WebP."""
    steps = range(-(-len(indices) // _READ))
    shard = ProcessShard(_READ, np.arange(_READ))
    batches = images.batches(Chosen(indices), shard, steps)
    pixels = np.concatenate([batch["input"] for batch in batches])[: len(indices)]
    return tuple(map(_thumbnail, pixels))


def _thumbnail(image: np.ndarray) -> bytes:
    side = min(_SIDE, len(image))
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    options = [cv2.IMWRITE_WEBP_QUALITY, _QUALITY]
    _, encoded = cv2.imencode(".webp", np.ascontiguousarray(small[..., ::-1]), options)
    return encoded.tobytes()
