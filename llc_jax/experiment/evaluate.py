"""An evaluation without training: of a run, or of a PyTorch file."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from llc_jax.copies import as_path, local
from llc_jax.experiment import image_size
from llc_jax.experiment.config import UnknownConfig, as_json, parse
from llc_jax.experiment.data_record import DataRecord, find_images
from llc_jax.experiment.locking import locked_for_evaluation, opened
from llc_jax.experiment.plan import plan_evaluation
from llc_jax.experiment.results import measure_stage, show_results
from llc_jax.experiment.workdir import (
    EVALUATION_CONFUSIONS_FILE,
    EVALUATION_CURVES_FILE,
    EVALUATION_FILE,
    EVALUATION_OOD_DIRECTORY,
    check_config,
    on_first_process,
    read_config,
)
from llc_jax.files import make_directory, write_json
from llc_jax.mesh import make_mesh
from llc_jax.training.logging import RunLog


def evaluate(
    tree: Mapping[str, Any],
    workdir: str | os.PathLike,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, float]:
    """Evaluates the last stage of a config without training.

    A run may be at work in the workdir: what is evaluated is its newest checkpoint.

    Args:
      tree: the config. Where the stage has not been trained in the workdir, its
        `init_from` is a file of weights, and of the codebook if that is "learnt".
      workdir: of the run, and where `evaluation.json` is written.
      devices: as in `run`.

    Returns:
      The stage's figures by their flat names.

    Raises:
      InputError: if the config, the data, the workdir or the file cannot be used, or another
        evaluation is at work there.
      WriteFailed: if the disk is full, or the workdir was removed.
    """
    with opened(workdir) as directory:
        return _evaluate(tree, directory, devices)


def _evaluate(
    tree: Mapping[str, Any], workdir: pathlib.Path, devices: Sequence[jax.Device] | None
) -> dict[str, float]:
    config = image_size.complete(parse(tree), workdir)
    log = RunLog(workdir, primary=jax.process_index() == 0)
    check_config(workdir, config, evaluation=True)
    plan = plan_evaluation(config, workdir, make_mesh(devices))
    log.say(*plan.summary)
    make_directory(workdir)
    (stage,) = plan.stages
    names = (EVALUATION_CURVES_FILE, EVALUATION_CONFUSIONS_FILE, EVALUATION_OOD_DIRECTORY)
    curves_file, confusions_file, ood_directory = (workdir / name for name in names)
    with locked_for_evaluation(workdir):
        weights = jax.device_put(stage.initial_weights(), stage.replicated)
        codebook = stage.initial_codebook() if stage.initial_codebook else None
        files = (curves_file, confusions_file, ood_directory)
        results = measure_stage(stage, weights, codebook, *files).figures
        on_first_process(write_json, workdir / EVALUATION_FILE, results)
    show_results(results, config, confusions_file, log)
    log.say(f"Figures: {workdir / EVALUATION_FILE}")
    return results


def evaluate_again(
    workdir: str | os.PathLike,
    *,
    source: str | None = None,
    decoders: Sequence[str] = (),
    retrieval: Sequence[int] = (),
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, float]:
    """Evaluates the last stage of a run once more, as the config in its workdir says.

    Args:
      workdir: of the run, and where `evaluation.json` is written.
      source: of other images, as `config.DataConfig.source`, of which all are evaluated, or
        their evaluation images where they are split; or of the run's own, where they have moved.
      decoders: to measure; by default those of the config.
      retrieval: the ranks at which retrieval is measured; by default those of the config.
      near, far: sets of unknown images, as `config.UnknownConfig`; by default those of the
        config, where neither is given.
      devices: as in `run`.

    Returns, Raises: as `evaluate`.
    """
    workdir, mesh = as_path(workdir).expanduser().absolute(), make_mesh(devices)
    directory = local(workdir)
    config = read_config(directory)
    data = find_images(DataRecord.load(directory), config.data, source, config.seed)
    config = dataclasses.replace(
        config,
        data=data,
        decoders=tuple(decoders) or config.decoders,
        retrieval=tuple(retrieval) or config.retrieval,
        ood=UnknownConfig(tuple(near), tuple(far)) if near or far else config.ood,
        # The devices may be other than those that it was trained on; nothing is trained.
        num_microbatches=1,
        batch_size=-(-config.batch_size // mesh.size) * mesh.size,
    )
    return evaluate(as_json(config), workdir, devices)
