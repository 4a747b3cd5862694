"""From a checked config to a plan: every stage complete, and everything refused that must be.

Whatever would stop a run later stops it here, before the first step and before anything is
written. Nothing below asks the config again.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.data import pipeline
from llc_jax.data.dataset import Dataset, open_dataset
from llc_jax.decoding import decoders
from llc_jax.errors import InputError
from llc_jax.experiment import codebook_sources
from llc_jax.experiment.config import SCRATCH, RunConfig, StageConfig, bits_of, is_file
from llc_jax.experiment.data_record import DataRecord, check_unchanged, compare, locate
from llc_jax.experiment.image_size import SMALL
from llc_jax.experiment.network import (
    abstract_input,
    build_network,
    check_kind,
    describe_input,
    input_size,
    num_features,
    read_pretrained,
    takes_embeddings,
)
from llc_jax.experiment.stage import Evaluations, FigureNames, Frozen, Stage, Trained
from llc_jax.experiment.training_plan import check_training, fit_to_size, plan_training
from llc_jax.experiment.workdir import StageDirectory
from llc_jax.mesh import batch_sharding
from llc_jax.models.network import PureNetwork, Tree
from llc_jax.training.objectives import OBJECTIVES

# The figures of the first stage with one of these heads have no prefix.
_UNPREFIXED_HEADS = ("linear", "codebook", "code")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
      stages: in order.
      dataset: the images of the run.
      record: which images they are.
      skips_damaged: whether damaged images are skipped and counted.
      summary: what there is to say before it begins, a line each.
    """

    stages: tuple[Stage, ...]
    dataset: Dataset
    record: DataRecord
    skips_damaged: bool
    summary: tuple[str, ...]


def plan_run(config: RunConfig, workdir: pathlib.Path, mesh: Mesh) -> Plan:
    """Plans the training and the evaluation of all stages.

    Raises:
      InputError: if the config, the data or a file that it names cannot be used.
    """
    record = DataRecord.load(workdir)
    dataset = _open_dataset(config, config.stages.values(), mesh)
    check_unchanged(record, config.data, dataset.fingerprint, workdir)
    size = len(dataset.train.labels)
    config = fit_to_size(config, size, mesh.size)
    if config.batch_size > size:
        raise InputError(
            f"A batch of {config.batch_size} is larger than the {size} training images: "
            "choose a smaller batch_size."
        )
    stages = plan_stages(config, dataset, mesh, lambda name: StageDirectory(workdir / name))
    images = f"{size} training and {len(dataset.evaluation.labels)} evaluation images"
    return _plan(config, stages, dataset, mesh, images, _remarks(config))


def plan_stages(
    config: RunConfig, dataset: Dataset, mesh: Mesh, directory: Callable[[str], Trained]
) -> tuple[Stage, ...]:
    """Plans the training of all stages on a dataset that is open.

    Args:
      config: of the run.
      dataset: its images or embeddings.
      mesh: its devices.
      directory: of a stage by its name: where its training leaves what comes of it.

    Raises:
      InputError: if the config, or a file that it names, cannot be used.
    """
    stages: dict[str, Stage] = {}
    for name in config.stages:
        stage = _plan_stage(config, name, directory(name), dataset, mesh)
        weights = _initial_weights(config, stage, stages)
        codebook = _initial_codebook(config, stage, tuple(stages.values()))
        teacher = stages.get(config.stages[name].teacher)
        if teacher is not None and teacher.dataset is not stage.dataset:
            raise InputError(
                f"The stage {name!r} and its teacher {teacher.name!r} have the same images: "
                "whole_dataset is the same for both."
            )
        stages[name] = dataclasses.replace(
            stage, initial_weights=weights, initial_codebook=codebook, teacher=teacher
        )
    return tuple(stages.values())


def _remarks(config: RunConfig) -> list[str]:
    """Returns what there is to say of a training before it begins, a line each."""
    size, remarks = input_size(config), list(config.remarks)
    if jax.default_backend() != "cpu" or size <= SMALL or takes_embeddings(config):
        return remarks
    if all(stage.trainable_blocks == 0 for stage in config.stages.values()):
        return [*remarks, "The backbone is frozen: each image goes through it once."]
    return [
        *remarks,
        f"{size} pixels are slow on a CPU: --config.data.image_size={SMALL} shrinks the images.",
    ]


def plan_evaluation(config: RunConfig, workdir: pathlib.Path, mesh: Mesh) -> Plan:
    """Plans an evaluation of the last stage without training.

    Its weights and its codebook are those in the workdir; but where the stage is not finished
    there, and the run's `init_from` is a file, those of the file.

    Raises:
      InputError: as in `plan_run`.
    """
    *earlier, name = config.stages
    record, trained = DataRecord.load(workdir), StageDirectory(workdir / name).load_codebook()
    class_names = _trained_classes(config.stages[name], trained, record)
    dataset = _open_dataset(config, [config.stages[name]], mesh, class_names)
    stage = _plan_stage(config, name, StageDirectory(workdir / name), dataset, mesh)
    remarks = [compare(record, config.data, dataset.fingerprint)]
    if trained is not None and trained.num_classes != stage.num_classes:
        raise InputError(
            f"The images have {stage.num_classes} classes, but the run in {workdir} was trained on "
            f"{trained.num_classes}: evaluate it on images of those."
        )
    if stage.directory.is_finished or not is_file(config.init_from):
        weights, codebook = stage.trained_weights, stage.directory.load_codebook
        if not stage.directory.is_finished:
            remarks += [f"The stage {name!r} is not finished: its newest checkpoint is evaluated."]
    else:
        weights = _weights_of_file(config, stage, config.init_from)
        source = _codebook_name(config, stage)
        if source == codebook_sources.LEARNT:
            codebook = functools.partial(_codebook_of_weights, config, stage)
        else:
            directories = [StageDirectory(workdir / other) for other in earlier]
            stages = [
                _plan_stage(config, directory.path.name, directory, dataset, mesh)
                for directory in directories
            ]
            codebook = _initial_codebook(config, stage, stages)
    stage = dataclasses.replace(stage, initial_weights=weights, initial_codebook=codebook)
    images = f"{len(dataset.evaluation.labels)} evaluation images"
    return _plan(config, (stage,), dataset, mesh, images, remarks)


def _trained_classes(
    stage: StageConfig, codebook: Codebook | None, record: DataRecord | None
) -> tuple[str, ...] | None:
    """Returns the names of the classes that a stage is trained on; None where none are known."""
    if stage.whole_dataset:
        return None
    if codebook is not None and not codebook.is_numbered:
        return codebook.class_names
    return record.class_names if record is not None else None


def _open_dataset(
    config: RunConfig,
    stages: Iterable[StageConfig],
    mesh: Mesh,
    class_names: tuple[str, ...] | None = None,
) -> Dataset:
    """Opens the images of some stages, once what does not need them is checked."""
    stages = tuple(stages)
    check_kind(config)
    lengths = {bits_of(config, stage) for stage in stages}
    for bits in lengths:
        packing.num_words(bits)
    pipeline.ProcessShard.of(batch_sharding(mesh), config.batch_size)
    options = dataclasses.asdict(config.data) | {"image_size": input_size(config)}
    without_protocol = any(stage.whole_dataset for stage in stages)
    dataset = open_dataset(
        **options,
        without_protocol=without_protocol,
        class_names=class_names,
        unknown=config.ood.sources(),
        seed=config.seed,
    )
    for bits, decoder in itertools.product(lengths, config.decoders):
        decoders.make(decoder, Codebook.random(1, bits))
    return dataset


def _plan(
    config: RunConfig,
    stages: tuple[Stage, ...],
    dataset: Dataset,
    mesh: Mesh,
    images: str,
    remarks: Iterable[str] = (),
) -> Plan:
    """Makes the plan of some stages, with what there is to say of it."""
    summary = [
        f"{images} of {len(dataset.class_names)} classes; {mesh.size} device(s), "
        f"{jax.default_backend()}",
        f"{config.model['name']}, {describe_input(config)}",
    ]
    if dataset.unknown:
        sizes = (f"{name} {len(i.labels):,}" for name, i in dataset.unknown.items())
        summary.append(f"unknown images: {', '.join(sizes)}")
    lengths = {
        stage.num_bits for stage in stages if stage.head == "codebook" or stage.fixed_codebook
    }
    for bits in sorted(lengths):
        if len(dataset.class_names) > 2**bits:
            summary.append(f"{bits} bits are too few for the classes: some will share a code")
    places = (locate(config.data.source), locate(config.data.eval_source))
    return Plan(
        stages=stages,
        dataset=dataset,
        record=DataRecord(*places, tuple(map(str, dataset.class_names)), dataset.fingerprint),
        skips_damaged=config.data.on_error == "skip",
        summary=(*summary, *filter(None, remarks)),
    )


def _plan_stage(
    config: RunConfig, name: str, directory: Trained, dataset: Dataset, mesh: Mesh
) -> Stage:
    """Plans a stage, all but the weights and the codebook that it starts from."""
    stage = config.stages[name]
    if stage.whole_dataset:
        dataset = dataset.without_protocol or dataset
    check_training(stage, f"config.stages.{name}", config.num_microbatches)
    network = build_network(config, stage, len(dataset.class_names))
    size, frozen = num_features(config, network), None
    if stage.trainable_blocks == 0:

        def on_features(features: Dataset) -> Stage:
            example = jax.ShapeDtypeStruct((1, size), np.float32)
            head = network.on_features()
            return _make_stage(config, name, directory, features, mesh, head, example)

        augment = json.dumps(config.data.augment)
        model, views = json.dumps(config.model), config.views
        frozen = Frozen(size, model, views, augment, config.seed, on_features)
    example = abstract_input(config)
    planned = _make_stage(config, name, directory, dataset, mesh, network, example)
    return dataclasses.replace(planned, frozen=frozen)


def _make_stage(
    config: RunConfig,
    name: str,
    directory: Trained,
    dataset: Dataset,
    mesh: Mesh,
    network: PureNetwork,
    example: jax.ShapeDtypeStruct,
) -> Stage:
    """Makes a stage of a network, which takes the images of the dataset, or their features."""
    stage = config.stages[name]
    return Stage(
        name=name,
        directory=directory,
        mesh=mesh,
        dataset=dataset,
        example=example,
        head=stage.head["name"],
        network=network,
        num_bits=bits_of(config, stage),
        training=plan_training(config, name, network, dataset, mesh),
        initial_weights=None,
        initial_codebook=None,
        fixed_codebook=OBJECTIVES[stage.objective["name"]].fixed_codebook,
        # The numbers of a real bottleneck are no code logits.
        has_binary_codes=stage.head.get("binary", True),
        evaluations=Evaluations(
            prefixes=config.prefixes,
            decoders=config.decoders,
            cutoffs=() if stage.whole_dataset else config.retrieval,
            examples=config.report,
        ),
        figures=_figure_names(config.stages, name),
        checkpoints_kept=config.checkpoint.keep,
    )


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


def _weights_of_file(config: RunConfig, stage: Stage, init_from: str) -> Callable[[], Tree]:
    """Returns the function that reads a stage's weights from a PyTorch file that fits."""
    read = functools.partial(read_pretrained, config, stage.network, init_from)
    read()
    return read


def _codebook_name(config: RunConfig, stage: Stage) -> str:
    """Returns where the stage's codebook comes from; "" where it has none, or draws a start."""
    of_stage = config.stages[stage.name].codebook
    return of_stage or (config.codebook if stage.fixed_codebook else "")


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

    The first stage with the head `linear`, `codebook` or `code` has them without a prefix
    (`linear`, `class_code`, `mhd`); other stages have `<stage>/mhd`. So have the codes of a
    codebook stage always.
    """
    head = stages[name].head["name"]
    first = next(other for other, stage in stages.items() if stage.head["name"] == head)
    prefix = "" if head in _UNPREFIXED_HEADS and first == name else f"{name}/"
    is_codebook = head == "codebook"
    class_logits = prefix + ("class_code" if is_codebook else "linear")
    codes = f"{name}/" if is_codebook else prefix
    return FigureNames(
        class_logits=class_logits,
        codes=codes,
        codebook=prefix,
        retrieval=f"{class_logits}/" if head == "linear" else codes,
    )
