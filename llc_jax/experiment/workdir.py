"""The workdir of a run: its files, the config that it belongs to, and its finished stages.

config.json               what is trained
<stage>/checkpoints/      the weights
<stage>/codebook.npz      the class codes that the stage has learnt, or was trained with
<stage>/results.json      its figures, once it is finished
<stage>/confusion.csv     how many images of each class were taken for which
<stage>/pr_curve.npz      precision and recall, where retrieval is measured
codebook.npz              the class codes of the last stage that has some
metrics.jsonl             the figures of every epoch, and in tensorboard/ too
results.json              all figures, once the run is finished
evaluation.json           the figures of an evaluation without training
evaluation_confusion.csv  its confusions
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.experiment.config import RunConfig, StageConfig, as_json, parse

CONFIG_FILE = "config.json"
CODEBOOK_FILE = "codebook.npz"
RESULTS_FILE = "results.json"
EVALUATION_FILE = "evaluation.json"
EVALUATION_CONFUSIONS_FILE = "evaluation_confusion.csv"

# What may change between the parts of a run, as it cannot change the result.
_FREE_KEYS = ("data.workers", "checkpoint.keep", "checkpoint.steps")
# What may also change when a run is evaluated again, as it is only measured.
_MEASURED_KEYS = ("decoders", "retrieval")


@dataclasses.dataclass(frozen=True)
class StageDirectory:
    """The files of one stage.

    Attributes:
      path: the directory, named like the stage.
    """

    path: pathlib.Path

    @property
    def checkpoints(self) -> pathlib.Path:
        """The directory of its checkpoints."""
        return self.path / "checkpoints"

    @property
    def codebook_file(self) -> pathlib.Path:
        """The class codes that the stage has learnt, or was trained with."""
        return self.path / CODEBOOK_FILE

    @property
    def results_file(self) -> pathlib.Path:
        """Its figures; the file exists once the stage is finished."""
        return self.path / RESULTS_FILE

    @property
    def confusions_file(self) -> pathlib.Path:
        """How many evaluation images of each class were taken for which."""
        return self.path / "confusion.csv"

    @property
    def curves_file(self) -> pathlib.Path:
        """Its curves of precision and recall."""
        return self.path / "pr_curve.npz"

    @property
    def is_finished(self) -> bool:
        """Whether the stage is trained and evaluated."""
        return self.results_file.exists()

    def load_codebook(self) -> Codebook | None:
        """Returns the stage's class codes, None where it has none."""
        return Codebook.load(self.codebook_file) if self.codebook_file.exists() else None


class FinishedStage(NamedTuple):
    """A stage that is trained and evaluated, and what its run's config says of it."""

    name: str
    workdir: pathlib.Path
    directory: StageDirectory
    config: StageConfig
    run: RunConfig


def find_stage(path: str | os.PathLike) -> FinishedStage:
    """Returns the stage that a path names.

    Args:
      path: a run's workdir, for its last stage; or a stage's directory in it.

    Raises:
      InputError: if there is no such run, or the stage is not finished.
    """
    path = pathlib.Path(path).expanduser().absolute()
    if not path.is_dir():
        raise InputError(f"There is no run at {path}.")
    is_stage = not (path / CONFIG_FILE).exists() and (path.parent / CONFIG_FILE).exists()
    workdir = path.parent if is_stage else path
    config = read_config(workdir)
    name = path.name if is_stage else list(config.stages)[-1]
    directory = StageDirectory(workdir / name)
    if not directory.is_finished:
        raise InputError(
            f"The stage {name!r} of {workdir} is not finished: the command that started the run "
            "continues it."
        )
    return FinishedStage(name, workdir, directory, config.stages[name], config)


def read_config(workdir: pathlib.Path) -> RunConfig:
    """Reads the config of a workdir.

    Raises:
      InputError: if there is none, or it is damaged.
    """
    path = workdir / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{workdir} is not the workdir of a run: there is no {CONFIG_FILE} in it.")
    try:
        return parse(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged ({error}).") from error


def check_config(workdir: pathlib.Path, config: RunConfig, *, evaluation: bool = False) -> None:
    """Refuses a workdir that holds a run of another config.

    Args:
      workdir: of the run; it need not exist.
      config: of the run that is about to start or continue.
      evaluation: whether it is only evaluated, so that other figures may be measured.

    Raises:
      InputError: naming the keys that differ.
    """
    if not (workdir / CONFIG_FILE).exists():
        return
    free = (*_FREE_KEYS, *_MEASURED_KEYS) if evaluation else _FREE_KEYS
    old, new = _flatten(as_json(read_config(workdir))), _flatten(as_json(config))
    changed = [
        f"{key} is {old.get(key)!r} there and {new.get(key)!r} here"
        for key in sorted(old.keys() | new.keys())
        if key not in free and old.get(key) != new.get(key)
    ]
    if changed:
        more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"{workdir} holds a run of another config: {'; '.join(changed[:3])}{more}. "
            "Choose another --workdir, or remove that one."
        )


def on_first_process(write: Callable[..., None], *args: Any) -> None:
    """Writes on the first process while the others wait."""
    if jax.process_index() == 0:
        write(*args)
    wait_for_all("written")


def wait_for_all(what: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _flatten(tree: Any, path: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the leaves of a tree of dicts by their dotted paths."""
    if not isinstance(tree, dict) or not tree:
        return {".".join(path): tree}
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, (*path, key))
    return flat
