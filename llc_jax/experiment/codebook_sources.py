"""Where a stage's codebook comes from: an earlier stage, a construction, or a file.

learnt     what the last codebook stage before has learnt
random     drawn
hadamard   drawn too, and far apart
svd        from the classifier of the last linear stage before
cca        from the features of the training images in that stage
a path     of a file that `Codebook.load` reads
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llc_jax.codes import construction
from llc_jax.codes.codebook import Codebook
from llc_jax.compiling import jit_network
from llc_jax.errors import InputError
from llc_jax.experiment.extraction import on_features
from llc_jax.experiment.network import abstract_weights
from llc_jax.experiment.stage import Stage
from llc_jax.options import suggest
from llc_jax.training.logging import RunLog
from llc_jax.training.preemption import StopRequest
from llc_jax.weights import pretrained

LEARNT = "learnt"
_NAMES = ("cca", "hadamard", LEARNT, "random", "svd")

Source = Callable[[], Codebook]


def find(
    source: str,
    *,
    stage: str,
    class_names: tuple[str, ...],
    num_bits: int,
    seed: int,
    earlier: Sequence[Stage],
) -> Source:
    """Finds where a codebook comes from, and checks that it can be had and fits.

    Args:
      source: a name above, or a path.
      stage: the name of the stage that needs it, for errors.
      class_names: L names, which the codebook is given.
      num_bits: k.
      seed: of what is drawn.
      earlier: the stages before it that have the same classes.

    Returns:
      A function that makes the codebook, once the earlier stages are trained.

    Raises:
      InputError: if there is no such stage or file, or it has other classes or bits.
    """
    shape = (len(class_names), num_bits)
    if source in ("random", "hadamard"):
        draw = getattr(Codebook, source)
        return lambda: _named(draw(*shape, seed=seed), class_names)
    if source == LEARNT:
        candidates = [s for s in earlier if s.head == "codebook" and s.num_bits == num_bits]
        learnt_by = _last(candidates, source, stage, "codebook", f" and {num_bits} bits")
        path = learnt_by.directory.path

        def load() -> Codebook:
            codebook = learnt_by.directory.load_codebook()
            if codebook is None:
                raise InputError(f"There is no codebook in {path}.")
            return fit(codebook, path, stage, class_names, num_bits)

        return load
    if source in ("svd", "cca"):
        construct = {"svd": _svd, "cca": _cca}[source]
        linear = _last([s for s in earlier if s.head == "linear"], source, stage, "linear")
        _check_rank(source, stage, linear, num_bits)
        return lambda: _named(construct(linear, num_bits), class_names)
    if not pathlib.Path(source).suffix and not pathlib.Path(source).exists():
        raise InputError(
            f"The codebook of the stage {stage!r} is one of {', '.join(_NAMES)}, or a file, not "
            f"{source!r}.{suggest(source, _NAMES)}"
        )
    codebook = fit(Codebook.load(source), source, stage, class_names, num_bits)
    return lambda: codebook


def from_weights(path: str, backbone: str) -> Codebook:
    """Returns the codebook that a checkpoint of the official code holds.

    Raises:
      InputError: if it holds none.
    """
    latent = pretrained.latent_codebook(pretrained.read_state_dict(path), backbone)
    if latent is None:
        raise InputError(
            f"There is no codebook in the weights {path}: give its file as config.codebook."
        )
    return Codebook.from_numpy(latent, source=LEARNT)


def fit(
    codebook: Codebook,
    path: str | os.PathLike,
    stage: str,
    class_names: tuple[str, ...],
    num_bits: int,
) -> Codebook:
    """Returns a codebook of a file with the names of a stage's classes.

    Raises:
      InputError: if it is of other classes, or of another number of bits.
    """
    if codebook.latent.shape != (len(class_names), num_bits):
        raise InputError(
            f"The codebook {path} is of {codebook.num_classes} classes and {codebook.num_bits} "
            f"bits; the stage {stage!r} has {len(class_names)} classes and num_bits={num_bits}."
        )
    if not codebook.is_numbered and codebook.class_names != class_names:
        raise InputError(f"The classes of the codebook {path} are not those of the data.")
    return _named(codebook, class_names)


def _named(codebook: Codebook, class_names: tuple[str, ...]) -> Codebook:
    return dataclasses.replace(codebook, class_names=class_names)


def _last(candidates: Sequence[Stage], source: str, stage: str, head: str, more: str = "") -> Stage:
    """Returns the last of the stages that a codebook can come from."""
    if not candidates:
        raise InputError(
            f"The codebook of the stage {stage!r} is {source!r}, but there is no stage with a "
            f"{head} head before it, of the same classes{more}."
        )
    return candidates[-1]


def _check_rank(source: str, stage: str, linear: Stage, num_bits: int) -> None:
    """Refuses more bits than the classes and the features of a linear stage have directions."""
    kernel = abstract_weights(linear.network)["params"]["head"]["classifier"]["kernel"]
    num_features, num_classes = kernel.shape
    most = min(num_features, num_classes - (source == "cca"))
    if num_bits > most:
        raise InputError(
            f"The codebook of the stage {stage!r} is {source!r}, which has at most {most} bits for "
            f"{num_classes} classes and {num_features} features, not {num_bits}: choose fewer "
            "bits, or another codebook."
        )


def _svd(linear: Stage, num_bits: int) -> Codebook:
    kernel = linear.trained_weights()["params"]["head"]["classifier"]["kernel"]
    return Codebook.svd(np.asarray(kernel).T, num_bits)


def _cca(linear: Stage, num_bits: int) -> Codebook:
    log = RunLog(linear.workdir, primary=jax.process_index() == 0)
    trained = dataclasses.replace(linear, initial_weights=linear.trained_weights)
    moments = _training_moments(on_features(trained, log, StopRequest()))
    latent = construction.cca_of_moments(moments, num_bits)
    return Codebook.from_numpy(latent, source="cca")


def _training_moments(stage: Stage) -> construction.Moments:
    """Returns the moments of the features of all training images after a stage."""
    weights, num_classes = stage.trained_weights(), stage.num_classes

    @functools.partial(jit_network, out_shardings=stage.replicated)
    def moments(weights, batch):
        features = stage.network.features(weights["params"], weights["batch_stats"], batch["input"])
        one_hot = jax.nn.one_hot(batch["label"], num_classes) * batch["mask"][:, None]
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        masked = features * batch["mask"][:, None]
        sums, squares = product(one_hot.T, features), product(masked.T, features)
        return construction.Moments(jnp.sum(one_hot, axis=0), sums, squares)

    total = construction.Moments(0.0, 0.0, 0.0)
    for batch in stage.eval_batches(stage.dataset.train):
        of_batch = jax.device_get(moments(weights, batch))
        total = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), total, of_batch)
    return total
