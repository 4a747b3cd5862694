"""The workdir of a finished run, made of weights and a codebook that are there already."""

import pathlib
import shutil
import tempfile

from llc_jax import objects
from llc_jax.codes.codebook import Codebook
from llc_jax.copies import publish, working_copy
from llc_jax.errors import InputError
from llc_jax.experiment.config import RunConfig, as_json
from llc_jax.experiment.workdir import (
    CODEBOOK_FILE,
    CONFIG_FILE,
    RESULTS_FILE,
    StageDirectory,
)
from llc_jax.files import make_directory, write_json
from llc_jax.models.network import Tree
from llc_jax.objects import URL
from llc_jax.training.checkpoint import Checkpoints


def check_new(workdir: pathlib.Path | URL) -> None:
    """Raises an InputError unless a directory is empty, or there is none."""
    if isinstance(workdir, URL):
        exists = bool(objects.find(workdir))
    else:
        exists = workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir()))
    if exists:
        raise InputError(f"{workdir} exists already: name a new directory.")


def write_run(
    workdir: pathlib.Path | URL, config: RunConfig, weights: Tree, codebook: Codebook
) -> None:
    """Writes the workdir of a run that is finished; it appears when it is complete.

    Args:
      workdir: to make; must not exist, or be empty.
      config: of the run.
      weights: `params` and `batch_stats` of its last stage.
      codebook: of that stage.

    Raises:
      InputError: if the directory is not empty.
      WriteFailed: if it cannot be written.
    """
    check_new(workdir)
    with working_copy(workdir) as copy:
        _write_run(copy, config, weights, codebook)
        publish(copy)


def _write_run(workdir: pathlib.Path, config: RunConfig, weights: Tree, codebook: Codebook) -> None:
    make_directory(workdir.parent)
    with tempfile.TemporaryDirectory(dir=workdir.parent, prefix=f".{workdir.name}.") as temporary:
        run = pathlib.Path(temporary) / "run"
        directory = StageDirectory(run / list(config.stages)[-1])
        write_json(run / CONFIG_FILE, as_json(config))
        with Checkpoints(directory.checkpoints) as checkpoints:
            checkpoints.save(0, weights)
        for path in (directory.codebook_file, run / CODEBOOK_FILE):
            codebook.save(path)
        figures = {
            "codebook/unique": codebook.num_unique,
            "codebook/min_distance": codebook.min_distance,
        }
        for path in (directory.results_file, run / RESULTS_FILE):
            write_json(path, figures)
        if workdir.exists():
            workdir.rmdir()
        shutil.move(run, workdir)
