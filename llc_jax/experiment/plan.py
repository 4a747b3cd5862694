"""From a checked config to a plan: every stage complete, and everything refused that must be.

Whatever would stop a run later stops it here, before the first step and before anything is
written. Nothing below asks the config again.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.data import pipeline
from llc_jax.data.dataset import Dataset, open_dataset
from llc_jax.decoding import decoders
from llc_jax.errors import InputError
from llc_jax.experiment import codebook_sources
from llc_jax.experiment.config import (
    SCRATCH,
    OptimizerConfig,
    RunConfig,
    StageConfig,
    bits_of,
    is_file,
)
from llc_jax.experiment.stage import Evaluations, FigureNames, Stage, abstract_weights
from llc_jax.experiment.workdir import StageDirectory
from llc_jax.mesh import batch_sharding, replicated_sharding
from llc_jax.models import registry
from llc_jax.models.network import PureNetwork, Tree
from llc_jax.options import bind, choose
from llc_jax.training import optimizer
from llc_jax.training import state as states
from llc_jax.training import step as steps
from llc_jax.training.loop import Timetable, Training
from llc_jax.training.objectives import OBJECTIVES, Figures, Objective
from llc_jax.weights import pretrained

# The heads whose first stage has figures without its name in theirs.
_UNNAMED_HEADS = ("linear", "codebook", "code")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
      stages: in order.
      dataset: the images of the run.
      skips_damaged: whether damaged images are skipped and counted.
      summary: what there is to say before it begins, a line each.
    """

    stages: tuple[Stage, ...]
    dataset: Dataset
    skips_damaged: bool
    summary: tuple[str, ...]


def plan_run(config: RunConfig, workdir: pathlib.Path, mesh: Mesh) -> Plan:
    """Plans the training and the evaluation of all stages.

    Raises:
      InputError: if the config, the data or a file that it names cannot be used.
    """
    dataset = _open_dataset(config, config.stages.values(), mesh)
    size = len(dataset.train.labels)
    if config.batch_size > size:
        raise InputError(
            f"A batch of {config.batch_size} is larger than the {size} training images: "
            "choose a smaller batch_size."
        )
    stages: dict[str, Stage] = {}
    for name in config.stages:
        stage = _plan_stage(config, name, workdir, dataset, mesh)
        weights = _initial_weights(config, stage, stages)
        codebook = _initial_codebook(config, stage, tuple(stages.values()))
        stages[name] = dataclasses.replace(
            stage, initial_weights=weights, initial_codebook=codebook
        )
    return _plan(config, tuple(stages.values()), dataset, mesh)


def plan_evaluation(config: RunConfig, workdir: pathlib.Path, mesh: Mesh) -> Plan:
    """Plans an evaluation of the last stage without training.

    Its weights and its codebook are those in the workdir; but where the stage is not finished
    there, and the run's `init_from` is a file, those of the file.

    Raises:
      InputError: as in `plan_run`.
    """
    *earlier, name = config.stages
    dataset = _open_dataset(config, [config.stages[name]], mesh)
    stage, remarks = _plan_stage(config, name, workdir, dataset, mesh), []
    if stage.directory.is_finished or not is_file(config.init_from):
        weights, codebook = stage.trained_weights, stage.directory.load_codebook
        if not stage.directory.is_finished:
            remarks = [f"The stage {name!r} is not finished: its newest checkpoint is evaluated."]
    else:
        weights = _weights_of_file(config, stage, config.init_from)
        source = _codebook_name(config, stage)
        if source == codebook_sources.LEARNT:
            codebook = functools.partial(_codebook_of_weights, config, stage)
        else:
            before = [_plan_stage(config, other, workdir, dataset, mesh) for other in earlier]
            codebook = _initial_codebook(config, stage, before)
    stage = dataclasses.replace(stage, initial_weights=weights, initial_codebook=codebook)
    return _plan(config, (stage,), dataset, mesh, remarks)


def build_network(config: RunConfig, stage: StageConfig, num_classes: int) -> PureNetwork:
    """Builds the network of a stage."""
    return registry.build(
        config.model,
        stage.head,
        num_classes=num_classes,
        num_bits=bits_of(config, stage),
        trainable_blocks=stage.trainable_blocks,
    )


def input_size(config: RunConfig) -> int:
    """Returns the side of the images that the network sees, in pixels."""
    return config.data.image_size or registry.backbone(config.model).input_size


def _open_dataset(config: RunConfig, stages: Iterable[StageConfig], mesh: Mesh) -> Dataset:
    """Opens the images of some stages, once what does not need them is checked."""
    stages = tuple(stages)
    lengths = {bits_of(config, stage) for stage in stages}
    for bits in lengths:
        packing.num_words(bits)
    pipeline.ProcessShard.of(batch_sharding(mesh), config.batch_size)
    options = dataclasses.asdict(config.data) | {"image_size": input_size(config)}
    without_protocol = any(stage.whole_dataset for stage in stages)
    dataset = open_dataset(**options, without_protocol=without_protocol, seed=config.seed)
    for bits, decoder in itertools.product(lengths, config.decoders):
        decoders.make(decoder, Codebook.random(1, bits))
    return dataset


def _plan(
    config: RunConfig,
    stages: tuple[Stage, ...],
    dataset: Dataset,
    mesh: Mesh,
    remarks: Sequence[str] = (),
) -> Plan:
    """Makes the plan of some stages, with what there is to say of it."""
    summary = [
        f"{len(dataset.train.labels)} training and {len(dataset.evaluation.labels)} evaluation "
        f"images of {len(dataset.class_names)} classes; {mesh.size} device(s), "
        f"{jax.default_backend()}"
    ]
    lengths = {
        stage.num_bits for stage in stages if stage.head == "codebook" or stage.fixed_codebook
    }
    for bits in sorted(lengths):
        if len(dataset.class_names) > 2**bits:
            summary.append(f"{bits} bits are too few for the classes: some will share a code")
    return Plan(stages, dataset, config.data.on_error == "skip", (*summary, *remarks))


def _plan_stage(
    config: RunConfig, name: str, workdir: pathlib.Path, dataset: Dataset, mesh: Mesh
) -> Stage:
    """Plans a stage, all but the weights and the codebook that it starts from."""
    stage = config.stages[name]
    if stage.whole_dataset:
        dataset = dataset.without_protocol or dataset
    objective = _check_objective(stage, f"config.stages.{name}")
    choose(
        stage.optimizer.schedule, optimizer.SCHEDULES, f"config.stages.{name}.optimizer.schedule"
    )
    network = build_network(config, stage, len(dataset.class_names))
    _check_image_size(config, network)
    return Stage(
        name=name,
        directory=StageDirectory(workdir / name),
        mesh=mesh,
        dataset=dataset,
        batch_size=config.batch_size,
        image_size=input_size(config),
        head=stage.head["name"],
        network=network,
        num_bits=bits_of(config, stage),
        training=_plan_training(config, name, network, dataset, mesh),
        initial_weights=None,
        initial_codebook=None,
        fixed_codebook=objective.fixed_codebook,
        # The numbers of a real bottleneck are no code logits.
        has_binary_codes=stage.head.get("binary", True),
        evaluations=Evaluations(
            prefixes=config.prefixes,
            decoders=config.decoders,
            cutoffs=() if stage.whole_dataset else config.retrieval,
        ),
        figures=_figure_names(config.stages, name),
        checkpoints_kept=config.checkpoint.keep,
    )


def _check_objective(stage: StageConfig, where: str) -> Objective:
    """Returns the objective of a stage.

    Raises:
      InputError: if there is no such objective or option, or it does not go with the rest.
    """
    name, head = stage.objective.get("name"), stage.head.get("name")
    objective = choose(name, OBJECTIVES, f"{where}.objective.name")
    _bind_objective(stage, ())
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
    return objective


def _bind_objective(stage: StageConfig, prefixes: Sequence[int]) -> Callable[..., Figures]:
    """Returns the function that a stage minimises, with its options."""
    options = dict(stage.objective)
    name = options.pop("name")
    function = bind(OBJECTIVES[name].function, options, f"The objective {name}")
    return functools.partial(function, prefixes=prefixes) if OBJECTIVES[name].nested else function


def _check_image_size(config: RunConfig, network: PureNetwork) -> None:
    """Raises an InputError if a network does not take the run's images."""
    size, weights = input_size(config), abstract_weights(network)
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    try:
        jax.eval_shape(network.features, weights["params"], weights["batch_stats"], images)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{config.model['name']} does not take images of {size} pixels: {error}"
        ) from error


def _plan_training(
    config: RunConfig, name: str, network: PureNetwork, dataset: Dataset, mesh: Mesh
) -> Training:
    stage, position = config.stages[name], list(config.stages).index(name)
    timetable = Timetable(
        num_examples=len(dataset.train.labels),
        batch_size=config.batch_size,
        epochs=stage.epochs,
        checkpoint_steps=config.checkpoint.steps,
        eval_epochs=config.eval_epochs,
    )
    learning_rate, sgd = _plan_optimizer(stage.optimizer, timetable, network.frozen)
    objective = OBJECTIVES[stage.objective["name"]]
    key = jax.random.fold_in(jax.random.key(config.seed), position)
    step = steps.make_step(
        network,
        _bind_objective(stage, config.prefixes),
        sgd,
        dataset.augment,
        stage.mixup,
        needs=objective.needs,
        num_steps=timetable.num_steps,
    )
    return Training(
        name=name,
        timetable=timetable,
        create=functools.partial(states.create, network, sgd, objective.figures, key),
        step=steps.compile_step(step, mesh),
        images=dataset.train,
        shard=pipeline.ProcessShard.of(batch_sharding(mesh), config.batch_size),
        replicated=replicated_sharding(mesh),
        batched=batch_sharding(mesh),
        seed=int(np.random.SeedSequence([config.seed, position]).generate_state(1)[0]),
        learning_rate=learning_rate,
    )


def _plan_optimizer(
    config: OptimizerConfig, timetable: Timetable, frozen: Tree
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    steps_per_epoch = timetable.num_examples / timetable.batch_size
    learning_rate = optimizer.schedule(
        config.learning_rate,
        kind=config.schedule,
        num_steps=timetable.num_steps,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
    )
    sgd = optimizer.sgd(
        learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        codebook_rate=config.codebook_rate,
        frozen=frozen,
    )
    return learning_rate, sgd


def _initial_weights(
    config: RunConfig, stage: Stage, earlier: Mapping[str, Stage]
) -> Callable[[], Tree] | None:
    """Returns the function that loads the weights that a stage starts from, None for none."""
    init_from = config.stages[stage.name].init_from
    if init_from == SCRATCH:
        return None
    if init_from in earlier:
        return earlier[init_from].trained_weights
    return _weights_of_file(config, stage, init_from)


def _weights_of_file(config: RunConfig, stage: Stage, path: str) -> Callable[[], Tree]:
    """Returns the function that reads a stage's weights from a PyTorch file, once they fit."""

    def read() -> Tree:
        return pretrained.from_torch(
            pretrained.read_state_dict(path),
            abstract_weights(stage.network),
            config.model["name"],
            drop_head=config.drop_head,
            source=path,
        )

    read()
    return read


def _codebook_name(config: RunConfig, stage: Stage) -> str:
    """Returns where the stage's codebook comes from; "" where it has none, or draws a start."""
    own = config.stages[stage.name].codebook
    return own or (config.codebook if stage.fixed_codebook else "")


def _initial_codebook(
    config: RunConfig, stage: Stage, earlier: Sequence[Stage]
) -> Callable[[], Codebook] | None:
    """Returns the function that makes the codebook that a stage starts from, None for none."""
    source = _codebook_name(config, stage)
    if not source:
        if stage.fixed_codebook:
            raise InputError(
                f"The stage {stage.name!r} needs a codebook, or a file of one: config.codebook "
                "is empty."
            )
        return None
    return codebook_sources.find(
        source,
        stage=stage.name,
        class_names=stage.dataset.class_names,
        num_bits=stage.num_bits,
        seed=stage.training.seed,
        earlier=[other for other in earlier if other.dataset is stage.dataset],
    )


def _codebook_of_weights(config: RunConfig, stage: Stage) -> Codebook:
    """Returns the codebook that lies beside the run's pretrained weights."""
    codebook = codebook_sources.from_weights(config.init_from, config.model["name"])
    return codebook_sources.fit(
        codebook, config.init_from, stage.name, stage.dataset.class_names, stage.num_bits
    )


def _figure_names(stages: Mapping[str, StageConfig], name: str) -> FigureNames:
    """Returns what the figures of a stage are called.

    The first stage of the heads `linear`, `codebook` and `code` does not name itself: `linear`,
    `class_code`, and `mhd` and so on; another one has `<stage>/mhd`. The codes that a codebook
    stage has already are always `<stage>/mhd`.
    """
    head = stages[name].head["name"]
    first = next(other for other, stage in stages.items() if stage.head["name"] == head)
    prefix = "" if head in _UNNAMED_HEADS and first == name else f"{name}/"
    is_codebook = head == "codebook"
    class_logits = prefix + ("class_code" if is_codebook else "linear")
    codes = f"{name}/" if is_codebook else prefix
    return FigureNames(
        class_logits=class_logits,
        codes=codes,
        codebook=prefix,
        retrieval=f"{class_logits}/" if head == "linear" else codes,
    )
