"""A scikit-learn estimator: labelled embeddings -> codes, in seconds to minutes."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.copies import as_path
from llc_jax.decoding import decoders
from llc_jax.errors import InputError
from llc_jax.experiment import memory_run
from llc_jax.experiment.config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    StageConfig,
)
from llc_jax.experiment.finished_run import write_run
from llc_jax.experiment.network import build_network
from llc_jax.inference import Model, make_reader
from llc_jax.models.network import Tree
from llc_jax.training.logging import ProgressLog

# A stage takes at least so many steps, in more epochs where the data are few.
_MIN_STEPS = 300

_FLOATS = (np.float32, np.float64, np.float16)


class LLC(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClassifierMixin, BaseEstimator):
    """Learnt binary codes of labelled embeddings, and the classifier that goes with them.

    `fit` trains a classifier of the embeddings, then the class codes (phase 1), then the codes
    of the embeddings (phase 2), as a run of `configs/embeddings_20bit.py` does. It begins anew
    each time; a fit that is interrupted leaves the estimator as it was before.

    Args:
      num_bits: k, the bits of a code.
      hidden: widths of the hidden layers before the bits.
      dropout: the probability that a number is dropped in the hidden layers.
      epochs: passes over the embeddings of the three stages; more where they are few, so that
        each stage takes 300 steps.
      batch_size: embeddings of a step; fewer where there are few.
      learning_rate: the highest of each stage, of AdamW.
      weight_decay: of AdamW.
      standardize: whether each number of the embeddings is centred and scaled.
      decoder: for `predict`: "soft", or a name that `llc_jax.decoders.make` takes; those that
        reject embeddings ("ed", "radius_2") give None for their class, or -1 for numbers.
      random_state: seed of everything random.
      verbose: whether to show a progress bar, and a line for each stage.

    Attributes:
      classes_: the L classes, sorted.
      codebook_: a `llc_jax.Codebook`, the class codes.
      n_features_in_: d.

    References:
      LLC, section 3.

    Example:
      >>> X, y = sklearn.datasets.load_digits(return_X_y=True)
      >>> coder = llc_jax.LLC(num_bits=8, hidden=(128,), random_state=0).fit(X[::2], y[::2])
      >>> coder.transform(X[1::2]).shape
      (898, 1)
      >>> coder.score(X[1::2], y[1::2]) > 0.9
      True
    """

    def __init__(
        self,
        num_bits: int = 20,
        *,
        hidden: Sequence[int] = (512, 512, 512),
        dropout: float = 0.3,
        epochs: tuple[int, int, int] = (10, 10, 20),
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        weight_decay: float = 1e-2,
        standardize: bool = True,
        decoder: str = "soft",
        random_state: int | None = None,
        verbose: bool = False,
    ):
        self.num_bits = num_bits
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.standardize = standardize
        self.decoder = decoder
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: np.ndarray, y: np.ndarray) -> "LLC":
        """Trains on embeddings and their labels.

        Args:
          X: float[N, d], of 16, 32 or 64 bits, in memory or mapped.
          y: N labels, of any type that can be sorted.

        Raises:
          InputError: if there are too few classes or embeddings, or a parameter is wrong.
        """
        X, y = validate_data(self, X, y, dtype=_FLOATS, ensure_min_samples=2)
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise InputError(f"Codes need at least two classes, but y has one class: {classes[0]}.")
        if self.batch_size < 2:
            raise InputError(f"batch_size is at least 2, not {self.batch_size}.")
        if X.dtype == np.float64:
            X = _as_float32(X)
        config = self._config(X.shape[1])
        dataset = memory_run.dataset_of(X, labels.astype(np.int32), tuple(map(str, classes)))
        _, weights, codebook = memory_run.train(config, dataset, ProgressLog(not self.verbose))
        self.classes_, self.codebook_ = classes, codebook
        self._run, self._weights = config, weights
        self._n_features_out = packing.num_words(self.num_bits)
        self._model = _make_model(config, codebook, weights)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Returns the packed codes of embeddings, uint32[N, ceil(k / 32)]."""
        return self._fitted._model.encode(self._checked(X))

    def code_logits(self, X: np.ndarray) -> np.ndarray:
        """Returns the real numbers whose signs are the codes, float32[N, k]."""
        return self._fitted._model.code_logits(self._checked(X))

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Returns the soft logits B(C) f, float32[N, L]; of two classes their difference, [N]."""
        codes = packing.unpack(self._fitted.codebook_.packed, self.num_bits)
        scores = self.code_logits(X) @ np.asarray(codes, np.float32).T
        return scores if scores.shape[1] > 2 else scores[:, 1] - scores[:, 0]

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Returns the classes of embeddings, [N]."""
        if self.decoder == "soft":
            scores = self.decision_function(X)
            return self.classes_[scores.argmax(1) if scores.ndim > 1 else (scores > 0).astype(int)]
        decode = decoders.make(self.decoder, self._fitted.codebook_)
        labels, _ = map(np.asarray, decode(self.code_logits(X)))
        known = self.classes_[np.maximum(labels, 0)]
        if labels.min(initial=0) >= 0:
            return known
        rejected = -1 if self.classes_.dtype.kind in "iuf" else None
        return np.where(labels < 0, rejected, known.astype(object if rejected is None else None))

    def detect_ood(self, X: np.ndarray, radius: int = 0) -> np.ndarray:
        """Returns whether embeddings belong to no class: no class code is near theirs, bool[N].

        Args:
          X: float[N, d].
          radius: in bits. An embedding is unknown if the codes of all classes differ from its
            code in more bits.

        Raises:
          InputError: if an embedding is not finite, or the radius is not a whole number from 0.

        References:
          LLC, section 4.3 and appendix E, with radius 0; its introduction has radius 1.
        """
        return self._fitted._model.detect_ood(self._checked(X), radius)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a finished run's workdir, which `llc_jax.load` and `llc` take.

        Raises:
          InputError: if there is something at the path.
          WriteFailed: if it cannot be written.
        """
        fitted = self._fitted
        path = as_path(path).expanduser().absolute()
        write_run(path, fitted._run, fitted._weights, fitted.codebook_)

    @property
    def _fitted(self) -> "LLC":
        check_is_fitted(self)
        return self

    def _checked(self, X: np.ndarray) -> np.ndarray:
        """Returns embeddings of the form that was fitted; that they are finite is seen later."""
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=_FLOATS, ensure_all_finite=False)

    def _config(self, size: int) -> RunConfig:
        """Returns the config of the run that fits embeddings of `size` numbers."""
        stage = functools.partial(_stage, self)
        scale = self.num_bits**-0.5
        linear, codebook, instance = self.epochs
        return RunConfig(
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
            num_bits=self.num_bits,
            prefixes=(),
            init_from="scratch",
            drop_head=False,
            codebook="learnt",
            batch_size=self.batch_size,
            min_steps=_MIN_STEPS,
            data=_data(size),
            model={"name": "identity", "standardize": self.standardize},
            stages={
                "linear": stage(linear, "softmax", "linear", "scratch"),
                "codebook": stage(codebook, "codebook", "codebook", "linear", logit_scale=scale),
                "instance": stage(instance, "instance", "code", "codebook", teacher="linear"),
            },
            checkpoint=CheckpointConfig(keep=1, steps=0),
            eval_epochs=0,
            decoders=(),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "_model"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_weights" in state:
            self._model = _make_model(self._run, self.codebook_, self._weights)


def _make_model(config: RunConfig, codebook: Codebook, weights: Tree) -> Model:
    last = list(config.stages.values())[-1]
    network = build_network(config, last, codebook.num_classes)
    return Model(codebook, network, weights, make_reader(config))


def _stage(
    estimator: LLC,
    epochs: int,
    objective: str,
    head: str,
    init_from: str,
    *,
    teacher: str = "",
    **options,
) -> StageConfig:
    hidden = {"hidden": tuple(estimator.hidden), "dropout": float(estimator.dropout)}
    return StageConfig(
        objective={"name": objective},
        head={"name": head, **hidden, **options},
        epochs=epochs,
        init_from=init_from,
        codebook="",
        trainable_blocks=None,
        teacher=teacher,
        optimizer=OptimizerConfig(
            name="adamw",
            learning_rate=float(estimator.learning_rate),
            schedule="cosine",
            warmup_epochs=1.0,
            momentum=0.9,
            nesterov=False,
            weight_decay=float(estimator.weight_decay),
            codebook_rate=10.0,
        ),
    )


def _data(size: int) -> DataConfig:
    """Returns the config of data that are in memory."""
    return DataConfig(
        source="",
        eval_source="",
        holdout=0.1,
        image_size=None,
        crop_fraction=None,
        exif_orientation=True,
        in_memory=True,
        augment={},
        workers=None,
        on_error="stop",
        embedding_size=size,
    )


def _as_float32(X: np.ndarray) -> np.ndarray:
    """Returns float64 embeddings as float32; those that are too large for it are refused."""
    with np.errstate(over="ignore"):
        smaller = X.astype(np.float32)
    if not np.isfinite(smaller).all():
        raise InputError("X has values too large for dtype('float32'): scale it down.")
    return smaller
