"""One stage of training: data -> steps -> logs -> checkpoints."""

import contextlib
import dataclasses
import functools
import gc
import math
import signal
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from llc_jax.codes.codebook import Codebook
from llc_jax.data import pipeline
from llc_jax.training.checkpoint import Checkpoints
from llc_jax.training.logging import RunLog, StageLog
from llc_jax.training.preemption import Stopped, StopRequest
from llc_jax.training.state import State
from llc_jax.training.step import Step


class Diverged(ArithmeticError):
    """The loss or a weight is no longer finite."""


@dataclasses.dataclass(frozen=True)
class Timetable:
    """Steps and epochs of a stage. An epoch may end within a step's batch.

    Attributes:
      num_examples: of an epoch.
      batch_size: examples of a step.
      epochs: of the stage.
      checkpoint_steps: steps between checkpoints within an epoch; 0 for none.
      eval_epochs: epochs between evaluations; 0 for none before the end.
    """

    num_examples: int
    batch_size: int
    epochs: int
    checkpoint_steps: int = 0
    eval_epochs: int = 0

    @property
    def num_steps(self) -> int:
        """Steps of the whole stage."""
        return self.epochs * self.num_examples // self.batch_size

    @functools.cached_property
    def epoch_ends(self) -> dict[int, int]:
        """The steps after which epochs end -> those epochs, from 1."""
        return {
            epoch * self.num_examples // self.batch_size: epoch
            for epoch in range(1, self.epochs + 1)
        }


@dataclasses.dataclass(frozen=True)
class Stage:
    """All that one stage trains with.

    Attributes:
      name: of the stage.
      timetable: its steps and epochs.
      step: the compiled train step.
      begin_epoch: starts the state's figures of an epoch anew, compiled.
      initial: makes the state before the first step.
      abstract: that state's tree of shapes and shardings.
      images: the training images.
      part: what this process makes of each batch.
      sharding: of batches.
      seed: of the order of the images.
      class_codes: uint32[L, W] on the devices, where the stage has a fixed codebook.
      learning_rate: step -> rate, for the log.
      evaluate: state -> figures, for the evaluations on the way.
    """

    name: str
    timetable: Timetable
    step: Step
    begin_epoch: Callable[[State], State]
    initial: Callable[[], State]
    abstract: State
    images: pipeline.Images
    part: pipeline.ProcessShard
    sharding: jax.sharding.Sharding
    seed: int
    class_codes: jax.Array | None
    learning_rate: Callable[[int], float]
    evaluate: Callable[[State], dict[str, float]]


def train_stage(stage: Stage, checkpoints: Checkpoints, log: RunLog) -> State:
    """Trains a stage to its end, from its newest checkpoint where there is one.

    Returns:
      The state after the last step, which is saved.

    Raises:
      Stopped: after saving, if the process was told to stop.
      InputError: if the disk has no room for the checkpoints.
      Diverged: if the loss or a weight is not finite; the last good checkpoint stays.
    """
    resumed = checkpoints.latest_step is not None
    state = checkpoints.restore(stage.abstract) if resumed else stage.initial()
    first_step, num_steps = int(state["step"]), stage.timetable.num_steps
    if resumed and first_step < num_steps:
        log.say(f"{stage.name}: continues after step {first_step} of {num_steps}")
    if first_step == num_steps:
        return state
    checkpoints.check_space(stage.abstract)
    host_batches = pipeline.train_batches(
        stage.images, stage.part, range(first_step, num_steps), stage.seed
    )
    with (
        contextlib.closing(host_batches),
        StopRequest() as request,
        _sparing_collector(),
        log.stage(stage.name, first_step, num_steps) as stage_log,
    ):
        batches = pipeline.on_devices(host_batches, stage.sharding)
        return _take_steps(stage, state, first_step, batches, checkpoints, stage_log, request)


@contextlib.contextmanager
def _sparing_collector():
    """Lets Python's garbage collector pass over what lives already.

    A state of hundreds of arrays sets it off every other step; walking all modules
    each time doubles what the step costs in Python.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _take_steps(stage, state, first_step, batches, checkpoints, log, request) -> State:
    timetable, clock, before = stage.timetable, _Clock(stage.part.batch_size), None
    for step, batch in enumerate(batches, start=first_step + 1):
        state, figures = stage.step(state, batch, stage.class_codes)
        # The device has its next step before the host waits for the last one.
        if before is not None:
            loss = float(before["loss"])
            _check(math.isfinite(loss), stage, step - 1, checkpoints)
            log.progress(step - 1, loss, clock.tick())
        before = figures
        epoch = timetable.epoch_ends.get(step)
        stop = request.signal is not None or checkpoints.reached_preemption(step)
        on_time = timetable.checkpoint_steps and step % timetable.checkpoint_steps == 0
        if epoch is None and not on_time and not stop:
            continue
        _check(bool(_all_finite(state["params"])), stage, step, checkpoints)
        if epoch is not None:
            state = _end_epoch(stage, state, step, epoch, log, clock.images_per_second)
            clock.restart()
        checkpoints.save(step, state)
        if stop and step < timetable.num_steps:
            raise Stopped(
                f"Stopped in stage {stage.name} after step {step} of {timetable.num_steps}, "
                "and saved: the same command continues from there.",
                request.signal or signal.SIGTERM,
            )
    return state


def _end_epoch(stage, state, step, epoch, log: StageLog, images_per_second) -> State:
    """Logs the epoch's figures and starts the next one's."""
    running = jax.device_get(state["epoch"])
    values = {"epoch": epoch}
    for name, total in running["sums"].items():
        values[name] = float(total) / int(running["steps"])
    if "codes" in running:
        values |= _codebook_figures(running["codes"], state["params"]["head"]["latent"])
    values["learning_rate"] = float(stage.learning_rate(step - 1))
    values["images_per_second"] = round(images_per_second, 1)
    every = stage.timetable.eval_epochs
    if every and epoch % every == 0 and step < stage.timetable.num_steps:
        values |= stage.evaluate(state)
    log.write(step, values)
    return stage.begin_epoch(state)


def _codebook_figures(codes_before: np.ndarray, latent: jax.Array) -> dict[str, float]:
    """What the codebook did in an epoch: bits that flipped, unique codes, least distance."""
    codebook = Codebook.from_numpy(jax.device_get(latent))
    changed = np.bitwise_count(codes_before ^ codebook.packed).sum()
    return {
        "flipped_bits": float(changed) / codebook.latent.size,
        "unique_codes": codebook.num_unique,
        "min_distance": codebook.min_distance,
    }


def _check(finite: bool, stage: Stage, step: int, checkpoints: Checkpoints) -> None:
    if finite:
        return
    good = checkpoints.latest_step
    kept = f"The checkpoint of step {good} is kept." if good else "No checkpoint was made yet."
    raise Diverged(
        f"Stage {stage.name} diverged: at step {step} the loss or a weight is not finite. {kept} "
        "Lower the learning rate, or warm up longer, and train in a new workdir."
    )


@jax.jit
def _all_finite(tree) -> jax.Array:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))


class _Clock:
    """Images per second since the first step of an epoch, which may have compiled."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.images_per_second = 0.0
        self.restart()

    def restart(self) -> None:
        self._start, self._steps = None, 0

    def tick(self) -> float:
        now = time.perf_counter()
        if self._start is None:
            self._start = now
        else:
            self._steps += 1
            elapsed = max(now - self._start, 1e-9)
            self.images_per_second = self._steps * self._batch_size / elapsed
        return self.images_per_second
