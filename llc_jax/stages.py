"""From a stage's config to what training and evaluation need of it."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import optax
from jax.sharding import Mesh, Sharding

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.config import OptimizerConfig, RunConfig, StageConfig, bind, choose
from llc_jax.data import pipeline
from llc_jax.data.dataset import Dataset
from llc_jax.errors import InputError
from llc_jax.evaluation.classification import Classification
from llc_jax.mesh import replicated, split_by_rows
from llc_jax.models import registry
from llc_jax.models.network import PureNetwork, Tree
from llc_jax.training import optimizer
from llc_jax.training import state as states
from llc_jax.training import step as steps
from llc_jax.training.checkpoint import Checkpoints, restore_weights
from llc_jax.training.loop import Stage, Timetable
from llc_jax.training.objectives import OBJECTIVES, Figures
from llc_jax.training.state import State

LEARNT = "learnt"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all stages of a run share: its config, where it is kept, its images, its devices."""

    config: RunConfig
    workdir: pathlib.Path
    data: Dataset
    mesh: Mesh

    @property
    def whole(self) -> Sharding:
        """The sharding of what every device holds."""
        return replicated(self.mesh)

    @property
    def rows(self) -> Sharding:
        """The sharding of batches."""
        return split_by_rows(self.mesh)

    def network(self, stage: str) -> PureNetwork:
        """Builds the network of a stage."""
        head, classes = self.config.stages[stage].head, len(self.data.class_names)
        return build_network(self.config, head, classes)

    def checkpoints(self, stage: str) -> Checkpoints:
        """Opens the checkpoints of a stage."""
        directory = checkpoint_directory(self.workdir, stage)
        return Checkpoints(directory, self.config.checkpoint.keep)


def checkpoint_directory(workdir: pathlib.Path, stage: str) -> pathlib.Path:
    """Returns where the checkpoints of a stage are."""
    return workdir / stage / "checkpoints"


def load_weights(directory: pathlib.Path, network: PureNetwork, sharding: Sharding) -> Tree:
    """Returns the `params` and `batch_stats` of a network from its newest checkpoint."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    abstract = dict(zip(("params", "batch_stats"), shapes, strict=True))
    return restore_weights(directory, _with_sharding(abstract, sharding))


def build_network(config: RunConfig, head: dict, num_classes: int) -> PureNetwork:
    """Builds the config's network with a head."""
    return registry.build(config.model, head, num_classes=num_classes, num_bits=config.num_bits)


def check_stage(setting: Setting, name: str) -> None:
    """Raises an InputError for whatever would stop the stage later."""
    stage, where = setting.config.stages[name], f"config.stages.{name}"
    objective_name, head_name = stage.objective.get("name"), stage.head.get("name")
    objective = choose(objective_name, OBJECTIVES, f"{where}.objective.name")
    _objective(stage)
    if head_name != objective.head:
        raise InputError(
            f"{where}.head.name is {objective.head!r} for the objective {objective_name!r}, "
            f"not {head_name!r}."
        )
    choose(stage.optimizer.schedule, optimizer.SCHEDULES, f"{where}.optimizer.schedule")
    setting.network(name)
    if objective.fixed_codebook and not stage.codebook:
        raise InputError(f"{where}.codebook is {LEARNT!r} or a file, not empty.")
    if stage.codebook not in ("", LEARNT):
        read_codebook(stage.codebook, setting)


def read_codebook(path: str | pathlib.Path, setting: Setting) -> Codebook:
    """Reads a codebook and checks that it fits the run's bits and classes."""
    codebook, classes = Codebook.load(path), setting.data.class_names
    expected = (len(classes), setting.config.num_bits)
    if codebook.latent.shape != expected:
        raise InputError(
            f"The codebook {path} is of {codebook.num_classes} classes and {codebook.num_bits} "
            f"bits; the run has {expected[0]} classes and config.num_bits={expected[1]}."
        )
    numbered = codebook.class_names == tuple(map(str, range(len(classes))))
    if not numbered and codebook.class_names != classes:
        raise InputError(f"The classes of the codebook {path} are not those of the data.")
    return dataclasses.replace(codebook, class_names=classes)


def build_stage(setting: Setting, name: str, codebook: Codebook | None) -> Stage:
    """Builds what `train_stage` needs.

    Args:
      setting: the run's.
      name: of the stage.
      codebook: the fixed one of a stage that has it, or where a learnt one starts.
    """
    config, data, mesh = setting.config, setting.data, setting.mesh
    stage, position = config.stages[name], list(config.stages).index(name)
    timetable = Timetable(
        num_examples=len(data.train.labels),
        batch_size=config.batch_size,
        epochs=stage.epochs,
        checkpoint_steps=config.checkpoint.steps,
        eval_epochs=config.eval_epochs,
    )
    rate, sgd = _optimizer(stage.optimizer, timetable)
    network = setting.network(name)
    objective = OBJECTIVES[stage.objective["name"]]
    key = jax.random.fold_in(jax.random.key(config.seed), position)
    create = functools.partial(states.create, network, sgd, objective.figures, key)
    step = steps.make_step(network, _objective(stage), sgd, data.augment)
    fixed_codes = codebook is not None and objective.fixed_codebook

    begin_epoch = jax.jit(states.begin_epoch, out_shardings=setting.whole)

    def initial() -> State:
        state = states.create_on(setting.whole, create)
        return begin_epoch(_warm_start(setting, state, stage.init_from, codebook))

    return Stage(
        name=name,
        timetable=timetable,
        step=steps.compile_step(step, mesh),
        begin_epoch=begin_epoch,
        initial=initial,
        abstract=_with_sharding(jax.eval_shape(create), setting.whole),
        images=data.train,
        part=pipeline.Slice.of(setting.rows, config.batch_size),
        sharding=setting.rows,
        seed=int(np.random.SeedSequence([config.seed, position]).generate_state(1)[0]),
        class_codes=jax.device_put(codebook.packed, setting.whole) if fixed_codes else None,
        learning_rate=rate,
        evaluate=evaluation(setting, name, codebook),
    )


def evaluation(
    setting: Setting, name: str, codebook: Codebook | None
) -> Callable[[State], dict[str, float]]:
    """Returns the function from a stage's state to its classification figures."""
    network = setting.network(name)
    part = pipeline.Slice.of(setting.rows, setting.config.batch_size)
    whole, rows = setting.whole, setting.rows
    encode = jax.jit(network.evaluate, in_shardings=(whole, whole, rows))

    def evaluate(state: State) -> dict[str, float]:
        class_codes = None if codebook is None else codebook.packed
        if "latent" in state["params"]["head"]:
            class_codes = packing.pack(state["params"]["head"]["latent"])
        encode_images = functools.partial(encode, state["params"], state["batch_stats"])
        batches = pipeline.eval_batches(setting.data.evaluation, part)
        return Classification(encode_images, class_codes).run(pipeline.on_devices(batches, rows))

    return evaluate


def learnt_codebook(state: State, class_names: tuple[str, ...]) -> Codebook | None:
    """Returns the codebook that a stage has learnt, None where it learns none."""
    latent = state["params"]["head"].get("latent")
    if latent is None:
        return None
    return Codebook.from_numpy(jax.device_get(latent), class_names, LEARNT)


def _with_sharding(tree: Tree, sharding: Sharding) -> Tree:
    """Returns the abstract tree with a sharding on every leaf."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _objective(stage: StageConfig) -> Callable[..., Figures]:
    options = dict(stage.objective)
    name = options.pop("name")
    return bind(OBJECTIVES[name].function, options, f"The objective {name}")


def _optimizer(
    config: OptimizerConfig, timetable: Timetable
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    steps_per_epoch = timetable.num_examples / timetable.batch_size
    rate = optimizer.schedule(
        config.learning_rate,
        kind=config.schedule,
        num_steps=timetable.num_steps,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
    )
    sgd = optimizer.sgd(
        rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        codebook_rate=config.codebook_rate,
    )
    return rate, sgd


def _warm_start(setting: Setting, state: State, init_from: str, codebook: Codebook | None) -> State:
    """Takes over an earlier stage's weights, and a codebook where the stage learns one."""
    if init_from in setting.config.stages:
        directory = checkpoint_directory(setting.workdir, init_from)
        earlier = load_weights(directory, setting.network(init_from), setting.whole)
        state = states.adopt(state, earlier)
    if codebook is not None and "latent" in state["params"]["head"]:
        latent = jax.device_put(codebook.latent, setting.whole)
        head = state["params"]["head"] | {"latent": latent}
        state = state | {"params": state["params"] | {"head": head}}
    return state
