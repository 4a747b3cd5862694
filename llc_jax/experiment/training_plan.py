"""How a stage is trained, as its config says: objective, optimizer, steps."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax

from llc_jax.data import pipeline
from llc_jax.data.dataset import Dataset
from llc_jax.errors import InputError
from llc_jax.experiment.config import OptimizerConfig, RunConfig, StageConfig
from llc_jax.mesh import batch_sharding, replicated_sharding
from llc_jax.models.network import PureNetwork, Tree
from llc_jax.options import bind, choose
from llc_jax.training import optimizer
from llc_jax.training import state as states
from llc_jax.training import step as steps
from llc_jax.training.loop import Timetable, Training
from llc_jax.training.objectives import OBJECTIVES, Metrics

# Where there are few examples, a batch is at most such a part of them, but so many at least.
_BATCHES_PER_EPOCH, _MIN_BATCH = 4, 16


def plan_training(
    config: RunConfig, name: str, network: PureNetwork, dataset: Dataset, mesh: jax.sharding.Mesh
) -> Training:
    """Plans how a stage is trained.

    Args:
      config: of the run.
      name: of the stage.
      network: of the stage.
      dataset: its images.
      mesh: its devices.

    Raises:
      InputError: if a batch cannot be divided into microbatches, or those among the devices.
    """
    parts = mesh.size * config.num_microbatches
    if config.batch_size % parts:
        raise InputError(
            f"A batch of {config.batch_size} cannot be divided into {config.num_microbatches} "
            f"microbatches, each over {mesh.size} devices: choose a batch_size that is a "
            f"multiple of {parts}."
        )
    stage, position = config.stages[name], list(config.stages).index(name)
    timetable = Timetable(
        num_examples=len(dataset.train.labels),
        batch_size=config.batch_size,
        epochs=stage.epochs,
        checkpoint_steps=config.checkpoint.steps,
        min_checkpoint_steps=config.checkpoint.min_steps,
        eval_epochs=config.eval_epochs,
    )
    learning_rate, descent = _plan_optimizer(stage.optimizer, timetable, network.frozen)
    objective = OBJECTIVES[stage.objective["name"]]
    key = jax.random.fold_in(jax.random.key(config.seed), position)
    step = steps.make_step(
        network,
        _bind_objective(stage, config.prefixes),
        descent,
        dataset.augment,
        stage.mixup,
        needs=(*objective.needs, *(("targets",) if stage.teacher else ())),
        num_steps=timetable.num_steps,
        num_microbatches=config.num_microbatches,
    )
    return Training(
        name=name,
        timetable=timetable,
        create=functools.partial(states.create, network, descent, objective.metrics, key),
        step=steps.compile_step(step, mesh),
        images=dataset.train,
        shard=pipeline.ProcessShard.of(batch_sharding(mesh), config.batch_size),
        replicated=replicated_sharding(mesh),
        batched=batch_sharding(mesh),
        seed=int(np.random.SeedSequence([config.seed, position]).generate_state(1)[0]),
        learning_rate=learning_rate,
    )


def fit_to_size(config: RunConfig, num_examples: int, num_devices: int) -> RunConfig:
    """Returns a config whose batches and epochs suit few examples, if it has `min_steps`.

    Args:
      config: of the run.
      num_examples: for training.
      num_devices: among which a batch is divided.
    """
    if not config.min_steps:
        return config
    most = max(_MIN_BATCH, num_examples // _BATCHES_PER_EPOCH)
    batch_size = min(config.batch_size, most, num_examples)
    parts = num_devices * config.num_microbatches
    batch_size = max(1, batch_size // parts) * parts
    least = math.ceil(config.min_steps * batch_size / num_examples)
    stages = {
        name: dataclasses.replace(stage, epochs=max(stage.epochs, least))
        for name, stage in config.stages.items()
    }
    return dataclasses.replace(config, batch_size=batch_size, stages=stages)


def check_training(stage: StageConfig, where: str, num_microbatches: int) -> None:
    """Refuses an objective, or a schedule, that cannot be, or does not go with the rest.

    Args:
      stage: its config.
      where: the config is, for errors.
      num_microbatches: of the run.

    Raises:
      InputError: naming the key that is wrong.
    """
    name, head = stage.objective.get("name"), stage.head.get("name")
    objective = choose(name, OBJECTIVES, f"{where}.objective.name")
    _bind_objective(stage)
    if head not in objective.heads:
        raise InputError(
            f"{where}.head.name is {' or '.join(map(repr, objective.heads))} for the objective "
            f"{name!r}, not {head!r}."
        )
    if stage.mixup and "mask" in objective.needs:
        raise InputError(
            f"{where}.mixup is 0 for the objective {name!r}, which compares the images of a "
            f"batch, not {stage.mixup}."
        )
    if num_microbatches > 1 and "mask" in objective.needs:
        raise InputError(
            f"config.num_microbatches is 1 for the objective {name!r} of {where}, which compares "
            f"the images of a batch, not {num_microbatches}."
        )
    if stage.teacher and (stage.mixup or not objective.taught):
        raise InputError(
            f"{where}.teacher is for the objective 'instance' without mixup, not {name!r} with "
            f"mixup {stage.mixup}."
        )
    choose(stage.optimizer.name, optimizer.OPTIMIZERS, f"{where}.optimizer.name")
    choose(stage.optimizer.schedule, optimizer.SCHEDULES, f"{where}.optimizer.schedule")


def _bind_objective(stage: StageConfig, prefixes: Sequence[int] = ()) -> Callable[..., Metrics]:
    """Returns the function that a stage minimises, with its options."""
    options = dict(stage.objective)
    name = options.pop("name")
    function = bind(OBJECTIVES[name].function, options, f"The objective {name}")
    return functools.partial(function, prefixes=prefixes) if OBJECTIVES[name].nested else function


def _plan_optimizer(
    config: OptimizerConfig, timetable: Timetable, frozen: Tree
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Returns the learning rate at each step, and the optimizer that follows it."""
    steps_per_epoch = timetable.num_examples / timetable.batch_size
    learning_rate = optimizer.schedule(
        config.learning_rate,
        kind=config.schedule,
        num_steps=timetable.num_steps,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
    )
    descent = optimizer.OPTIMIZERS[config.name](
        learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        codebook_rate=config.codebook_rate,
        frozen=frozen,
    )
    return learning_rate, descent
