"""A run: its stages in order, then its evaluations. It continues where it stopped.

A workdir holds `config.json`, `<stage>/checkpoints/`, `<stage>/codebook.npz`,
`<stage>/results.json`, `<stage>/pr_curve.npz` where retrieval is measured,
`codebook.npz` (the last stage's), `metrics.jsonl`, `tensorboard/` and, once all is done,
`results.json`; after an evaluation without training, `evaluation.json`.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from clu import parameter_overview
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.data import pipeline
from llc_jax.data.dataset import Dataset, open_dataset
from llc_jax.decoding import decoders
from llc_jax.errors import InputError
from llc_jax.experiment import codebook_sources as codebooks
from llc_jax.experiment import stages
from llc_jax.experiment.config import RunConfig, StageConfig, bits_of, is_file, parse
from llc_jax.experiment.setting import CODEBOOK_FILE, Setting, codebook_file, input_size
from llc_jax.files import make_directory, write_arrays, write_json
from llc_jax.mesh import batch_sharding, make_mesh
from llc_jax.report.table import results_tables
from llc_jax.training.logging import RunLog
from llc_jax.training.loop import train_stage
from llc_jax.training.objectives import OBJECTIVES

CONFIG_FILE = "config.json"
RESULTS_FILE = "results.json"
EVALUATION_FILE = "evaluation.json"
CURVES_FILE = "pr_curve.npz"

# The heads whose first stage names its figures plainly.
_PLAIN_HEADS = ("linear", "codebook", "code")

# What may change between the parts of a run, as it cannot change the result.
_FREE_KEYS = ("data.workers", "checkpoint.keep", "checkpoint.steps")
# What may also change when a run is evaluated again, as it is only measured.
_MEASURED_KEYS = ("decoders", "retrieval")


def run(
    tree: Mapping[str, Any],
    workdir: str | os.PathLike,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, float]:
    """Trains and evaluates all stages of a config, or what is left of them.

    Args:
      tree: the config, as in `configs/`.
      workdir: where the run is kept; made if missing.
      devices: which to use; by default all of all processes.

    Returns:
      The final figures by their flat names, as in `results.json`.

    Raises:
      InputError: if the config, the data or the workdir cannot be used.
      Stopped: if the process was told to stop; progress is saved.
      Diverged: if a loss or a weight is no longer finite.
    """
    config, workdir = parse(tree), pathlib.Path(workdir).absolute()
    log = RunLog(workdir, primary=jax.process_index() == 0)
    _check_claim(workdir, config)
    if (workdir / RESULTS_FILE).exists():
        results = json.loads((workdir / RESULTS_FILE).read_text())
        log.say("This run is finished.")
    else:
        setting = _set_up(config, workdir, make_mesh(devices), log, config.stages)
        _check_batch_size(setting)
        make_directory(workdir)
        _on_first_process(write_json, workdir / CONFIG_FILE, plain(config))
        results = _run_stages(setting, log)
    _show(results, config, log)
    log.say(f"Run: {workdir}")
    return results


def evaluate(
    tree: Mapping[str, Any],
    workdir: str | os.PathLike,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, float]:
    """Evaluates the last stage of a config without training.

    Args:
      tree: the config. Where the stage has not been trained in the workdir, its
        `init_from` is a file of weights, and of the codebook if that is "learnt".
      workdir: of the run, and where `evaluation.json` is written.
      devices: as in `run`.

    Returns:
      The stage's figures by their flat names.

    Raises:
      InputError: if the config, the data, the workdir or the file cannot be used.
    """
    config, workdir = parse(tree), pathlib.Path(workdir).absolute()
    log = RunLog(workdir, primary=jax.process_index() == 0)
    _check_claim(workdir, config, _FREE_KEYS + _MEASURED_KEYS)
    name = list(config.stages)[-1]
    setting = _set_up(config, workdir, make_mesh(devices), log, [name])
    make_directory(workdir)
    trained = (workdir / name / RESULTS_FILE).exists()
    if not trained and is_file(config.init_from):
        weights = setting.pretrained_weights(name, config.init_from)
        codebook = codebooks.codebook_beside(setting, name, config.init_from)
    else:
        weights = setting.trained_weights(name)
        if not trained:
            log.say(f"The stage {name!r} is not finished: its newest checkpoint is evaluated.")
        path = codebook_file(workdir, name)
        codebook = Codebook.load(path) if path.exists() else None
    state = jax.device_put(weights, setting.whole)
    figures = stages.evaluation(setting, name, codebook)(state)
    results = _name_all(setting, name, figures, state, codebook)
    _on_first_process(write_json, workdir / EVALUATION_FILE, results)
    _show(results, config, log)
    return results


def read_config(workdir: pathlib.Path) -> RunConfig:
    """Reads the config of a workdir.

    Raises:
      InputError: if there is none, or it is damaged.
    """
    path = workdir / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{workdir} is not the workdir of a run: there is no {CONFIG_FILE} in it.")
    try:
        return parse(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged ({error}).") from error


def find_stage(path: str | os.PathLike) -> tuple[pathlib.Path, str, RunConfig]:
    """Returns the workdir, the stage and the config that a path names.

    Args:
      path: a run's workdir, for its last stage; or a stage's folder in it.

    Raises:
      InputError: if there is no such run, or the stage is not finished.
    """
    path = pathlib.Path(path).expanduser().absolute()
    if not path.is_dir():
        raise InputError(f"There is no run at {path}.")
    is_stage = not (path / CONFIG_FILE).exists() and (path.parent / CONFIG_FILE).exists()
    workdir = path.parent if is_stage else path
    config = read_config(workdir)
    stage = path.name if is_stage else list(config.stages)[-1]
    if not (workdir / stage / RESULTS_FILE).exists():
        raise InputError(
            f"The stage {stage!r} of {workdir} is not finished: the command that started the run "
            "continues it."
        )
    return workdir, stage, config


def _set_up(
    config: RunConfig, workdir: pathlib.Path, mesh: Mesh, log: RunLog, names: Iterable[str]
) -> Setting:
    """Opens the data and checks what can be checked of some stages before the first step."""
    lengths = {bits_of(config, name) for name in names}
    for bits in lengths:
        packing.num_words(bits)
    pipeline.ProcessShard.of(batch_sharding(mesh), config.batch_size)
    options = dataclasses.asdict(config.data) | {"image_size": input_size(config)}
    whole = any(config.stages[name].whole_dataset for name in names)
    data = open_dataset(**options, without_protocol=whole, seed=config.seed)
    for bits, decoder in itertools.product(lengths, config.decoders):
        decoders.make(decoder, Codebook.random(1, bits))
    setting = Setting(config, workdir, data, mesh)
    for name in names:
        stages.check_stage(setting, name)
    log.say(
        f"{len(data.train.labels)} training and {len(data.evaluation.labels)} evaluation images "
        f"of {len(data.class_names)} classes; {mesh.size} device(s), {jax.default_backend()}"
    )
    for bits in sorted({bits_of(config, name) for name in names if _has_class_codes(config, name)}):
        if len(data.class_names) > 2**bits:
            log.say(f"{bits} bits are too few for the classes: some will share a code")
    return setting


def _has_class_codes(config: RunConfig, name: str) -> bool:
    """Whether a stage learns the class codes, or is given them."""
    stage = config.stages[name]
    return stage.head["name"] == "codebook" or OBJECTIVES[stage.objective["name"]].fixed_codebook


def _check_batch_size(setting: Setting) -> None:
    """Refuses a batch that an epoch could not fill."""
    size, batch_size = len(setting.data.train.labels), setting.config.batch_size
    if batch_size > size:
        raise InputError(
            f"A batch of {batch_size} is larger than the {size} training images: "
            "choose a smaller batch_size."
        )


def _run_stages(setting: Setting, log: RunLog) -> dict[str, float]:
    results = {}
    for name in setting.config.stages:
        results_file = setting.workdir / name / RESULTS_FILE
        if not results_file.exists():
            figures = _run_stage(setting, name, log)
            _on_first_process(write_json, results_file, figures)
        results |= json.loads(results_file.read_text())
    if setting.config.data.on_error == "skip":
        results |= _count_damaged(setting.data)
    _on_first_process(write_json, setting.workdir / RESULTS_FILE, results)
    return results


def _count_damaged(data: Dataset) -> dict[str, int]:
    """Returns how many images any process has skipped since the run was started."""
    counts = {}
    parts = {"train": data.train, "evaluation": data.evaluation}
    if (whole := data.without_protocol) is not None:
        parts |= {"whole_train": whole.train, "whole_evaluation": whole.evaluation}
    for name, images in parts.items():
        damaged = np.zeros(len(images.labels) + len(images.damaged), bool)
        damaged[list(images.damaged)] = True
        if jax.process_count() > 1:
            damaged = np.any(multihost_utils.process_allgather(damaged), axis=0)
        counts[f"data/damaged_{name}"] = int(damaged.sum())
    return counts


def _run_stage(setting: Setting, name: str, log: RunLog) -> dict[str, float]:
    """Trains a stage and evaluates it; leaves its checkpoints and its codebook."""
    codebook = _given_codebook(setting, name)
    stage = stages.build_stage(setting, name, codebook)
    weights = parameter_overview.count_parameters(stage.abstract["params"])
    log.say(f"{name}: {stage.timetable.num_steps} steps, {weights:,} weights")
    with setting.checkpoints(name) as checkpoints:
        state = train_stage(stage, checkpoints, log)
    codebook = stages.learnt_codebook(state, setting.dataset(name).class_names) or codebook
    if codebook is not None:
        for path in (codebook_file(setting.workdir, name), setting.workdir / CODEBOOK_FILE):
            _on_first_process(codebook.save, path)
    return _name_all(setting, name, stage.evaluate(state), state, codebook)


def _name_all(
    setting: Setting,
    name: str,
    figures: Mapping[str, float],
    state: Mapping[str, Any],
    codebook: Codebook | None,
) -> dict[str, float]:
    """Returns a stage's figures by their flat names, and adds those of its codebook.

    Where retrieval is measured, leaves its curves in the stage's folder.
    """
    own = _own_names(setting.config.stages, name)
    named = _name_figures(own, figures)
    config = setting.config.stages[name]
    if setting.config.retrieval and not config.whole_dataset:
        found = stages.measure_retrieval(setting, name, state)
        is_linear = config.head["name"] == "linear"
        whose = f"{own.logits}{own.class_logits}/" if is_linear else own.codes
        named |= {f"retrieval/{whose}{key}": value for key, value in found.figures.items()}
        _on_first_process(write_arrays, setting.workdir / name / CURVES_FILE, found.curves)
    if codebook is None:
        return named
    if setting.config.decoders:
        measured = stages.measure_decoders(setting, name, state, codebook)
        named |= {f"decoding/{own.codes}{key}": value for key, value in measured.items()}
    shorter = {f"prefix_{bits}/": codebook.prefix(bits) for bits in setting.config.prefixes}
    for which, part in {"": codebook, **shorter}.items():
        named[f"codebook/{own.logits}{which}unique"] = part.num_unique
        named[f"codebook/{own.logits}{which}min_distance"] = part.min_distance
    return named


def _given_codebook(setting: Setting, name: str) -> Codebook | None:
    """Returns the codebook that a stage is given, the same when it continues."""
    path = codebook_file(setting.workdir, name)
    exists = path.exists()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("looked for the codebook")
    codebook = Codebook.load(path) if exists else codebooks.codebook_of(setting, name)
    if codebook is not None and not exists:
        _on_first_process(codebook.save, path)
    return codebook


class _Names(NamedTuple):
    """How a stage's figures are called in `results.json`.

    Attributes:
      logits, codes: what comes before the names of those figures.
      class_logits: what the figures of its class logits are.
    """

    logits: str
    codes: str
    class_logits: str


def _own_names(configs: Mapping[str, StageConfig], name: str) -> _Names:
    """Returns the names of a stage's figures.

    The first stage of the heads `linear`, `codebook` and `code` has them plain: `linear`,
    `class_code` (of B(C) f), and `mhd` and so on; those of another one are `<stage>/mhd`.
    The codes that a codebook stage reaches already are always `<stage>/mhd`.
    """
    head = configs[name].head["name"]
    plain = head in _PLAIN_HEADS and _first_with_head(configs, head) == name
    codebook = head == "codebook"
    own = "" if plain else f"{name}/"
    return _Names(own, f"{name}/" if codebook else own, "class_code" if codebook else "linear")


def _first_with_head(configs: Mapping[str, StageConfig], head: str) -> str:
    """Returns the first stage with such a head, "" if there is none."""
    return next((name for name, config in configs.items() if config.head["name"] == head), "")


def _show(results: Mapping[str, float], config: RunConfig, log: RunLog) -> None:
    """Prints the tables of the results."""
    plain = _first_with_head(config.stages, "code")
    for table in results_tables(results, tuple(config.stages), plain):
        log.show(table)


def _name_figures(own: _Names, figures: Mapping[str, float]) -> dict[str, float]:
    named = {}
    for name, value in figures.items():
        if name.startswith("class_logits"):
            name = own.logits + name.replace("class_logits", own.class_logits)
        else:
            name = own.codes + name
        named[f"classification/{name}"] = value
    return named


def _check_claim(
    workdir: pathlib.Path, config: RunConfig, free: Sequence[str] = _FREE_KEYS
) -> None:
    """Refuses a workdir that holds a run of another config."""
    if not (workdir / CONFIG_FILE).exists():
        return
    there, here = _flatten(plain(read_config(workdir))), _flatten(plain(config))
    changed = [
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if key not in free and there.get(key) != here.get(key)
    ]
    if changed:
        more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"{workdir} holds a run of another config: {'; '.join(changed[:3])}{more}. "
            "Choose another --workdir, or remove that one."
        )


def plain(config: RunConfig) -> dict[str, Any]:
    """Returns a config as JSON would give it back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _flatten(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {path.removesuffix("."): tree}
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{path}{key}.")
    return flat


def _on_first_process(write: Callable[..., None], *args) -> None:
    """Writes on the first process while the others wait."""
    if jax.process_index() == 0:
        write(*args)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("written")
