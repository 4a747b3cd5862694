"""Sets of unknown images, of no class that is trained, opened by their names.

A set is a dataset, as `splits.open_source` opens it, of whose classes nothing is asked; of one
that is split, its evaluation images. Others are at hand without further data: `unseen`, the
evaluation images of the classes that are held out of training, and `synthetic:KIND`, images
that are made of the evaluation images; see `synthetic.KINDS`.
"""

from collections.abc import Mapping

from llc_jax.data import synthetic
from llc_jax.data.pipeline import Images, Streamed
from llc_jax.data.sources import Source
from llc_jax.data.splits import Splits, open_source
from llc_jax.data.transforms import Crop, Transform
from llc_jax.data.vectors import Vectors, VectorSource
from llc_jax.errors import InputError
from llc_jax.options import choose

UNSEEN, SYNTHETIC = "unseen", "synthetic:"


def open_unknown(
    sources: Mapping[str, str], splits: Splits, crop: Crop, *, workers: int | None, skip: bool
) -> dict[str, Images]:
    """Opens sets of unknown images, which are read as the images for evaluation are.

    Args:
      sources: of each set by its name.
      splits: of the images that are trained and evaluated.
      crop: of the images for evaluation.
      workers, skip: as in `pipeline.Streamed`.

    Returns:
      The images of each set.

    Raises:
      InputError: if a set cannot be opened, or is of another kind than the run's data.
    """
    images = {}
    for name, source in sources.items():
        opened, transform = _open(name, source, splits, crop)
        _check_kind(name, opened, splits.train)
        if isinstance(opened, VectorSource):
            images[name] = Vectors(opened)
        else:
            images[name] = Streamed(opened, transform, workers, skip)
    return images


def _open(name: str, source: str, splits: Splits, crop: Crop) -> tuple[Source, Transform]:
    """Returns the images of a set, and how each is made ready."""
    if source == UNSEEN:
        if splits.unseen is None:
            raise InputError(
                f"The set {name} of unknown images is {UNSEEN!r}, but no class is held out: set "
                "config.data.held_out_classes."
            )
        return splits.unseen.evaluation, crop
    if source.startswith(SYNTHETIC):
        kind = source.removeprefix(SYNTHETIC)
        choose(kind, synthetic.KINDS, f"{SYNTHETIC}KIND of the set {name}")
        if isinstance(splits.evaluation, VectorSource):
            raise InputError(f"The set {name} is made of images, and the run has embeddings.")
        return splits.evaluation, synthetic.Altered(crop, kind)
    try:
        opened = open_source(source)
    except InputError as error:
        raise InputError(f"The set {name} of unknown images: {error}") from error
    return opened.evaluation if isinstance(opened, Splits) else opened, crop


def _check_kind(name: str, opened: Source, train: Source) -> None:
    """Raises an InputError unless both are images, or embeddings of one size."""
    given, expected = (
        f"embeddings of {source.size} numbers" if isinstance(source, VectorSource) else "images"
        for source in (opened, train)
    )
    if given != expected:
        raise InputError(
            f"The set {name} of unknown images has {given}, and the run is of {expected}."
        )
