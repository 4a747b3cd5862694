"""The workdir of a run: its files, the config that it belongs to, and its finished stages.

config.json               what is trained
data.json                 on which images
environment.json          on which machine, with which versions and when, for each start
<stage>/checkpoints/      the weights
<stage>/codebook.npz      the class codes that the stage has learnt, or was trained with
<stage>/results.json      its figures, once it is finished
<stage>/confusion.csv     how many images of each class were taken for which
<stage>/pr_curve.npz      precision and recall, where retrieval is measured
<stage>/ood/              how well each score tells unknown images: a CSV for each; scores.npz
<stage>/examples.npz      what the report shows of the network: images, or weights of classes
codebook.npz              the class codes of the last stage that has some
metrics.jsonl             the figures of every epoch, and in tensorboard/ too
results.json              all figures, once the run is finished
report.html               all that is here to look at, as one page
figures/                  the figures of that page as PNG and SVG, where matplotlib is installed
evaluation.json           the figures of an evaluation without training
lock                      while a run is at work there: which process, where and since when
evaluation.lock           the same of an evaluation without training
evaluation_pr_curve.npz   its curves, where it measured retrieval
evaluation_confusion.csv  its confusions
evaluation_ood/           its tables of scores of unknown images
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from llc_jax import copies
from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.experiment.config import RunConfig, StageConfig, as_json, parse
from llc_jax.experiment.data_record import DATA_FILE, locate
from llc_jax.experiment.network import load_weights
from llc_jax.files import read_json
from llc_jax.mesh import catch_up, from_first_process
from llc_jax.models.network import PureNetwork, Tree

CONFIG_FILE = "config.json"
CODEBOOK_FILE = "codebook.npz"
RESULTS_FILE = "results.json"
REPORT_FILE = "report.html"
FIGURES_DIRECTORY = "figures"
OOD_SCORES_FILE = "scores.npz"
EVALUATION_FILE = "evaluation.json"
LOCK_FILE = "lock"
EVALUATION_LOCK_FILE = "evaluation.lock"
EVALUATION_CURVES_FILE = "evaluation_pr_curve.npz"
EVALUATION_CONFUSIONS_FILE = "evaluation_confusion.csv"
EVALUATION_OOD_DIRECTORY = "evaluation_ood"
CHECKPOINTS_DIRECTORY = "checkpoints"

# What may change between the parts of a run, as it cannot change the result.
_FREE_KEYS = (
    *("data.workers", "data.on_error", "checkpoint.keep", "checkpoint.steps"),
    *("remarks", "report"),
)
# What may also change when a run is evaluated again: what is measured, and on which images.
_MEASURED_KEYS = ("decoders", "retrieval", "ood.near", "ood.far")
_EVALUATION_KEYS = (*_MEASURED_KEYS, "batch_size", "num_microbatches", "data")


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
        return self.path / CHECKPOINTS_DIRECTORY

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
    def ood_directory(self) -> pathlib.Path:
        """Its scores of unknown images, and tables of how well each tells them."""
        return self.path / "ood"

    @property
    def examples_file(self) -> pathlib.Path:
        """What the report shows of its network."""
        return self.path / "examples.npz"

    @property
    def is_finished(self) -> bool:
        """Whether the stage is trained and evaluated."""
        return self.results_file.exists()

    def load_weights(self, network: PureNetwork, sharding: jax.sharding.Sharding) -> Tree:
        """Returns the `params` and `batch_stats` of its newest checkpoint."""
        return load_weights(self.checkpoints, network, sharding)

    def load_codebook(self) -> Codebook | None:
        """Returns the stage's class codes, None where it has none."""
        catch_up(self.codebook_file)
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
    path = copies.local(path, beside=[CONFIG_FILE]).expanduser().absolute()
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
    return parse(read_json(path))


def read_results(path: pathlib.Path) -> dict[str, float]:
    """Reads the figures of a `results.json`; there are none where there is no such file.

    Raises:
      InputError: if it is damaged.
    """
    try:
        return read_json(path) if path.exists() else {}
    except InputError as error:
        raise InputError(
            f"{error} Remove it, and the command that started the run measures again."
        ) from error


def check_config(workdir: pathlib.Path, config: RunConfig, *, evaluation: bool = False) -> None:
    """Refuses a workdir that holds a run of another config.

    What cannot change the weights that are trained so far may differ: so may a stage that has
    not started, and where the images lie if the run has a record of them.

    Args:
      workdir: of the run; it need not exist.
      config: of the run that is about to start or continue.
      evaluation: whether it is only evaluated, so that other figures may be measured, and on
        other images.

    Raises:
      InputError: naming the keys that differ.
    """
    if not (workdir / CONFIG_FILE).exists():
        return
    before = read_config(workdir)
    old, new = (_flatten(as_json(_with_located_data(some))) for some in (before, config))
    different = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    free = [*_FREE_KEYS, *(_EVALUATION_KEYS if evaluation else ())]
    if (workdir / DATA_FILE).exists():
        free += ["data.source", "data.eval_source"]
    if list(before.stages) == list(config.stages):
        free += [f"stages.{name}" for name in config.stages if not (workdir / name).exists()]
    changed = [key for key in different if not _is_within(key, free)]
    if not changed:
        return
    more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
    differences = "; ".join(
        f"{key} is {old.get(key)!r} there and {new.get(key)!r} here" for key in changed[:3]
    )
    remedy = "Choose"
    if evaluation:
        remedy = f"Let `llc eval {workdir}` take the config from there, or choose"
    elif all(_is_within(key, _MEASURED_KEYS) for key in changed):
        options = " ".join(
            f"--{key.removeprefix('ood.')} {' '.join(map(str, new[key]))}"
            for key in changed
            if new[key]
        )
        remedy = f"`llc eval {workdir} {options}` measures a finished run, or choose"
    raise InputError(
        f"{workdir} holds a run of another config: {differences}{more}. "
        f"{remedy} another --workdir, or remove that one."
    )


def on_first_process(write: Callable[..., None], *args: Any) -> None:
    """Writes on the first process while the others wait."""

    def write_here() -> list[str]:
        write(*args)
        return []

    from_first_process(write_here)


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


def _with_located_data(config: RunConfig) -> RunConfig:
    """Returns a config in which the images have the same name however it is spelt."""
    data, places = config.data, (locate(config.data.source), locate(config.data.eval_source))
    data = dataclasses.replace(data, source=places[0], eval_source=places[1])
    return dataclasses.replace(config, data=data)


def _is_within(key: str, parts: Sequence[str]) -> bool:
    """Whether a dotted key is one of the parts of a config, or lies in one."""
    return any(f"{key}.".startswith(f"{part}.") for part in parts)
