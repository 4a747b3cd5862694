import tracemalloc

import numpy as np
import pytest
import scipy.linalg
from sklearn.decomposition import PCA

from llc_jax.codes import projection
from llc_jax.errors import InputError


def vectors(count=500, dims=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dims)) @ rng.normal(size=(dims, dims)) + rng.normal(size=dims)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(projection, "_CHUNK_NUMBERS", 100)


def error(components, rotation):
    rotated = components @ rotation
    return np.square(np.where(rotated >= 0, 1, -1) - rotated).sum()


def test_chunks_cover_all_rows_once(small_chunks):
    for count, dims in ((1, 1), (100, 1), (101, 1), (7, 33), (5, 1000)):
        rows = [row for part in projection.chunks(count, dims) for row in range(count)[part]]
        assert rows == list(range(count))
    assert list(projection.chunks(0, 5)) == []


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8])
def test_the_covariance_is_numpys(small_chunks, dtype):
    X = vectors().astype(dtype)
    mean, matrix = projection.covariance(X)
    wide = X.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-12)
    np.testing.assert_allclose(matrix, np.cov(wide.T, bias=True), rtol=1e-10, atol=1e-10)


def test_the_covariance_of_vectors_far_from_zero_keeps_its_digits(small_chunks):
    X = vectors()
    far = X + 1e8
    expected = np.cov((far - 1e8).T, bias=True)
    np.testing.assert_allclose(projection.covariance(far).matrix, expected, rtol=1e-6, atol=1e-6)


def test_the_first_row_that_is_not_finite_is_named(small_chunks):
    X = vectors()
    X[40, 3], X[400, 1] = np.nan, np.inf
    with pytest.raises(InputError, match="X has nan in row 40, column 3: every number"):
        projection.covariance(X)
    X[40, 3], X[400, 1] = 0, -np.inf
    with pytest.raises(InputError, match="X has -inf in row 400, column 1"):
        projection.covariance(X)
    for large in (1e200, 1e40):
        X[400, 1] = large
        with pytest.raises(InputError, match=r"X has 1e\+.* in row 400.* limits of float32"):
            projection.covariance(X)


@pytest.mark.parametrize("count", [1, 5, 12])
def test_principal_axes_are_scikit_learns(count):
    X = vectors()
    pca = PCA(count, svd_solver="full").fit(X)
    axes = projection.principal_axes(projection.covariance(X).matrix, count)
    np.testing.assert_allclose(abs(axes.T @ pca.components_.T), np.eye(count), atol=1e-9)
    assert (axes.max(axis=0) == abs(axes).max(axis=0)).all()


def test_an_axis_without_variance_is_zero():
    X = vectors(dims=4)
    matrix = projection.covariance(np.concatenate([X, X[:, :2], np.ones((500, 1))], 1)).matrix
    axes = projection.principal_axes(matrix, 7)
    np.testing.assert_allclose(axes.T @ axes, np.diag([1, 1, 1, 1, 0, 0, 0]), atol=1e-9)
    assert not projection.principal_axes(np.zeros((3, 3)), 2).any()


def test_random_rotations_are_orthogonal_and_uniform():
    rotations = np.stack(
        [projection.random_rotation(3, np.random.RandomState(seed)) for seed in range(2000)]
    )
    np.testing.assert_allclose(
        rotations @ rotations.mT, np.tile(np.eye(3), (2000, 1, 1)), atol=1e-12
    )
    # Uniform: each entry has mean 0 and variance 1/3, and half of the determinants are -1.
    np.testing.assert_allclose(rotations.mean(0), 0, atol=0.06)
    np.testing.assert_allclose(np.square(rotations).mean(0), 1 / 3, atol=0.03)
    assert abs(np.linalg.det(rotations).mean()) < 0.1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_error_of_itq_never_rises(dtype):
    components = vectors(2000, 8)
    components -= components.mean(0)
    start = projection.random_rotation(8, np.random.RandomState(0))
    rotations = [start]
    for _ in range(30):
        rotations.append(projection.itq_rotation(components.astype(dtype), rotations[-1], 1))
    errors = np.array([error(components, rotation) for rotation in rotations])
    assert (np.diff(errors) <= 1e-6 * errors[0]).all()
    assert errors[-1] < 0.99 * errors[0]
    np.testing.assert_allclose(rotations[-1] @ rotations[-1].T, np.eye(8), atol=1e-9)
    whole = projection.itq_rotation(components.astype(dtype), start, 30)
    np.testing.assert_array_equal(whole, rotations[-1])


def test_an_iteration_of_itq_is_scipys_procrustes():
    components = vectors(300, 5)
    start = projection.random_rotation(5, np.random.RandomState(0))
    signs = np.where(components @ start >= 0, 1.0, -1.0)
    expected = scipy.linalg.orthogonal_procrustes(components, signs)[0]
    np.testing.assert_allclose(projection.itq_rotation(components, start, 1), expected, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_itq_finds_the_rotation_of_a_cube(seed):
    rng = np.random.default_rng(0)
    corners = rng.choice([-1.0, 1.0], (1000, 3)) + 0.1 * rng.normal(size=(1000, 3))
    hidden = projection.random_rotation(3, np.random.RandomState(100))
    start = projection.random_rotation(3, np.random.RandomState(seed))
    found = hidden @ projection.itq_rotation(corners @ hidden, start, 50)
    # The cube is the same after a permutation of its axes, and after reflections.
    np.testing.assert_allclose(abs(found).max(axis=0), 1, atol=0.01)
    np.testing.assert_allclose(abs(found).max(axis=1), 1, atol=0.01)


def test_itq_comes_nearer_to_the_signs_than_faiss():
    faiss = pytest.importorskip("faiss", reason="pip install faiss-cpu")
    components = vectors(3000, 6).astype(np.float32)
    components -= components.mean(0)
    start = projection.random_rotation(6, np.random.RandomState(0))
    ours = error(components, projection.itq_rotation(components, start, 50))

    def error_of_faiss(num_iterations):
        theirs = faiss.ITQMatrix(6)
        theirs.max_iter = num_iterations
        faiss.copy_array_to_vector(start.ravel(), theirs.init_rotation)
        theirs.train(components)
        return np.square(np.copysign(1, y := theirs.apply(components)) - y).sum()

    # FAISS 1.15 takes one factor of the SVD transposed, so its error goes up and down, and the
    # results need not agree; the start does.
    assert error_of_faiss(0) == pytest.approx(error(components, start), rel=1e-5)
    assert ours <= error_of_faiss(50) * (1 + 1e-3)


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(projection, "_CHUNK_NUMBERS", 2**14)
    path = tmp_path / "vectors.npy"
    np.save(path, np.random.default_rng(0).normal(size=(50_000, 20)).astype(np.float16))
    tracemalloc.start()
    projection.covariance(np.load(path, mmap_mode="r"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6  # The vectors are 2 MB, and 8 MB as float64.
