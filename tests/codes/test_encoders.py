import json
import pickle
import tracemalloc

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.estimator_checks import parametrize_with_checks

import llc_jax
from llc_jax.codes import encoders, projection
from llc_jax.errors import InputError

PROJECTIONS = ("pca_sign", "rotation", "itq")


def clustered(seed, classes=20, per_class=40, dims=32):
    """Vectors around class means of which few directions have most of the variance."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(classes, dims)) / np.arange(1, dims + 1)
    labels = np.repeat(np.arange(classes), per_class)
    X = means[labels] + 0.15 * rng.normal(size=(len(labels), dims))
    axes = np.linalg.qr(rng.normal(size=(dims, dims)))[0]
    return X @ axes + rng.normal(size=dims), labels


def mean_average_precision(codes, labels):
    """MAP of every vector as a query among the others, expected over the orders of ties."""
    scores = []
    distances = np.bitwise_count(codes[:, None] ^ codes).sum(-1).astype(np.int32)
    for query, row in enumerate(distances):
        others = np.arange(len(labels)) != query
        relevant = (labels == labels[query])[others]
        scores.append(
            llc_jax.metrics.tie_aware_average_precision(
                row[others], relevant, relevant.sum(), len(relevant)
            )[0]
        )
    return np.mean(scores)


# The estimator passes every check of scikit-learn: no list of exceptions.
@parametrize_with_checks(
    [llc_jax.LinearEncoder(method, 2, num_iterations=3) for method in encoders.METHODS]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_sign_takes_the_first_numbers_as_they_are():
    X = np.array([[0.0, -1, 5, -2], [-3, 2, -0.5, 9]])
    encoder = llc_jax.LinearEncoder("sign", 3).fit(X)
    np.testing.assert_array_equal(encoder.code_logits(X), X[:, :3])
    np.testing.assert_array_equal(encoder.transform(X), [[0b101], [0b010]])
    whole = llc_jax.LinearEncoder("sign", 4).fit(X[:1])
    np.testing.assert_array_equal(whole.transform(X), [[0b0101], [0b1010]])


def test_pca_sign_is_the_signs_of_scikit_learns_pca():
    X, _ = clustered(0)
    encoder = llc_jax.LinearEncoder("pca_sign", 10).fit(X)
    expected = PCA(10, svd_solver="full").fit_transform(X)
    flips = np.sign((expected * encoder.code_logits(X)).sum(0))
    np.testing.assert_allclose(encoder.code_logits(X), expected * flips, atol=1e-5)
    assert encoder.code_logits(X).dtype == np.float32


@pytest.mark.parametrize("method", ["rotation", "itq"])
def test_a_rotation_keeps_the_distances_of_the_components(method):
    X, _ = clustered(0)
    pca = llc_jax.LinearEncoder("pca_sign", 10).fit(X)
    rotated = llc_jax.LinearEncoder(method, 10, random_state=0).fit(X)
    rotation = pca.projection_.T @ rotated.projection_
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(10), atol=1e-5)
    logits = pca.code_logits(X) @ rotation
    np.testing.assert_allclose(rotated.code_logits(X), logits, atol=1e-5)
    assert abs(rotation - np.eye(10)).max() > 0.1


def test_itq_starts_from_the_rotation_and_ends_nearer_to_the_signs():
    X, _ = clustered(1)

    def error(method, **options):
        encoder = llc_jax.LinearEncoder(method, 16, random_state=3, **options)
        logits = encoder.fit(X).code_logits(X)
        return np.square(np.where(logits >= 0, 1, -1) - logits).sum()

    assert error("itq", num_iterations=0) == error("rotation")
    errors = [error("itq", num_iterations=count) for count in (0, 1, 2, 5, 10, 50)]
    assert (np.diff(errors) < 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_fitted_better_retrieves_better(seed):
    X, labels = clustered(seed)
    scores = {
        method: mean_average_precision(
            llc_jax.LinearEncoder(method, 16, random_state=seed).fit_transform(X), labels
        )
        for method in encoders.METHODS
    }
    # The order of the ITQ paper: the first bits of PCA have more variance than the others.
    assert scores["itq"] > scores["rotation"] > scores["pca_sign"] > scores["sign"], scores


@pytest.mark.parametrize("method", encoders.METHODS)
@pytest.mark.parametrize("num_bits", [1, 20, 32, 33, 64])
def test_codes_are_the_packed_signs_of_the_logits(method, num_bits):
    X, _ = clustered(0, classes=5, dims=70)
    encoder = llc_jax.LinearEncoder(method, num_bits, num_iterations=2, random_state=0).fit(X)
    codes, logits = encoder.transform(X), encoder.code_logits(X)
    assert codes.dtype == np.uint32
    assert codes.shape == (len(X), -(-num_bits // 32))
    np.testing.assert_array_equal(codes, llc_jax.pack(logits))


@pytest.mark.parametrize("method", encoders.METHODS)
def test_the_same_seed_gives_the_same_codes(method):
    X, _ = clustered(0)
    first, again, other = (
        llc_jax.LinearEncoder(method, 12, num_iterations=5, random_state=seed).fit(X)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.code_logits(X), again.code_logits(X))
    differ = (first.code_logits(X) != other.code_logits(X)).any()
    assert differ == (method in ("rotation", "itq"))
    refitted = clone(first).fit(X)
    np.testing.assert_array_equal(first.transform(X), refitted.transform(X))


@pytest.mark.parametrize("method", encoders.METHODS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_chunks_and_types_do_not_matter(method, dtype, monkeypatch):
    X = np.round(20 * clustered(0)[0]).astype(dtype)
    expected = llc_jax.LinearEncoder(method, 8, random_state=0).fit(X.astype(np.float64))
    monkeypatch.setattr(projection, "_CHUNK_NUMBERS", 1000)
    encoder = llc_jax.LinearEncoder(method, 8, random_state=0).fit(X)
    np.testing.assert_allclose(
        encoder.code_logits(X), expected.code_logits(X.astype(np.float64)), atol=1e-3
    )


def test_vectors_far_from_zero_keep_their_codes():
    X, _ = clustered(0)
    near, far = (llc_jax.LinearEncoder("pca_sign", 8).fit(data) for data in (X, X + 1e7))
    np.testing.assert_allclose(near.code_logits(X), far.code_logits(X + 1e7), atol=1e-5)


def test_itq_learns_from_a_sample_of_many_vectors(monkeypatch):
    X, labels = clustered(2)
    whole = llc_jax.LinearEncoder("itq", 16, random_state=0).fit(X)
    monkeypatch.setattr(encoders, "_MAX_ITQ_VECTORS", 400)
    first, again = (llc_jax.LinearEncoder("itq", 16, random_state=0).fit(X) for _ in range(2))
    np.testing.assert_array_equal(first.projection_, again.projection_)
    assert (first.projection_ != whole.projection_).any()
    scores = [mean_average_precision(e.transform(X), labels) for e in (first, whole)]
    assert scores[0] == pytest.approx(scores[1], rel=0.1)


def test_memory_mapped_vectors_are_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(projection, "_CHUNK_NUMBERS", 2**14)
    monkeypatch.setattr(encoders, "_MAX_ITQ_VECTORS", 1000)
    np.save(tmp_path / "X.npy", np.random.default_rng(0).normal(size=(50_000, 20)).astype("f2"))
    X = np.load(tmp_path / "X.npy", mmap_mode="r")
    tracemalloc.start()
    codes = llc_jax.LinearEncoder("itq", 10, num_iterations=2, random_state=0).fit_transform(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < codes.nbytes + 1e6  # The vectors are 2 MB, and 8 MB as float64.


def test_in_a_pipeline_and_before_an_index():
    X, labels = clustered(0)
    pipeline = make_pipeline(Normalizer(), llc_jax.LinearEncoder("itq", 20, random_state=0))
    codes = pipeline.fit_transform(X)
    index = llc_jax.HammingIndex(num_bits=20)
    index.add(codes)
    distances, ids = index.search(pipeline.transform(X[:50]), k=5)
    assert (distances[:, 0] == 0).all()
    assert (labels[ids] == labels[:50, None]).mean() > 0.5
    assert list(pipeline.get_feature_names_out()) == ["linearencoder0"]


def test_the_length_is_that_of_the_fit():
    X, _ = clustered(0)
    encoder = llc_jax.LinearEncoder("pca_sign", 20).fit(X)
    encoder.set_params(num_bits=40)
    assert encoder.transform(X).shape == (len(X), 1)
    assert encoder.transform(X[:0]).shape == (0, 1)
    assert encoder.code_logits(X[:0]).shape == (0, 20)


def test_a_direction_without_variance_gives_zero_logits():
    X, _ = clustered(0, dims=4)
    X = np.concatenate([X, X], axis=1).astype(np.float32)
    logits = llc_jax.LinearEncoder("pca_sign", 8).fit(X).code_logits(X)
    assert (logits[:, :4].std(axis=0) > 0.1).all()
    assert not logits[:, 4:].any()


@pytest.mark.parametrize("method", encoders.METHODS)
def test_saved_and_loaded(method, tmp_path):
    X, _ = clustered(0)
    encoder = llc_jax.LinearEncoder(method, 20, num_iterations=3, random_state=np.int64(7)).fit(X)
    encoder.save(tmp_path / "encoder.npz")
    loaded = llc_jax.LinearEncoder.load(tmp_path / "encoder.npz")
    assert loaded.get_params() == encoder.get_params()
    np.testing.assert_array_equal(loaded.code_logits(X), encoder.code_logits(X))
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(loaded)).transform(X), encoder.transform(X)
    )
    with pytest.raises(InputError, match="X has 31 features, but LinearEncoder is expecting 32"):
        loaded.transform(X[:, 1:])
    refitted = loaded.fit(X)
    np.testing.assert_array_equal(refitted.transform(X), encoder.transform(X))


def test_a_generator_cannot_be_saved_but_what_is_fitted_can(tmp_path):
    X, _ = clustered(0)
    encoder = llc_jax.LinearEncoder("rotation", 8, random_state=np.random.RandomState(0)).fit(X)
    encoder.save(tmp_path / "encoder.npz")
    loaded = llc_jax.LinearEncoder.load(tmp_path / "encoder.npz")
    assert loaded.random_state is None
    np.testing.assert_array_equal(loaded.transform(X), encoder.transform(X))


def test_files_that_are_no_encoders_are_named(tmp_path):
    X, _ = clustered(0)
    encoder = llc_jax.LinearEncoder("itq", 8, num_iterations=1).fit(X)
    with pytest.raises(InputError, match="saved as .npz, not as 'encoder.pkl'"):
        encoder.save(tmp_path / "encoder.pkl")
    with pytest.raises(NotFittedError):
        llc_jax.LinearEncoder().save(tmp_path / "encoder.npz")
    path = tmp_path / "encoder.npz"
    with pytest.raises(InputError, match="There is no encoder at"):
        llc_jax.LinearEncoder.load(path)
    encoder.save(path)
    content = path.read_bytes()
    for damaged in (b"", content[:-100], content[:2000] + b"\xff" + content[2001:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is not an encoder"):
            llc_jax.LinearEncoder.load(path)
    path.write_bytes(content)
    with np.load(path) as archive:
        arrays = dict(archive)
    other = json.dumps(json.loads(str(arrays["fitted"])) | {"num_bits": 9})
    for change in (
        {"projection": arrays["projection"][:, 1:]},
        {"projection": arrays["projection"].astype(np.int64)},
        {"fitted": np.asarray(other)},
        {"fitted": np.asarray("[]")},
    ):
        np.savez(path, **(arrays | change))
        with pytest.raises(InputError, match="is not an encoder"):
            llc_jax.LinearEncoder.load(path)
    llc_jax.Codebook.random(4, 8).save(path)
    with pytest.raises(InputError, match="is not an encoder"):
        llc_jax.LinearEncoder.load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "itk"}, "The method is one of itq, .*, not 'itk'. Did you mean 'itq'"),
        ({"num_bits": 0}, "between 1 and 1024 bits, not 0"),
        ({"num_bits": 8.0}, "between 1 and 1024 bits, not 8.0"),
        ({"num_iterations": -1}, "num_iterations is 0 or a larger int, not -1"),
        ({"num_bits": 33}, r"itq makes at most 32 bits of 800 sample\(s\) with 32 feature\(s\), "),
        ({"num_bits": 33, "method": "sign"}, r"sign makes at most 32 bits .* not 33: lower"),
    ],
)
def test_parameters_that_do_not_fit_are_named(options, message):
    X, _ = clustered(0)
    with pytest.raises(InputError, match=message):
        llc_jax.LinearEncoder(**options).fit(X)


def test_vectors_that_do_not_fit_are_named():
    X, _ = clustered(0)
    encoder = llc_jax.LinearEncoder("pca_sign", 8).fit(X)
    with pytest.raises(InputError, match="not 8: lower num_bits or fit on more samples"):
        clone(encoder).fit(X[:7])
    for call in (clone(encoder).fit, encoder.transform, encoder.code_logits):
        with pytest.raises(InputError, match=r"not of shape \(32,\). Reshape your data") as caught:
            call(X[0])
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match=r"not of shape \(1, 800, 32\)"):
            call(X[None])
        with pytest.raises(InputError, match="X has inf in row 5, column 31"):
            call(np.where(np.arange(X.size).reshape(X.shape) == 5 * 32 + 31, np.inf, X))
        with pytest.raises(InputError, match=r"X has 1e\+300 in row 0"):
            call(np.where(np.arange(X.size).reshape(X.shape) == 0, 1e300, X))
        with pytest.raises(InputError, match="not compatible with arrays of bytes/strings"):
            call([["a", "b"]])
    for call in (encoder.transform, encoder.code_logits):
        with pytest.raises(InputError, match="X has 31 features, but .* 32 features"):
            call(X[:, 1:])
        with pytest.raises(NotFittedError):
            getattr(clone(encoder), call.__name__)(X)
