"""Which images a run is of: data.json in its workdir.

By this record a run notices that its images have changed, and finds that images that lie
elsewhere are still the same.
"""

import dataclasses
import json
import os
import pathlib

from llc_jax.data import embeddings, image_list, tfds, webdataset
from llc_jax.data.fingerprint import Fingerprint
from llc_jax.data.splits import open_splits
from llc_jax.errors import InputError
from llc_jax.experiment.config import DataConfig, RunConfig
from llc_jax.files import write_json
from llc_jax.objects import URL, is_url

DATA_FILE = "data.json"


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """The images that a run was begun with.

    Attributes:
      source, eval_source: as in the config, but absolute where they are paths.
      class_names: of the classes that are trained.
      fingerprint: of all images, before a protocol selects some.
    """

    source: str
    eval_source: str
    class_names: tuple[str, ...]
    fingerprint: Fingerprint

    @classmethod
    def load(cls, workdir: pathlib.Path) -> "DataRecord | None":
        """Reads the record of a workdir; None where it has none.

        Raises:
          InputError: if it is damaged.
        """
        path = workdir / DATA_FILE
        if not path.exists():
            return None
        try:
            tree = json.loads(path.read_text())
            fingerprint = Fingerprint(dict(tree["images"]), str(tree["sha256"]))
            places = (str(tree["source"]), str(tree["eval_source"]))
            return cls(*places, tuple(tree["class_names"]), fingerprint)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path} is damaged ({error!r}): remove it, and it is not checked whether the "
                "images of the run have changed."
            ) from error

    def save(self, workdir: pathlib.Path) -> None:
        """Writes the record into a workdir."""
        tree = dataclasses.asdict(self)
        fingerprint = tree.pop("fingerprint")
        write_json(workdir / DATA_FILE, tree | fingerprint)


def locate(source: str) -> str:
    """Returns what a config calls its images, but absolute where it is a path."""
    if not source or source == "digits" or source.startswith(tfds.PREFIX) or is_url(source):
        return source
    if source.startswith(embeddings.PREFIX):
        return embeddings.locate(source)
    listed = image_list.find(source)
    if listed is not None:
        return image_list.locate(listed)
    if webdataset.is_named(source):
        return webdataset.locate(source)
    return os.path.realpath(os.path.expanduser(source))


def _may_exist(source: str) -> bool:
    if source.startswith(embeddings.PREFIX):
        path = embeddings.path_of(source)
        return isinstance(path, URL) or path.exists()
    listed = image_list.find(source)
    if listed is not None:
        return listed.path.exists()
    if webdataset.is_named(source):
        return webdataset.exists(source)
    return not os.path.isabs(source) or os.path.exists(source)


def check_unchanged(
    record: DataRecord | None, data: DataConfig, fingerprint: Fingerprint, workdir: pathlib.Path
) -> None:
    """Refuses other images than those that a run was begun with.

    Args:
      record: of the run; None where it has none.
      data: names the images.
      fingerprint: of them.
      workdir: of the run, for the error.

    Raises:
      InputError: saying what has changed.
    """
    changes = record.fingerprint.changes(fingerprint) if record else ""
    if changes:
        raise InputError(
            f"The images of {data.source} are not those that {workdir} was begun with: {changes}. "
            "Choose another --workdir to train on them; `llc eval RUN --data IMAGES` evaluates a "
            "run on other images."
        )


def check_images(workdir: pathlib.Path, config: RunConfig) -> None:
    """Refuses a finished run whose images have changed; images that are gone are no matter.

    Raises:
      InputError: saying what has changed.
    """
    record = DataRecord.load(workdir)
    fingerprint = _fingerprint(config.data, config.seed) if record else None
    if fingerprint is not None:
        check_unchanged(record, config.data, fingerprint, workdir)


def compare(record: DataRecord | None, data: DataConfig, fingerprint: Fingerprint) -> str:
    """Says how the images of an evaluation differ from the run's; "" where they do not."""
    changes = record.fingerprint.changes(fingerprint) if record else ""
    if not changes:
        return ""
    if (locate(data.source), locate(data.eval_source)) != (record.source, record.eval_source):
        return "These are not the images that the run was begun with."
    return (
        f"The images have changed since the run was begun: {changes}. The evaluation images may "
        "include some that it was trained on."
    )


def find_images(
    record: DataRecord | None, data: DataConfig, path: str | None, seed: int
) -> DataConfig:
    """Returns which images a run is evaluated on.

    Args:
      record: of the run; None where it has none.
      data: of the run's config.
      path: of images, as `DataConfig.source`; None for the run's own. Where they are the run's
        own too, there or moved there, their evaluation images are meant; of others all, or
        their own evaluation images where they are split.
      seed: of the run.

    Raises:
      InputError: if the images cannot be opened, or the run's own are not there.
    """
    if record is not None:
        data = dataclasses.replace(data, source=record.source, eval_source=record.eval_source)
    if path is None and record is not None and not _may_exist(record.source):
        raise InputError(f"The run's images are not at {record.source}: name them with --data.")
    if path is None or locate(path) == locate(data.source):
        return data
    moved = dataclasses.replace(data, source=path)
    if record is not None and _fingerprint(moved, seed) == record.fingerprint:
        return moved
    protocol = {"name": ""}
    return dataclasses.replace(
        data, source=path, eval_source=path, protocol=protocol, held_out_classes=0
    )


def _fingerprint(data: DataConfig, seed: int) -> Fingerprint | None:
    """Returns the fingerprint of some images; None where they cannot be a run's."""
    try:
        splits = open_splits(data.source, data.eval_source, holdout=data.holdout, seed=seed)
    except InputError:
        return None
    return Fingerprint.of(splits)
