"""Where a stage's codebook comes from: an earlier stage, a construction, or a file.

learnt     by the last codebook stage before
random     by chance
hadamard   by chance too, and far apart
svd        from the classifier of the last linear stage before
cca        from the features of the training images in that stage
a path     of a file that `Codebook.load` reads
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from llc_jax.codes import construction
from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.experiment.setting import Setting, codebook_file
from llc_jax.training.objectives import OBJECTIVES
from llc_jax.weights import pretrained

LEARNT = "learnt"


def check(setting: Setting, stage: str) -> None:
    """Raises an InputError if the stage's codebook cannot be had, or does not fit."""
    name, objective = _name(setting, stage), setting.config.stages[stage].objective["name"]
    if not name and OBJECTIVES[objective].fixed_codebook:
        raise InputError(
            f"The stage {stage!r} needs a codebook, or a file of one: config.codebook is empty."
        )
    head = "codebook" if name == LEARNT else "linear" if name in _BUILT_ON_LINEAR else None
    if head and setting.last_before(stage, head) is None:
        raise InputError(
            f"The codebook of the stage {stage!r} is {name!r}, but there is no stage with a {head} "
            "head before it, of the same classes"
            + (f" and {setting.num_bits(stage)} bits." if head == "codebook" else ".")
        )
    if name and name != LEARNT and name not in _BUILT:
        _read(name, setting, stage)


def codebook_of(setting: Setting, stage: str) -> Codebook | None:
    """Returns the codebook that a stage is trained with, or starts from; None without one."""
    name = _name(setting, stage)
    if not name:
        return None
    if name == LEARNT:
        learnt_by = setting.last_before(stage, "codebook")
        return _read(codebook_file(setting.workdir, learnt_by), setting, stage)
    if name in _BUILT:
        return _named(_BUILT[name](setting, stage), setting, stage)
    return _read(name, setting, stage)


def _name(setting: Setting, stage: str) -> str:
    """Returns what the stage's codebook is; "" where it has none, or starts a random one."""
    config = setting.config.stages[stage]
    fixed = OBJECTIVES[config.objective["name"]].fixed_codebook
    return config.codebook or (setting.config.codebook if fixed else "")


def codebook_beside(setting: Setting, stage: str, weights: str) -> Codebook | None:
    """Returns a stage's codebook where its weights are of a file; that of the file if learnt."""
    if _name(setting, stage) != LEARNT:
        return codebook_of(setting, stage)
    state = pretrained.read_state_dict(weights)
    latent = pretrained.latent_codebook(state, setting.config.model["name"])
    if latent is None:
        raise InputError(
            f"There is no codebook in the weights {weights}: give its file as config.codebook."
        )
    learnt = Codebook.from_numpy(latent, source=LEARNT)
    return _named(_checked(learnt, weights, setting, stage), setting, stage)


def _random(setting: Setting, stage: str) -> Codebook:
    return Codebook.random(*_shape(setting, stage), seed=setting.seed(stage))


def _hadamard(setting: Setting, stage: str) -> Codebook:
    return Codebook.hadamard(*_shape(setting, stage), seed=setting.seed(stage))


def _svd(setting: Setting, stage: str) -> Codebook:
    linear = setting.last_before(stage, "linear")
    kernel = setting.trained_weights(linear)["params"]["head"]["classifier"]["kernel"]
    return Codebook.svd(np.asarray(kernel).T, setting.num_bits(stage))


def _cca(setting: Setting, stage: str) -> Codebook:
    moments = _training_moments(setting, setting.last_before(stage, "linear"))
    latent = construction.cca_of_moments(moments, setting.num_bits(stage))
    return Codebook.from_numpy(latent, source="cca")


_BUILT: dict[str, Callable[[Setting, str], Codebook]] = {
    "random": _random,
    "hadamard": _hadamard,
    "svd": _svd,
    "cca": _cca,
}
_BUILT_ON_LINEAR = ("svd", "cca")


def _training_moments(setting: Setting, stage: str) -> construction.Moments:
    """Returns the moments of the features of all training images after a stage."""
    weights, network = setting.trained_weights(stage), setting.network(stage)
    classes = len(setting.dataset(stage).class_names)

    @functools.partial(jax.jit, out_shardings=setting.whole)
    def add_up(weights, batch):
        features = network.features(weights["params"], weights["batch_stats"], batch["image"])
        ones = jax.nn.one_hot(batch["label"], classes) * batch["mask"][:, None]
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        masked = features * batch["mask"][:, None]
        sums, squares = product(ones.T, features), product(masked.T, features)
        return construction.Moments(jnp.sum(ones, axis=0), sums, squares)

    total = construction.Moments(0.0, 0.0, 0.0)
    for batch in setting.eval_batches(setting.dataset(stage).train):
        found = jax.device_get(add_up(weights, batch))
        total = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), total, found)
    return total


def _read(path: str | pathlib.Path, setting: Setting, stage: str) -> Codebook:
    """Reads a codebook and checks that it fits the stage's bits and classes."""
    return _named(_checked(Codebook.load(path), path, setting, stage), setting, stage)


def _checked(
    codebook: Codebook, path: str | pathlib.Path, setting: Setting, stage: str
) -> Codebook:
    classes, expected = setting.dataset(stage).class_names, _shape(setting, stage)
    if codebook.latent.shape != expected:
        raise InputError(
            f"The codebook {path} is of {codebook.num_classes} classes and {codebook.num_bits} "
            f"bits; the stage {stage!r} has {expected[0]} classes and num_bits={expected[1]}."
        )
    numbered = codebook.class_names == tuple(map(str, range(len(classes))))
    if not numbered and codebook.class_names != classes:
        raise InputError(f"The classes of the codebook {path} are not those of the data.")
    return codebook


def _named(codebook: Codebook, setting: Setting, stage: str) -> Codebook:
    return dataclasses.replace(codebook, class_names=setting.dataset(stage).class_names)


def _shape(setting: Setting, stage: str) -> tuple[int, int]:
    return len(setting.dataset(stage).class_names), setting.num_bits(stage)
