import io
import pickle
import zipfile

import numpy as np
import pytest

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError


def random_codebook(classes=12, num_bits=20, seed=0):
    latent = np.random.default_rng(seed).normal(size=(classes, num_bits))
    return Codebook.from_numpy(latent, [f"class {i}" for i in range(classes)])


def test_knows_its_codes():
    codebook = random_codebook()
    assert (codebook.num_classes, codebook.num_bits) == (12, 20)
    np.testing.assert_array_equal(
        packing.unpack(codebook.packed, 20), np.where(codebook.latent >= 0, 1, -1)
    )


def test_collisions_unique_codes_and_least_distance():
    latent = np.array([[1, 1], [-1, 0], [0, 2], [-1, -1], [-3, 5], [1, -1]], np.float32)
    codebook = Codebook.from_numpy(latent)
    assert codebook.collisions == [[0, 2], [1, 4]]
    assert codebook.num_unique == 4
    assert codebook.min_distance == 0


@pytest.mark.parametrize(("classes", "num_bits"), [(2, 33), (300, 20), (700, 64)])
def test_min_distance_equals_brute_force(classes, num_bits):
    codebook = random_codebook(classes, num_bits, seed=classes)
    signs = codebook.latent >= 0
    distances = (signs[:, None] != signs[None]).sum(-1)
    expected = distances[~np.eye(classes, dtype=bool)].min()
    assert codebook.min_distance == expected


def test_one_class():
    codebook = random_codebook(classes=1)
    assert (codebook.num_unique, codebook.collisions, codebook.min_distance) == (1, [], 20)


def test_save_and_load(tmp_path):
    codebook = Codebook.from_numpy(random_codebook().latent, list("äbcdefghijkl"), source="svd")
    codebook.save(tmp_path / "codebook.npz")
    loaded = Codebook.load(tmp_path / "codebook.npz")
    np.testing.assert_array_equal(loaded.latent, codebook.latent)
    assert (loaded.class_names, loaded.source) == (codebook.class_names, "svd")


def test_reads_and_writes_the_official_npy(tmp_path):
    latent = random_codebook().latent
    np.save(tmp_path / "official.npy", latent[:, :, None, None])
    codebook = Codebook.load(tmp_path / "official.npy")
    np.testing.assert_array_equal(codebook.latent, latent)
    assert codebook.class_names[:2] == ("0", "1")
    codebook.save(tmp_path / "ours.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "ours.npy"), latent)


def test_bad_files_are_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="no codebook at"):
        Codebook.load(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps([1, 2]))
    np.save(tmp_path / "objects.npy", np.array([{}, 1]), allow_pickle=True)
    np.savez(tmp_path / "other.npz", something=np.ones(3))
    random_codebook().save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("text.npz", "pickle.npy", "objects.npy", "other.npz", "cut.npz"):
        with pytest.raises(InputError, match="is not a codebook"):
            Codebook.load(tmp_path / name)


def npy(array, shape=None):
    """The bytes of an `.npy`, whose header may say another shape."""
    out = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(out, header | ({"shape": shape} if shape else {}))
    return out.getvalue() + array.tobytes()


def npz(path, **contents):
    """Writes an `.npz` of a codebook with other contents."""
    arrays = {"latent": np.ones((3, 4), np.float32), "class_names": np.array(["a", "b", "c"])}
    members = {name: npy(array) for name, array in arrays.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"source": npy(np.array("learnt"))} | contents).items():
            archive.writestr(f"{name}.npy", content)
    return path


LATENT = np.ones((3, 4), np.float32)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"class_names": npy(np.array("abc"))}, r"its class names are <U3\[\]"),
        ({"class_names": npy(np.ones(3))}, r"its class names are float64\[3\]"),
        ({"class_names": npy(np.array([["a"], ["b"], ["c"]]))}, "its class names are <U1"),
        ({"latent": npy(LATENT, (10**12, 4))}, "holds no whole array"),
        ({"latent": npy(LATENT, (4, 4))}, "holds no whole array"),
        ({"latent": npy(LATENT, (2, 4))}, r"more than the array of shape \(2, 4\) in its header"),
        ({"latent": npy(LATENT, (-3, 4))}, "holds no whole array"),
        ({"latent": npy(LATENT[0, 0])}, r"not of shape \(\)"),
        ({"latent": npy(LATENT.astype(complex))}, "real numbers, not of the type complex128"),
        ({"latent": npy(np.array([["a"]]))}, "real numbers, not of the type <U1"),
        ({"latent": b""}, "holds no whole array"),
        ({"latent": b"\x93NUMPY\x01\x00\x20\x27" + b"[" * 10_016}, "holds no whole array"),
    ],
)
def test_arrays_that_no_codebook_has(contents, message, tmp_path):
    assert Codebook.load(npz(tmp_path / "good.npz")).num_classes == 3
    npz(tmp_path / "bad.npz", **contents)
    with pytest.raises(InputError, match=f"bad.npz is not a codebook .*{message}"):
        Codebook.load(tmp_path / "bad.npz")


def test_every_damage_is_refused_or_harmless(tmp_path):
    codebook = random_codebook(classes=3, num_bits=4)
    codebook.save(tmp_path / "whole.npz")
    codebook.save(tmp_path / "whole.npy")
    for suffix in (".npz", ".npy"):
        data, refused = (tmp_path / f"whole{suffix}").read_bytes(), 0
        for offset in range(0, len(data), 1 if suffix == ".npy" else 3):
            damaged = bytearray(data)
            damaged[offset] ^= 0xFF
            (tmp_path / f"damaged{suffix}").write_bytes(damaged)
            try:
                loaded = Codebook.load(tmp_path / f"damaged{suffix}")
            except InputError as error:
                refused += "is not a codebook" in str(error)
                continue
            if suffix == ".npz":  # What it loads has a checksum, unlike an `.npy`.
                np.testing.assert_array_equal(loaded.latent, codebook.latent)
        assert refused > 50


def test_bad_values_are_one_clear_error():
    with pytest.raises(InputError, match="not finite"):
        Codebook.from_numpy(np.array([[1.0, np.nan]]))
    with pytest.raises(InputError, match="2 codes but 1 class names"):
        Codebook.from_numpy(np.ones((2, 3)), ["a"])
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        Codebook.from_numpy(np.ones(3))
    with pytest.raises(InputError, match="saved as"):
        random_codebook().save("codebook.txt")
