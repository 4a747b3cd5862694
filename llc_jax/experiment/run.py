"""A run: a plan's stages in order, each trained, then measured. It continues where it stopped."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from llc_jax.data.dataset import Dataset
from llc_jax.experiment import environment, image_size
from llc_jax.experiment.config import as_json, parse
from llc_jax.experiment.data_record import check_images
from llc_jax.experiment.locking import locked, opened
from llc_jax.experiment.plan import Plan, plan_run
from llc_jax.experiment.results import show_results
from llc_jax.experiment.run_report import report_lines
from llc_jax.experiment.stage_run import run_stage
from llc_jax.experiment.workdir import (
    CONFIG_FILE,
    RESULTS_FILE,
    StageDirectory,
    check_config,
    on_first_process,
    read_results,
)
from llc_jax.files import make_directory, write_json
from llc_jax.mesh import make_mesh
from llc_jax.training.logging import RunLog
from llc_jax.training.preemption import StopRequest


def run(
    tree: Mapping[str, Any],
    workdir: str | os.PathLike,
    devices: Sequence[jax.Device] | None = None,
    stop_request: StopRequest | None = None,
) -> dict[str, float]:
    """Trains and evaluates all stages of a config, or what is left of them.

    Args:
      tree: the config, as in `configs/`.
      workdir: where the run is kept, a directory or a URL; made if missing.
      devices: which to use; by default all of all processes.
      stop_request: ends the training early; by default signals to this process do.

    Returns:
      The final figures by their flat names, as in `results.json`.

    Raises:
      InputError: if the config, the data or the workdir cannot be used, or another run is at
        work there.
      WriteFailed: if the disk is full, or the workdir was removed; checkpoints stay.
      Stopped: if the process was told to stop; progress is saved.
      Diverged: if a loss or a weight is no longer finite.
    """
    with opened(workdir) as directory:
        return _run(tree, directory, devices, stop_request or StopRequest())


def _run(
    tree: Mapping[str, Any],
    workdir: pathlib.Path,
    devices: Sequence[jax.Device] | None,
    stop_request: StopRequest,
) -> dict[str, float]:
    config = image_size.complete(parse(tree), workdir)
    log = RunLog(workdir, primary=jax.process_index() == 0)
    check_config(workdir, config)
    results = read_results(workdir / RESULTS_FILE)
    was_finished = bool(results)
    if was_finished:
        check_images(workdir, config)
        log.say("This run is finished.")
    else:
        plan = plan_run(config, workdir, make_mesh(devices))
        make_directory(workdir)
        with locked(workdir):
            # Another run may have been at work there in the meantime.
            check_config(workdir, config)
            log.say(*plan.summary)
            on_first_process(write_json, workdir / CONFIG_FILE, as_json(config))
            on_first_process(plan.record.save, workdir)
            on_first_process(environment.record, workdir)
            results = _run_plan(plan, log, stop_request)
            on_first_process(write_json, workdir / RESULTS_FILE, results)
    last_stage = StageDirectory(workdir / list(config.stages)[-1])
    show_results(results, config, last_stage.confusions_file, log)
    if config.report and jax.process_index() == 0:
        log.say(*report_lines(workdir, anew=not was_finished))
    log.say(f"Run: {workdir}")
    return results


def _run_plan(plan: Plan, log: RunLog, stop_request: StopRequest) -> dict[str, float]:
    results = {}
    for number, stage in enumerate(plan.stages, start=1):
        figures = read_results(stage.directory.results_file)
        if not figures:
            later = [other.training for other in plan.stages[number:]]
            later_steps = sum(training.timetable.num_steps for training in later)
            log.expect(later_steps, stage.training.timetable.batch_size)
            figures = run_stage(stage, log, stop_request)
            on_first_process(write_json, stage.directory.results_file, figures)
        results |= figures
    return results | (_count_damaged(plan.dataset) if plan.skips_damaged else {})


def _count_damaged(dataset: Dataset) -> dict[str, int]:
    """Returns how many images any process has skipped since the run was started."""
    images = {"train": dataset.train, "evaluation": dataset.evaluation}
    images |= {f"unknown/{name}": split for name, split in dataset.unknown.items()}
    if dataset.without_protocol is not None:
        images["whole_train"] = dataset.without_protocol.train
        images["whole_evaluation"] = dataset.without_protocol.evaluation
    counts = {}
    for name, split in images.items():
        damaged = np.zeros(len(split.labels) + len(split.damaged), bool)
        damaged[list(split.damaged)] = True
        if jax.process_count() > 1:
            damaged = np.any(multihost_utils.process_allgather(damaged), axis=0)
        counts[f"data/damaged_{name}"] = int(damaged.sum())
    return counts
