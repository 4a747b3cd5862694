"""Binary encoders of vectors that are fitted without labels, as scikit-learn transformers."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.random import sample_without_replacement
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from llc_jax.codes import packing, projection
from llc_jax.copies import local
from llc_jax.errors import InputError
from llc_jax.files import read_arrays, write_arrays
from llc_jax.options import choose

METHODS = ("sign", "pca_sign", "rotation", "itq")

# The rotation of ITQ is learnt from at most so many vectors.
_MAX_ITQ_VECTORS = 2**16


class LinearEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Encodes vectors by the signs of a linear projection that is fitted without labels.

    These are the baselines for learnt codes, and the choice where there are no labels or the
    classes of interest are not among those with labels. The methods:

      "sign": the signs of the first k of d numbers, as they are. With k = d this is the usual
        binary quantisation of embeddings; fewer suit embeddings whose first dimensions are
        trained to do by themselves (Matryoshka). Nothing is learnt.
      "pca_sign": the signs of the first k principal components.
      "rotation": the same, after a random rotation, which spreads the variance over the bits.
      "itq": the same, after the rotation that brings the components nearest to their signs.

    A direction in which the vectors of `fit` do not vary is ignored: its component is 0.

    Args:
      method: "sign", "pca_sign", "rotation" or "itq".
      num_bits: k, the bits of a code; at most d, and but for "sign" at most N.
      num_iterations: of ITQ; with 0 it is the random rotation.
      random_state: the seed of the rotation, where ITQ starts too, and of ITQ's sample of
        65,536 vectors where there are more: an int, a RandomState, or None for a new one
        at each fit.

    Attributes:
      n_features_in_: d.
      num_bits_: k.
      mean_: float64[d], which is subtracted; None for "sign".
      projection_: float32[d, k], with orthonormal columns; None for "sign".

    References:
      Gong and Lazebnik, Iterative Quantization, CVPR 2011.
    """

    def __init__(
        self,
        method: str = "itq",
        num_bits: int = 20,
        *,
        num_iterations: int = 50,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.method = method
        self.num_bits = num_bits
        self.num_iterations = num_iterations
        self.random_state = random_state

    def fit(self, X: npt.ArrayLike, y: Any = None) -> Self:
        """Fits the projection, reading X in chunks.

        Args:
          X: float[N, d] or integers; a memory-mapped array is not read into memory.
          y: ignored.

        Raises:
          InputError: if X is no matrix of finite numbers, or a parameter does not fit it.
        """
        X = self._checked(X, fitting=True)
        self._check_parameters(*X.shape)
        random = check_random_state(self.random_state)
        self.mean_ = self.projection_ = None
        if self.method == "sign":
            for rows in projection.chunks(*X.shape):
                projection.check_finite(X[rows], X, rows)
        else:
            self._fit_projection(X, random)
        self.num_bits_ = int(self.num_bits)
        return self

    def code_logits(self, X: npt.ArrayLike) -> np.ndarray:
        """Returns the real numbers whose signs are the codes.

        Args:
          X: float[N, d].

        Returns:
          float32[N, k].

        Raises:
          InputError: if X is no matrix of finite numbers, or has not the d columns of `fit`.
        """
        X = self._checked(X)
        logits = np.empty((len(X), self.num_bits_), np.float32)
        for rows, part in self._logits(X):
            logits[rows] = part
        return logits

    def transform(self, X: npt.ArrayLike) -> np.ndarray:
        """Encodes vectors, reading X in chunks.

        Args:
          X: float[N, d].

        Returns:
          uint32[N, ceil(k / 32)], the packed codes, as `llc_jax.pack` makes them.

        Raises:
          InputError: if X is no matrix of finite numbers, or has not the d columns of `fit`.
        """
        X = self._checked(X)
        codes = np.empty((len(X), self._n_features_out), np.uint32)
        for rows, logits in self._logits(X):
            codes[rows] = packing.pack_on_host(logits)
        return codes

    def save(self, path: str | os.PathLike) -> None:
        """Writes the fitted encoder as `.npz`; a random_state that is no int is left out."""
        check_is_fitted(self)
        if pathlib.Path(path).suffix != ".npz":
            raise InputError(f"An encoder is saved as .npz, not as {pathlib.Path(path).name!r}.")
        seed = self.random_state
        parameters = {
            "method": self.method,
            "num_bits": int(self.num_bits),
            "num_iterations": int(self.num_iterations),
            "random_state": int(seed) if isinstance(seed, int | np.integer) else None,
        }
        fitted = {"n_features_in": self.n_features_in_, "num_bits": self.num_bits_}
        arrays = {"fitted": np.asarray(json.dumps({"parameters": parameters, **fitted}))}
        if self.projection_ is not None:
            arrays |= {
                "mean": self.mean_.astype("<f8"),
                "projection": self.projection_.astype("<f4"),
            }
        if hasattr(self, "feature_names_in_"):
            arrays["feature_names_in"] = self.feature_names_in_.astype(np.str_)
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads a saved encoder.

        Raises:
          InputError: if the file is missing, damaged, or not an encoder.
        """
        path = local(path)
        if not path.is_file():
            raise InputError(f"There is no encoder at {path}.")
        try:
            arrays = read_arrays(path)
            fitted = json.loads(str(arrays["fitted"]))
            encoder = cls(**fitted["parameters"])
            encoder.n_features_in_ = dims = int(fitted["n_features_in"])
            encoder.num_bits_ = num_bits = int(fitted["num_bits"])
            packing.num_words(num_bits)
            encoder.mean_, encoder.projection_ = arrays.get("mean"), arrays.get("projection")
            for array, shape in ((encoder.mean_, (dims,)), (encoder.projection_, (dims, num_bits))):
                if array is not None and (array.dtype.kind != "f" or array.shape != shape):
                    raise ValueError(f"it has {array.dtype}{list(array.shape)} for {list(shape)}")
            if (encoder.projection_ is None) != (encoder.mean_ is None) or num_bits > dims:
                raise ValueError("its parts do not fit together")
            if "feature_names_in" in arrays:
                encoder.feature_names_in_ = arrays["feature_names_in"].astype(object)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path} is not an encoder ({str(error).rstrip('.')}): expected an .npz that "
                "LinearEncoder.save wrote."
            ) from error
        return encoder

    @property
    def _n_features_out(self) -> int:
        """The words of a code, which scikit-learn names in `get_feature_names_out`."""
        return packing.num_words(self.num_bits_)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # The words of a code are uint32.
        return tags

    def _fit_projection(self, X: np.ndarray, random: np.random.RandomState) -> None:
        self.mean_, matrix = projection.covariance(X)
        axes = projection.principal_axes(matrix, self.num_bits)
        self.projection_ = axes.astype(np.float32)
        if self.method == "pca_sign":
            return
        rotation = projection.random_rotation(self.num_bits, random)
        if self.method == "itq":
            sample = np.arange(len(X))
            if len(X) > _MAX_ITQ_VECTORS:
                drawn = sample_without_replacement(len(X), _MAX_ITQ_VECTORS, random_state=random)
                sample = np.sort(drawn)  # In the order of the file that X may be mapped from.
            parts = (X[sample[rows]] for rows in projection.chunks(len(sample), X.shape[1]))
            components = np.concatenate(
                [part for chunk in parts for _, part in self._logits(chunk)]
            )
            rotation = projection.itq_rotation(components, rotation, self.num_iterations)
        self.projection_ = (axes @ rotation).astype(np.float32)

    def _logits(self, X: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields the code logits of chunks of rows, float32[n, k]."""
        for rows in projection.chunks(*X.shape):
            with np.errstate(over="ignore", invalid="ignore"):
                if self.projection_ is None:
                    logits = X[rows, : self.num_bits_].astype(np.float32)
                else:
                    # A product would lose the digits by which large numbers differ.
                    wide = X.dtype.kind != "f" or X.dtype.itemsize > 4
                    mean = self.mean_.astype(np.float64 if wide else np.float32)
                    centred = (X[rows] - mean).astype(np.float32, copy=False)
                    logits = centred @ self.projection_
            # What is not finite in X is not finite in its products either.
            projection.check_finite(logits, X, rows)
            yield rows, logits

    def _checked(self, X: npt.ArrayLike, fitting: bool = False) -> np.ndarray:
        """Returns X as a matrix of numbers, without a copy where it is one; not its finiteness."""
        if not fitting:
            check_is_fitted(self)
        try:
            array = check_array(
                X,
                dtype="numeric",
                ensure_2d=False,
                allow_nd=True,
                ensure_all_finite=False,
                ensure_min_samples=int(fitting),
                estimator=self,
                input_name="X",
            )
            if array.ndim != 2:
                raise ValueError(
                    f"X is a matrix of vectors, float[N, d], not of shape {array.shape}. "
                    "Reshape your data, as with X.reshape(1, -1) for one vector."
                )
            validate_data(self, X, reset=fitting, skip_check_array=True)
        except ValueError as error:
            # Some of scikit-learn's messages have several lines.
            raise InputError(" ".join(str(error).split())) from error
        return array

    def _check_parameters(self, count: int, dims: int) -> None:
        choose(self.method, dict.fromkeys(METHODS), "The method")
        packing.num_words(self.num_bits)
        if not isinstance(self.num_iterations, int | np.integer) or self.num_iterations < 0:
            raise InputError(f"num_iterations is 0 or a larger int, not {self.num_iterations!r}.")
        limit = dims if self.method == "sign" else min(count, dims)
        if self.num_bits > limit:
            raise InputError(
                f"{self.method} makes at most {limit} bits of {count} sample(s) with {dims} "
                f"feature(s), not {self.num_bits}: lower num_bits"
                f"{' or fit on more samples' if limit == count < dims else ''}."
            )
