import pickle

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.estimator_checks import parametrize_with_checks

import llc_jax
from llc_jax.codes import packing
from llc_jax.errors import InputError
from llc_jax.experiment import memory_run
from llc_jax.training.logging import ProgressLog

SMALL = {"num_bits": 8, "hidden": (32,), "random_state": 0}


def blobs(count=400, seed=0):
    """Embeddings of 12 numbers in five classes, with letters as labels."""
    X, y = make_blobs(count, 12, centers=5, random_state=seed)
    return X.astype(np.float32), np.array(list("abcde"))[y]


@pytest.fixture(scope="module")
def fitted():
    """An estimator that is fitted to the blobs."""
    return llc_jax.LLC(**SMALL).fit(*blobs())


def failing(estimator):
    """The checks of scikit-learn that fail by design."""
    return {"check_transformer_preserve_dtypes": "codes are words of 32 bits"}


@pytest.mark.slow
@parametrize_with_checks([llc_jax.LLC(**SMALL, dropout=0.0)], expected_failed_checks=failing)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_codes_classes_and_scores_agree(fitted):
    X, y = blobs()
    logits, codes = fitted.code_logits(X), fitted.transform(X)
    np.testing.assert_array_equal(codes, packing.pack(logits))
    assert codes.dtype == np.uint32
    scores = fitted.decision_function(X)
    signs = np.where(fitted.codebook_.latent >= 0, 1.0, -1.0)
    np.testing.assert_allclose(scores, logits @ signs.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(fitted.predict(X), fitted.classes_[scores.argmax(1)])
    assert list(fitted.classes_) == list("abcde")
    assert fitted.codebook_.class_names == tuple("abcde")
    assert fitted.score(X, y) == 1.0
    assert fitted.codebook_.num_unique == 5


def test_decoders_that_reject_have_no_class(fitted):
    X, y = blobs()
    exact = clone(fitted).set_params(decoder="ed").fit(X, y)
    far = np.concatenate([X[:1], 1e3 * np.random.default_rng(0).normal(size=(50, 12))])
    labels = exact.predict(far.astype(np.float32))
    rejected = ~np.isin(exact.transform(far)[:, 0], exact.codebook_.packed[:, 0])
    assert rejected.any()
    np.testing.assert_array_equal(labels == None, rejected)  # noqa: E711 - element by element


@pytest.mark.slow
def test_one_random_state_gives_the_same_bits(fitted):
    X, y = blobs()
    again, other = llc_jax.LLC(**SMALL).fit(X, y), llc_jax.LLC(**SMALL | {"random_state": 1})
    np.testing.assert_array_equal(again.code_logits(X), fitted.code_logits(X))
    assert (other.fit(X, y).code_logits(X) != fitted.code_logits(X)).any()


def test_unknown_embeddings(fitted):
    X, _ = blobs()
    far = np.concatenate([X[:50], np.random.default_rng(0).normal(scale=30, size=(50, 12))])
    codes, class_codes = fitted.transform(far), fitted.codebook_.packed
    distances = np.bitwise_count(codes[:, None] ^ class_codes).sum(axis=2).min(axis=1)
    for radius in (0, 1):
        unknown = fitted.detect_ood(far, radius)
        np.testing.assert_array_equal(unknown, distances > radius)
    assert fitted.detect_ood(far)[50:].mean() > fitted.detect_ood(far)[:50].mean()
    with pytest.raises(InputError, match="whole number of at least 0 bits, not -1"):
        fitted.detect_ood(far, radius=-1)
    for method in ("detect_ood", "transform", "code_logits", "predict"):
        with pytest.raises(NotFittedError, match="is not fitted yet"):
            getattr(clone(fitted), method)(far)


def test_each_stage_of_a_run_in_memory_can_be_had(fitted):
    X, y = blobs()
    dataset = memory_run.dataset_of(X, np.unique(y, return_inverse=True)[1], tuple("abcde"))
    log = ProgressLog(quiet=True)
    linear, codebook, instance = memory_run.train_stages(fitted._run, dataset, log)
    names = [trained.stage.name for trained in (linear, codebook, instance)]
    assert names == ["linear", "codebook", "instance"]
    assert linear.codebook is None
    assert "classifier" in linear.weights["params"]["head"]
    np.testing.assert_array_equal(codebook.codebook.latent, fitted.codebook_.latent)
    jax.tree.map(np.testing.assert_array_equal, instance.weights, fitted._weights)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats(fitted, dtype):
    X, y = blobs()
    X = X.astype(dtype)
    assert llc_jax.LLC(**SMALL).fit(X, y).score(X, y) == 1.0
    assert np.mean(fitted.transform(X) == fitted.transform(X.astype(np.float32))) > 0.99


def test_mapped_embeddings(tmp_path, fitted):
    X, y = blobs()
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    estimator = llc_jax.LLC(**SMALL).fit(mapped, y)
    np.testing.assert_array_equal(estimator.transform(mapped), fitted.transform(X))


def test_is_pickled_by_its_state(fitted):
    X, _ = blobs()
    copy = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copy.transform(X), fitted.transform(X))
    assert not hasattr(pickle.loads(pickle.dumps(clone(fitted))), "codebook_")


def test_what_it_saves_is_a_run(fitted, tmp_path):
    X, y = blobs()
    fitted.save(tmp_path / "run")
    model = llc_jax.load(tmp_path / "run")
    np.testing.assert_array_equal(model.encode(X), fitted.transform(X))
    labels, _ = model.classify(X, decoder="soft")
    assert [model.codebook.class_names[label] for label in labels] == list(y)
    with pytest.raises(InputError, match="exists already: name a new directory"):
        fitted.save(tmp_path / "run")
    with pytest.raises(InputError, match=r"Embeddings are float\[N, 12\], not float32\[400, 3\]"):
        model.encode(X[:, :3])


@pytest.mark.slow
def test_in_a_pipeline_and_a_grid_search():
    X, y = blobs()
    pipeline = make_pipeline(Normalizer(), llc_jax.LLC(**SMALL))
    search = GridSearchCV(pipeline, {"llc__num_bits": [1, 8]}, cv=2).fit(X, y)
    assert search.best_params_ == {"llc__num_bits": 8}
    assert search.score(X, y) > 0.95


def test_bad_input_is_one_sentence(fitted):
    X, y = blobs()
    spoilt = X.copy()
    spoilt[3, 2] = np.nan
    with pytest.raises(InputError, match="input 3 are not finite: it has NaN or inf"):
        fitted.transform(spoilt)
    with pytest.raises(InputError, match="y has one class: a"):
        llc_jax.LLC(**SMALL).fit(X, np.full(len(X), "a"))
    with pytest.raises(InputError, match="batch_size is at least 2, not 1"):
        llc_jax.LLC(**SMALL, batch_size=1).fit(X, y)
    with pytest.raises(InputError, match="scale it down"):
        llc_jax.LLC(**SMALL).fit(X.astype(np.float64) * 1e60, y)


def test_a_fit_that_is_stopped_leaves_the_estimator_as_it_was(fitted, monkeypatch):
    X, y = blobs()
    estimator, before = pickle.loads(pickle.dumps(fitted)), fitted.transform(X)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("llc_jax.experiment.memory_run.train_stage", stop)
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(X, y[::-1])
    np.testing.assert_array_equal(estimator.transform(X), before)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_takes_frames(library):
    frames = pytest.importorskip(library)
    X, y = make_blobs(60, 4, centers=3, random_state=0)
    X = X.astype(np.float32)
    frame = frames.DataFrame(dict(zip("abcd", X.T, strict=True)))
    of_arrays = llc_jax.LLC(**SMALL).fit(X, y)
    of_frames = llc_jax.LLC(**SMALL).fit(frame, frames.Series(y))
    assert of_frames.feature_names_in_.tolist() == list("abcd")
    np.testing.assert_array_equal(of_frames.transform(frame), of_arrays.transform(X))
    np.testing.assert_array_equal(of_frames.predict(frame), of_arrays.predict(X))
    coded = of_frames.set_output(transform=library).transform(frame)
    assert isinstance(coded, frames.DataFrame)
    assert list(coded.columns) == ["llc0"]
