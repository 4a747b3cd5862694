"""One stage of training: data -> steps -> logs -> checkpoints."""

import contextlib
import dataclasses
import functools
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from llc_jax.codes.codebook import Codebook
from llc_jax.data import pipeline
from llc_jax.mesh import with_sharding
from llc_jax.training import state as states
from llc_jax.training.logging import StageLog
from llc_jax.training.preemption import Stopped, StopRequest
from llc_jax.training.state import State, Tree
from llc_jax.training.step import Step


class Diverged(ArithmeticError):
    """The loss or a weight is no longer finite."""


class StateStore(Protocol):
    """Keeps the states of a stage: on the disk, as `checkpoint.Checkpoints`, or in memory.

    Attributes:
      latest_step: of the newest state, None where there is none.
    """

    latest_step: int | None

    def check_space(self, abstract: State) -> None:
        """Raises an InputError if there is no room for such states."""

    def save(self, step: int, state: State) -> None:
        """Keeps the state, maybe later."""

    def restore(self, abstract: State) -> State:
        """Returns the newest state."""

    def wait(self) -> None:
        """Waits until all states are kept."""


class Log(Protocol):
    """Takes what a training has to say: `logging.RunLog`, or a progress bar."""

    def say(self, *lines: str) -> None:
        """Prints lines."""

    def stage(self, name: str, first_step: int, num_steps: int) -> AbstractContextManager[StageLog]:
        """Opens the log of a stage."""


@dataclasses.dataclass(frozen=True)
class Timetable:
    """Steps and epochs of a stage. An epoch may end within a step's batch.

    Attributes:
      num_examples: of an epoch.
      batch_size: examples of a step.
      epochs: of the stage.
      checkpoint_steps: steps between checkpoints within an epoch; 0 for none.
      min_checkpoint_steps: steps at least between the checkpoints at the ends of epochs.
      eval_epochs: epochs between evaluations; 0 for none before the end.
    """

    num_examples: int
    batch_size: int
    epochs: int
    checkpoint_steps: int = 0
    min_checkpoint_steps: int = 0
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

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is made after a step."""
        on_time = self.checkpoint_steps and step % self.checkpoint_steps == 0
        return bool(on_time) or step in self._saved_ends

    @functools.cached_property
    def _saved_ends(self) -> set[int]:
        """The steps after which epochs end, and which are far enough from those before."""
        saved = [0]
        for step in self.epoch_ends:
            if step - saved[-1] >= self.min_checkpoint_steps or step == self.num_steps:
                saved.append(step)
        return set(saved)

    def evaluates_after(self, epoch: int) -> bool:
        """Whether there is an evaluation after an epoch; the last has its own, of the stage."""
        return bool(self.eval_epochs) and epoch % self.eval_epochs == 0 and epoch < self.epochs


@dataclasses.dataclass(frozen=True)
class Training:
    """How one stage is trained.

    Attributes:
      name: of the stage.
      timetable: its steps and epochs.
      create: makes the state of an untrained network.
      step: the compiled train step.
      images: the training images.
      shard: the rows of each batch that this process makes.
      replicated: the sharding of the state.
      batched: the sharding of batches.
      seed: of the order of the images.
      learning_rate: step -> rate, for the log.
    """

    name: str
    timetable: Timetable
    create: Callable[[], State]
    step: Step
    images: pipeline.Images
    shard: pipeline.ProcessShard
    replicated: jax.sharding.Sharding
    batched: jax.sharding.Sharding
    seed: int
    learning_rate: Callable[[int], float]

    @functools.cached_property
    def abstract_state(self) -> State:
        """The tree of the state's shapes, with their sharding."""
        return with_sharding(jax.eval_shape(self.create), self.replicated)

    @functools.cached_property
    def begin_epoch(self) -> Callable[[State], State]:
        """Resets the state's metrics of the epoch, compiled."""
        return jax.jit(states.begin_epoch, out_shardings=self.replicated)

    def initial_state(self, weights: Tree | None = None, latent: np.ndarray | None = None) -> State:
        """Returns the state before the first step.

        Args:
          weights: `params` and `batch_stats` to start from, those of another stage or of a
            file; None for an untrained network.
          latent: float32[L, k], the latent codebook to start from, where one is learnt.
        """
        if weights is None:
            state = states.create_on(self.replicated, self.create)
        else:
            state = states.create_from(self.replicated, self.create, weights)
        if latent is not None and "latent" in state["params"]["head"]:
            head = state["params"]["head"] | {"latent": jax.device_put(latent, self.replicated)}
            state = state | {"params": state["params"] | {"head": head}}
        return self.begin_epoch(state)


def train(
    training: Training,
    initial_state: Callable[[], State],
    class_codes: np.ndarray | None,
    evaluate: Callable[[State], dict[str, float]],
    checkpoints: StateStore,
    log: Log,
    stop_request: StopRequest,
) -> State:
    """Trains a stage to its end.

    It starts from the newest checkpoint of the stage; where there is none, from
    `initial_state`: the weights of another stage or of a file, or untrained ones.

    Args:
      training: how.
      initial_state: makes the state before the first step.
      class_codes: uint32[L, W], where the codebook is fixed.
      evaluate: state -> figures, for the evaluations on the way.
      checkpoints: of the stage.
      log: of the run.
      stop_request: a step is the last one where it says so.

    Returns:
      The state after the last step, which is saved.

    Raises:
      Stopped: after saving, if the process was told to stop.
      InputError: if the disk has no room for the checkpoints.
      Diverged: if the loss or a weight is not finite; the last good checkpoint stays.
    """
    resumed = checkpoints.latest_step is not None
    state = checkpoints.restore(training.abstract_state) if resumed else initial_state()
    first_step, num_steps = int(state["step"]), training.timetable.num_steps
    if resumed and first_step < num_steps:
        log.say(f"{training.name}: continues after step {first_step} of {num_steps}")
    if first_step == num_steps:
        return state
    checkpoints.check_space(training.abstract_state)
    host_batches = pipeline.train_batches(
        training.images, training.shard, range(first_step, num_steps), training.seed
    )
    with (
        stop_request.training(),
        contextlib.closing(host_batches),
        _sparing_collector(),
        log.stage(training.name, first_step, num_steps) as stage_log,
    ):
        batches = pipeline.on_devices(host_batches, training.batched)
        codes = None if class_codes is None else jax.device_put(class_codes, training.replicated)
        return _take_steps(
            *(training, state, first_step, batches, codes),
            *(evaluate, checkpoints, stage_log, stop_request),
        )


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


def _take_steps(
    training: Training,
    state: State,
    first_step: int,
    batches: Iterator[dict[str, jax.Array]],
    class_codes: jax.Array | None,
    evaluate: Callable[[State], dict[str, float]],
    checkpoints: StateStore,
    log: StageLog,
    stop_request: StopRequest,
) -> State:
    timetable, clock, previous = training.timetable, _Clock(training.shard.batch_size), None
    for step, batch in enumerate(batches, start=first_step + 1):
        state, metrics = training.step(state, batch, class_codes)
        clock.start()
        # The device has its next step before the host waits for the last one.
        if previous is not None:
            loss = float(previous["loss"])
            _check(math.isfinite(loss), training.name, step - 1, checkpoints)
            log.progress(step - 1, loss, clock.tick())
        previous = metrics
        epoch = timetable.epoch_ends.get(step)
        stop = stop_request.after_step()
        saves = stop or timetable.saves_after(step)
        if epoch is None and not saves:
            continue
        _check(bool(_all_finite(state["params"])), training.name, step, checkpoints)
        if epoch is not None:
            values = _epoch_metrics(training, state, step, epoch, clock.images_per_second)
            evaluated = evaluate(state) if timetable.evaluates_after(epoch) else None
            log.write(step, values, evaluated)
            state = training.begin_epoch(state)
            clock.restart()
        if saves:
            checkpoints.save(step, state)
        if stop and step < timetable.num_steps:
            raise Stopped(
                f"Stopped in stage {training.name} after step {step} of {timetable.num_steps}, "
                "and saved:\nthe same command continues from there.",
                stop_request.signal,
            )
    checkpoints.wait()
    return state


def _epoch_metrics(
    training: Training, state: State, step: int, epoch: int, images_per_second: float
) -> dict[str, float]:
    """Returns the mean metrics of an epoch that has ended, for the log."""
    running = jax.device_get(state["epoch"])
    values = {"epoch": epoch}
    for name, total in running["sums"].items():
        values[name] = float(total) / int(running["steps"])
    if "codes" in running:
        values |= _codebook_metrics(running["codes"], state["params"]["head"]["latent"])
    values["learning_rate"] = float(training.learning_rate(step - 1))
    values["images_per_second"] = round(images_per_second, 1)
    return values


def _codebook_metrics(codes_before: np.ndarray, latent: jax.Array) -> dict[str, float]:
    """What the codebook did in an epoch: bits that flipped, unique codes, least distance."""
    codebook = Codebook.from_numpy(jax.device_get(latent))
    changed = np.bitwise_count(codes_before ^ codebook.packed).sum()
    return {
        "flipped_bits": float(changed) / codebook.latent.size,
        "unique_codes": codebook.num_unique,
        "min_distance": codebook.min_distance,
    }


def _check(finite: bool, name: str, step: int, checkpoints: StateStore) -> None:
    """Ends the stage of that name if a loss or a weight was not finite after a step."""
    if finite:
        return
    good = checkpoints.latest_step
    kept = f"The checkpoint of step {good} is kept." if good else "No checkpoint was made yet."
    raise Diverged(
        f"Stage {name} diverged: at step {step} the loss or a weight is not finite. {kept} "
        "Lower the learning rate, or warm up longer, and train in a new workdir."
    )


@jax.jit
def _all_finite(tree) -> jax.Array:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))


class _Clock:
    """Images per second of an epoch so far; the time to compile its first step is left out."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._start, self._steps = None, 0
        self.images_per_second = 0.0

    def restart(self) -> None:
        """Begins an epoch. The last step of the epoch before is still to be ticked off."""
        self._start, self._steps = None, -1

    def start(self) -> None:
        """Starts the clock, unless it runs, as a step begins that is compiled."""
        if self._start is None:
            self._start = time.perf_counter()

    def tick(self) -> float:
        """Counts a step as done; returns the images per second."""
        self._steps += 1
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        if self._steps > 0:
            self.images_per_second = self._steps * self._batch_size / elapsed
        return self.images_per_second
