"""What a config says, checked: the tree of a config file as typed dataclasses.

The config files in `configs/` build plain data; `parse` turns it into a
`RunConfig` or says in one sentence what is wrong with it.
"""

import dataclasses
import json
import math
import pathlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from llc_jax.errors import InputError
from llc_jax.options import choose, suggest

SCRATCH = "scratch"
# The weights of the backbone in an installed package; see `weights.packages`.
PRETRAINED = "pretrained"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are prepared.

    Attributes:
      source: "digits", "tfds:NAME", a path to a folder, a .zip, a .tar or a .csv, or a list of
        images, "LIST.txt" or "LIST.txt:FOLDER".
      eval_source: the same for the evaluation images alone; "" takes them from `source`.
      holdout: fraction of each class kept for evaluation where the data has no split.
      image_size: side in pixels; None is what the backbone is meant for.
      embedding_size: numbers of each embedding; None is what the data have.
      crop_fraction: part of the resized shorter side that evaluation crops; here and below,
        `image_size.complete` replaces None by what suits the size of the images.
      exif_orientation: whether to turn images upright as their EXIF data says.
      in_memory: decode everything once, and augment whole batches on the device.
      augment: options of the augmentation: in memory, `pad` and `flip`; otherwise
        `scale`, `flip` and `randaugment`, which is None for none, or how many
        operations in a row and their magnitude from 0 to 10: (2, 9).
      workers: processes that decode; 0 uses threads; None suits the host.
      on_error: what a damaged image does: "stop" the run, or "skip" it, with a count.
      protocol: of a retrieval benchmark: `name` in `data.protocols`, or "" for none, and its
        options.
      held_out_classes: how many classes, chosen by the seed, are excluded from training; they
        are the unseen classes.
    """

    source: str
    eval_source: str
    holdout: float
    image_size: int | None
    crop_fraction: float | None
    exif_orientation: bool
    in_memory: bool | None
    augment: dict
    workers: int | None
    on_error: str
    protocol: dict = dataclasses.field(default_factory=lambda: {"name": ""})
    held_out_classes: int = 0
    embedding_size: int | None = None


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """See `training.optimizer`.

    Attributes:
      name: "sgd" or "adamw".
      warmup_epochs: may be a fraction.
    """

    learning_rate: float
    schedule: str
    warmup_epochs: float
    momentum: float
    nesterov: bool
    weight_decay: float
    codebook_rate: float
    name: str = "sgd"


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage.

    Attributes:
      objective: `name`, and options of `training.objectives`.
      head: `name`, and options of `models.heads`.
      epochs: passes over the training images.
      init_from: "scratch", "pretrained", an earlier stage, or a file of PyTorch weights; "" is
        the run's `init_from`.
      codebook: where the class codes come from: a name in `codebook_sources`, or a file; ""
        is the run's `codebook` in phase 2, and a random start in phase 1.
      trainable_blocks: train only the head and the last so many blocks of the backbone;
        None trains all.
      optimizer: how to descend.
      mixup: alpha of mixup's Beta(alpha, alpha); 0 for no mixup.
        See `training.mixup`.
      num_bits: k of this stage; None is the run's.
      teacher: an earlier stage with the head `linear`, whose class probabilities have a part in
        the targets of an image's bits; "" takes the bits of the label alone. See
        `experiment.teaching`.
      whole_dataset: train and evaluate on all images of all classes that are not held out,
        whatever the protocol: a backbone for other stages to start from.
    """

    objective: dict
    head: dict
    epochs: int
    init_from: str
    codebook: str
    trainable_blocks: int | None
    optimizer: OptimizerConfig
    mixup: float = 0.0
    num_bits: int | None = None
    whole_dataset: bool = False
    teacher: str = ""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints are made at the ends of epochs.

    Attributes:
      keep: how many of a stage are kept.
      steps: also make one every so many steps; 0 for none.
      min_steps: where epochs are short, they are at least so many steps apart; the last step of a
        stage always has one.
    """

    keep: int
    steps: int
    min_steps: int = 0


@dataclasses.dataclass(frozen=True)
class UnknownConfig:
    """Sets of unknown images, of no class that is trained: "NAME=DATA" each.

    DATA is as `DataConfig.source`, or "unseen" or "synthetic:KIND"; see `data.unknown`.

    Attributes:
      near: sets that are like the images of the classes.
      far: sets that are not.
    """

    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()

    def sources(self) -> dict[str, str]:
        """Returns DATA of each set by its group and name, `near/NAME` or `far/NAME`."""
        groups = {"near": self.near, "far": self.far}
        parts = [(group, *entry.partition("=")) for group, sets in groups.items() for entry in sets]
        return {f"{group}/{name}": source for group, name, _, source in parts}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run: its data, its network, and its stages in order.

    Attributes:
      seed: of everything random.
      num_bits: k.
      prefixes: numbers of bits of a nested codebook: the first so many bits are trained, in
        both phases, to be codes too, and are evaluated too.
      init_from: of the stages that name nothing else: "scratch"; "pretrained" for the backbone
        alone, from an installed package; or a file of PyTorch weights. Evaluation without
        training takes its weights from such a file.
      drop_head: of files of weights, take the backbone alone.
      codebook: of phase 2 where the stage names none.
      batch_size: over all devices and processes.
      num_microbatches: parts of a batch that are computed one after the other, where the whole
        does not fit into the memory of the devices. Batch normalisation takes the statistics
        of a part.
      min_steps: of each stage: where the data are too few, there are more epochs, and batches
        of a quarter of the data, but of 16 at least. 0 leaves both as they are.
      frozen_backbone: of all stages that do not say how many blocks they train; None is true on
        a CPU, where the run does not start from scratch, and false elsewhere.
      views: augmented versions of each training image that a frozen backbone encodes; 1 is the
        image as it is evaluated.
      remarks: what the config has to say before the run begins, a line each.
      report: whether a page that shows the results, `report.html`, is made at the end.
      model: `name` in `models.registry`, or "auto" for `image_size.complete`; `dtype`,
        `normalization` of the images, and options of the backbone.
      eval_epochs: epochs between evaluations during training; 0 for none.
      decoders: to measure at the end of each stage that trains codes; names as
        `decoding.decoders.make` takes them.
      retrieval: the ranks at which retrieval is measured at the end of each stage, by
        queries of the evaluation images; () does not measure it.
      ood: sets of unknown images; how well the scores of each stage tell them from the
        evaluation images is measured at its end.
    """

    seed: int
    num_bits: int
    prefixes: tuple[int, ...]
    init_from: str
    drop_head: bool
    codebook: str
    batch_size: int
    data: DataConfig
    model: dict
    stages: dict[str, StageConfig]
    checkpoint: CheckpointConfig
    eval_epochs: int
    decoders: tuple[str, ...]
    retrieval: tuple[int, ...] = ()
    ood: UnknownConfig = UnknownConfig()
    num_microbatches: int = 1
    min_steps: int = 0
    frozen_backbone: bool | None = False
    views: int = 1
    remarks: tuple[str, ...] = ()
    report: bool = True


def parse(config: Mapping[str, Any]) -> RunConfig:
    """Checks a config's tree and returns it typed.

    A key that has a default here can be left out: runs from before there was such a key
    go on as they were.

    Raises:
      InputError: naming the key that is unknown, missing or of the wrong type.
    """
    parsed = _with_defaults(_parse(RunConfig, config, "config"))
    if parsed.seed < 0:
        raise InputError(f"config.seed is at least 0, not {parsed.seed}.")
    positive = {"num_bits": parsed.num_bits, "batch_size": parsed.batch_size}
    positive |= {f"stages.{name}.epochs": stage.epochs for name, stage in parsed.stages.items()}
    bits = {name: bits_of(parsed, stage) for name, stage in parsed.stages.items()}
    positive |= {f"stages.{name}.num_bits": number for name, number in bits.items()}
    positive |= {"checkpoint.keep": parsed.checkpoint.keep, "views": parsed.views}
    positive |= {"num_microbatches": parsed.num_microbatches}
    for key, value in positive.items():
        if value < 1:
            raise InputError(f"config.{key} is at least 1, not {value}.")
    for name, stage in parsed.stages.items():
        if not 0 <= stage.mixup < math.inf:
            raise InputError(f"config.stages.{name}.mixup is at least 0, not {stage.mixup}.")
    for cutoff in parsed.retrieval:
        if cutoff < 1:
            raise InputError(f"config.retrieval are ranks from 1, not {cutoff}.")
    _check_sets(parsed.ood)
    if not parsed.stages:
        raise InputError("config.stages is empty: a run needs at least one stage.")
    fewest = min(bits.values())
    for prefix in parsed.prefixes:
        if not 0 < prefix < fewest:
            raise InputError(f"config.prefixes are from 1 to {fewest - 1}, not {prefix}.")
    _check_order(parsed.stages)
    return parsed


def bits_of(config: RunConfig, stage: StageConfig) -> int:
    """Returns k of a stage."""
    return config.num_bits if stage.num_bits is None else stage.num_bits


def is_file(init_from: str) -> bool:
    """Whether `init_from` names a file of weights, and not a stage."""
    return bool(pathlib.Path(init_from).suffix)


def as_json(config: RunConfig) -> dict[str, Any]:
    """Returns a config as JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _with_defaults(config: RunConfig) -> RunConfig:
    """Lets the stages start as the run does where they say nothing."""
    stages = {
        name: dataclasses.replace(stage, init_from=stage.init_from or config.init_from)
        for name, stage in config.stages.items()
    }
    return dataclasses.replace(config, stages=stages)


def _check_order(stages: Mapping[str, StageConfig]) -> None:
    earlier: dict[str, StageConfig] = {}
    for name, stage in stages.items():
        if not is_file(stage.init_from):
            known = {SCRATCH: None, PRETRAINED: None, **earlier}
            choose(stage.init_from, known, f"config.stages.{name}.init_from")
        if stage.teacher:
            linear = {key: None for key, other in earlier.items() if other.head["name"] == "linear"}
            choose(stage.teacher, linear, f"config.stages.{name}.teacher")
        earlier[name] = stage


def _check_sets(ood: UnknownConfig) -> None:
    names = set(groups := dataclasses.asdict(ood))
    for group, sets in groups.items():
        for entry in sets:
            name, _, source = entry.partition("=")
            if re.fullmatch(r"[\w.-]+", name) is None or not source:
                raise InputError(
                    f"config.ood.{group} are sets of unknown images, NAME=DATA, not {entry!r}."
                )
            if name in names:
                raise InputError(f"config.ood has {name!r} twice: each set has a name of its own.")
            names.add(name)


def _parse(kind: type, value: Any, path: str) -> Any:
    """Reads `value` as `kind`: a dataclass, a dict, or a plain type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, _expect(Mapping, value, path), path)
    if origin is dict:
        items = _expect(Mapping, value, path).items()
        return {key: _parse(arguments[1], item, f"{path}.{key}") for key, item in items}
    if kind is dict:
        return dict(_expect(Mapping, value, path))
    if origin is tuple:
        items = enumerate(_expect(tuple | list, value, path))
        return tuple(_parse(arguments[0], item, f"{path}[{index}]") for index, item in items)
    if origin is types.UnionType:
        return None if value is None else _parse(arguments[0], value, path)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) and kind is not bool:
        raise InputError(f"{path} is {kind.__name__}, not {value!r}.")
    return _expect(kind, value, path)


def _parse_dataclass(kind: type, value: Mapping, path: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise InputError(f"{path} has no key {key!r}.{suggest(key, fields)}")
    missing = dataclasses.MISSING
    for key, field in fields.items():
        if key not in value and field.default is missing and field.default_factory is missing:
            raise InputError(f"{path}.{key} is missing.")
    return kind(**{key: _parse(fields[key].type, value[key], f"{path}.{key}") for key in value})


def _expect(kind: type | types.UnionType, value: Any, path: str) -> Any:
    if not isinstance(value, kind):
        name = getattr(kind, "__name__", str(kind)).lower()
        raise InputError(f"{path} is {name}, not {value!r}.")
    return value
