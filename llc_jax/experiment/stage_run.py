"""One stage of a run: trained, from where it stopped, then measured."""

import dataclasses

import jax
from clu import parameter_overview

from llc_jax.codes.codebook import Codebook
from llc_jax.experiment import codebook_sources
from llc_jax.experiment.examples import keep_examples
from llc_jax.experiment.extraction import on_features
from llc_jax.experiment.figures import classify
from llc_jax.experiment.results import measure_stage
from llc_jax.experiment.stage import Stage
from llc_jax.experiment.teaching import with_targets
from llc_jax.experiment.workdir import CODEBOOK_FILE, on_first_process, wait_for_all
from llc_jax.training import loop
from llc_jax.training.checkpoint import Checkpoints
from llc_jax.training.logging import RunLog
from llc_jax.training.preemption import StopRequest
from llc_jax.training.state import State


def run_stage(stage: Stage, log: RunLog, stop_request: StopRequest) -> dict[str, float]:
    """Trains a stage and measures it; leaves its checkpoints and its codebook."""
    images = stage.dataset.evaluation
    stage = on_features(stage, log, stop_request)
    codebook, training = _initial_codebook(stage), stage.training
    num_weights = parameter_overview.count_parameters(training.abstract_state["params"])
    timetable = training.timetable
    log.say(
        f"{stage.name}: {timetable.epochs} epochs, {timetable.num_steps} steps, "
        f"{num_weights:,} weights"
    )

    with Checkpoints(stage.directory.checkpoints, stage.checkpoints_kept) as checkpoints:
        log.say(*checkpoints.remarks)
        state, codebook = train_stage(stage, codebook, checkpoints, log, stop_request)
    if codebook is not None:
        for path in (stage.directory.codebook_file, stage.workdir / CODEBOOK_FILE):
            on_first_process(codebook.save, path)
    directory = stage.directory
    files = (directory.curves_file, directory.confusions_file, directory.ood_directory)
    measured = measure_stage(stage, state, codebook, *files)
    if stage.evaluations.examples:
        keep_examples(stage, images, state, measured.classified)
    return measured.figures


def train_stage(
    stage: Stage,
    codebook: Codebook | None,
    checkpoints: loop.StateStore,
    log: loop.Log,
    stop_request: StopRequest,
) -> tuple[State, Codebook | None]:
    """Trains a stage from its newest checkpoint, or from the weights that it starts from.

    Args:
      stage: the stage.
      codebook: that it is trained with, or starts from; None where it has none, or draws one.
      checkpoints: of the stage.
      log: of the run.
      stop_request: as in `loop.train`.

    Returns:
      The state after the last step, and the class codes: those that are learnt where some are.
    """
    latent = None if codebook is None else codebook.latent
    training = stage.training
    if stage.teacher is not None:
        training = dataclasses.replace(training, images=with_targets(stage, codebook))

    def initial_state() -> State:
        weights = stage.initial_weights() if stage.initial_weights else None
        return training.initial_state(weights, latent)

    state = loop.train(
        training,
        initial_state,
        class_codes=codebook.packed if stage.fixed_codebook else None,
        evaluate=lambda state: classify(stage, codebook, state).figures,
        checkpoints=checkpoints,
        log=log,
        stop_request=stop_request,
    )
    if "latent" not in state["params"]["head"]:
        return state, codebook
    latent = jax.device_get(state["params"]["head"]["latent"])
    return state, Codebook.from_numpy(latent, stage.dataset.class_names, codebook_sources.LEARNT)


def _initial_codebook(stage: Stage) -> Codebook | None:
    """Returns the codebook that a stage is given; the same when the stage continues."""
    codebook = stage.directory.load_codebook()
    wait_for_all("looked for the codebook")
    if codebook is None and stage.initial_codebook is not None:
        codebook = stage.initial_codebook()
        on_first_process(codebook.save, stage.directory.codebook_file)
    return codebook
