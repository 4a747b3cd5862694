import pathlib
import pickle
import re

import numpy as np
import pytest

from llc_jax.data import embeddings
from llc_jax.data.dataset import open_dataset
from llc_jax.data.embeddings import locate, open_embeddings, size_of
from llc_jax.data.fingerprint import Fingerprint
from llc_jax.data.pipeline import ProcessShard, eval_batches, train_batches
from llc_jax.data.splits import open_splits
from llc_jax.data.vectors import Vectors
from llc_jax.errors import InputError
from tests import tiny

N, D = 60, 5
NAMES = ("ape", "bee", "cat")


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


@pytest.fixture
def labels():
    return np.arange(N) % 3


def write_parquet(path, vectors, labels, fixed_size=True, **columns):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    kind = pa.list_(pa.from_numpy_dtype(vectors.dtype), *([D] if fixed_size else []))
    columns = {"embedding": pa.array(list(vectors), kind), "label": labels} | columns
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_clip_retrieval(folder, vectors, labels, sizes=(10, 30, 20)):
    (folder / "img_emb").mkdir(parents=True)
    start = 0
    for number, size in enumerate(sizes, start=8):  # So that 10 follows 9.
        part = slice(start, start + size)
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", vectors[part])
        write_parquet(folder / "metadata" / f"metadata_{number}.parquet", vectors[:1], ["x"])
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"label": list(labels[part]), "url": ["u"] * size})
        pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
        start += size


def write(form, folder, vectors, labels):
    """Writes embeddings in a form; returns the source that names them."""
    text = np.array(NAMES)[labels]
    if form == "npz":
        np.savez(folder / "a.npz", embeddings=vectors, labels=labels, names=np.array(NAMES))
        return f"embeddings:{folder}/a.npz"
    if form == "compressed npz":
        np.savez_compressed(folder / "a.npz", embeddings=vectors, labels=text)
        return f"embeddings:{folder}/a.npz"
    if form == "npy":
        np.save(folder / "a.npy", vectors)
        np.save(folder / "a_labels.npy", text)
        return f"embeddings:{folder}/a.npy"
    if form == "npy and csv":
        np.save(folder / "a.npy", vectors)
        (folder / "names.csv").write_text("label\n" + "\n".join(text) + "\n")
        return f"embeddings:{folder}/a.npy:{folder}/names.csv"
    if form == "parquet":
        write_parquet(folder / "a.parquet", vectors, text)
        return f"embeddings:{folder}/a.parquet"
    if form == "parquet of lists":
        write_parquet(folder / "b" / "1.parquet", vectors[:7], text[:7], False, word=text[:7])
        write_parquet(folder / "b" / "2.parquet", vectors[7:], text[7:], False, word=text[7:])
        return f"embeddings:{folder}/b:word"
    pytest.importorskip("pyarrow")
    write_clip_retrieval(folder / "clip", vectors, text)
    return f"embeddings:{folder}/clip"


FORMS = ("npz", "compressed npz", "npy", "npy and csv", "parquet", "parquet of lists", "clip")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_batches(form, tmp_path, vectors, labels):
    name = write(form, tmp_path, vectors, labels)
    assert size_of(name) == D
    (source,) = open_embeddings(name)
    np.testing.assert_array_equal(source.gather(np.arange(N)), vectors)
    np.testing.assert_array_equal(source.labels, labels)
    assert source.class_names == NAMES
    assert len(set(source.names)) == len(source) == N
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(source)).gather([3, 1]), vectors[[3, 1]]
    )
    shard, order = ProcessShard(16, np.arange(16)), np.random.default_rng([7, 0]).permutation(N)
    batches = list(train_batches(Vectors(source), shard, range(6), seed=7))
    seen = np.concatenate([batch["input"] for batch in batches])
    np.testing.assert_array_equal(seen[:N], vectors[order])
    np.testing.assert_array_equal(
        next(train_batches(Vectors(source), shard, range(4, 6), seed=7))["input"],
        batches[4]["input"],
    )
    last = list(eval_batches(Vectors(source), shard))[-1]
    assert last["mask"].sum() == N % 16
    assert not last["input"][~last["mask"]].any()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32(dtype, tmp_path, vectors, labels):
    (source,) = open_embeddings(write("npz", tmp_path, vectors.astype(dtype), labels))
    assert source.read(3).dtype == np.float32
    np.testing.assert_array_equal(source.read(3), vectors.astype(dtype)[3].astype(np.float32))


def test_files_are_mapped(tmp_path, vectors, labels):
    for form in ("npz", "npy", "clip"):
        folder = tmp_path / form
        folder.mkdir()
        (source,) = open_embeddings(write(form, folder, vectors, labels))
        assert all(isinstance(shard.array, np.memmap) for shard in source.shards)


def test_splits(tmp_path, vectors, labels):
    split = np.where(np.arange(N) % 4 == 0, "test", "train")
    np.savez(tmp_path / "a.npz", embeddings=vectors, labels=labels, split=split)
    train, evaluation, *_ = open_splits(f"embeddings:{tmp_path}/a.npz", "", holdout=0.5, seed=0)
    np.testing.assert_array_equal(evaluation.gather(np.arange(15)), vectors[::4])
    assert len(train) == 45
    folder = tmp_path / "split"
    folder.mkdir()
    np.savez(folder / "train.npz", embeddings=vectors[15:], labels=labels[15:])
    np.savez(folder / "val.npz", embeddings=vectors[:15], labels=labels[:15])
    train, evaluation, *_ = open_splits(f"embeddings:{folder}", "", holdout=0.5, seed=0)
    np.testing.assert_array_equal(evaluation.gather(np.arange(15)), vectors[:15])
    whole = open_splits(write("npy", tmp_path, vectors, labels), "", holdout=0.5, seed=0)
    assert [len(whole.train), len(whole.evaluation)] == [30, 30]
    assert np.bincount(whole.evaluation.labels).tolist() == [10, 10, 10]


def test_the_fingerprint_sees_other_numbers_and_labels(tmp_path, vectors, labels):
    def fingerprint(vectors, labels):
        source = write("npz", tmp_path, vectors, labels)
        return Fingerprint.of(open_splits(source, "", holdout=0.5, seed=0))

    first = fingerprint(vectors, labels)
    assert fingerprint(vectors, labels) == first
    assert fingerprint(vectors * 2, labels).sha256 != first.sha256
    assert fingerprint(vectors, (labels + 1) % 3).sha256 != first.sha256


def test_a_file_that_is_removed_or_cut_off_is_one_error(tmp_path, vectors, labels):
    source = write("npy", tmp_path, vectors, labels)
    shard = ProcessShard(8, np.arange(8))
    batches = train_batches(Vectors(open_embeddings(source)[0]), shard, range(9), seed=0)
    next(batches)
    (tmp_path / "a.npy").rename(tmp_path / "b.npy")
    with pytest.raises(InputError, match=r"a.npy cannot be read any more \(No such file"):
        next(batches)
    (tmp_path / "b.npy").rename(tmp_path / "a.npy")
    opened = open_embeddings(source)[0]
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(InputError, match=r"a.npy has changed since it was opened"):
        opened.read(N - 1)


def test_a_large_file_is_not_loaded(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float16, (2_000_000, 500))
    array[-1] = 1
    del array
    np.save(tmp_path / "labels.npy", np.arange(2_000_000) % 10)
    (source,) = open_embeddings(f"embeddings:{tmp_path}/a.npy")
    splits = open_splits(f"embeddings:{tmp_path}/a.npy", "", holdout=0.1, seed=0)
    assert len(splits.train) == 1_800_000
    assert source.read(1_999_999).sum() == 500
    Fingerprint.of(splits._replace(train=source, evaluation=source))
    status = pathlib.Path("/proc/self/status").read_text()
    assert int(re.search(r"RssFile:\s+(\d+)", status)[1]) < 1_500_000  # Kilobytes, of 2,000,000.


def bad(folder, **arrays):
    np.savez(folder / "a.npz", **arrays)
    return f"embeddings:{folder}/a.npz"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.zeros((3, 2, 2), np.float32)}, r"has float32 of the shape \[3, 2, 2\]"),
        ({"embeddings": np.zeros((60, 2), np.int64)}, r"has int64 of the shape \[60, 2\]"),
        ({"embeddings": np.zeros((0, 5), np.float32)}, "There are no embeddings in"),
        ({"labels": np.zeros(7, int)}, r"60 embeddings, but labels of the shape \[7\]"),
        ({"labels": np.zeros(60)}, "are whole numbers or text, not float64"),
        ({"names": np.array(["a"])}, "go from 0 to 2, but it has the names of 1 classes"),
        ({"names": np.array(["a", "b", "a"])}, "Several classes of .* have the name 'a'"),
        ({"names": np.array("abc")}, r"a text for each class, not <U3 of the shape \[\]"),
        ({"labels": np.array([b"\xff"] * 60)}, "are not UTF-8"),
        ({"split": np.array(["dev"] * 60)}, "says train or test of each .* not dev"),
        ({"split": np.array([["train"]] * 60)}, r"a split of the shape \[60, 1\]"),
    ],
)
def test_bad_arrays_are_one_sentence(change, message, tmp_path, vectors, labels):
    source = bad(tmp_path, **{"embeddings": vectors, "labels": labels} | change)
    with pytest.raises(InputError, match=message):
        open_embeddings(source)


def test_other_bad_input_is_one_sentence(tmp_path, vectors, labels, monkeypatch):
    def refuses(source, message):
        with pytest.raises(InputError, match=message):
            open_splits(source, "", holdout=0.5, seed=0)

    refuses(f"embeddings:{tmp_path}/none.npz", "There are no embeddings at")
    refuses(f"embeddings:{tmp_path}", "holds no embeddings: expected an .npz")
    refuses(bad(tmp_path, embeddings=vectors), "has no array 'labels'")
    refuses(bad(tmp_path, labels=labels), "has no array 'embeddings'")
    refuses(bad(tmp_path, embeddings=vectors, labels=labels * 0), "has one class")
    np.save(tmp_path / "a.npy", vectors)
    refuses(f"embeddings:{tmp_path}/a.npy", "There are no labels for")
    (tmp_path / "empty.npz").write_bytes(b"")
    refuses(f"embeddings:{tmp_path}/empty.npz", "is no .npz file that can be read")
    (tmp_path / "empty.npy").write_bytes(b"")
    refuses(f"embeddings:{tmp_path}/empty.npy", "is no .npy file that can be read")
    np.save(tmp_path / "object.npy", np.array([[1, "x"]], object), allow_pickle=True)
    refuses(f"embeddings:{tmp_path}/object.npy", "is no .npy file that can be read")
    spoilt = vectors.copy()
    spoilt[4, 1] = np.inf
    spoilt = bad(tmp_path, embeddings=spoilt, labels=labels)
    refuses(spoilt, r"The embedding a.npz\[4\] of .* has NaN, inf or")
    monkeypatch.setattr(embeddings, "_READ_WHOLE", 0)
    monkeypatch.setattr(embeddings, "_SAMPLED", 2)
    (source,) = open_embeddings(spoilt)
    with pytest.raises(InputError, match=r"The embedding a.npz\[4\] of"):
        source.gather(np.arange(N))
    monkeypatch.setattr(pathlib.Path, "read_text", lambda path: "MemAvailable: 1 kB")
    np.savez_compressed(tmp_path / "b.npz", embeddings=vectors, labels=labels)
    refuses(f"embeddings:{tmp_path}/b.npz", "convert them to .npy files, which are mapped")


def test_bad_tables_are_one_sentence(tmp_path, vectors, labels):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    def refuses(columns, message):
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=message):
            open_embeddings(f"embeddings:{tmp_path}/a.parquet")

    rows = list(vectors)
    refuses({"embedding": rows[:3], "label": ["a", None, "b"]}, "row 1 of .* has no label: 1 of 3")
    refuses({"embedding": rows[:1], "label": [[1]]}, "has whole numbers or text, not list")
    refuses({"embedding": rows, "word": labels}, "has no column label or labels or class")
    refuses({"label": labels}, "has 0 columns of lists of floats")
    refuses({"a": rows, "b": rows, "label": labels}, "has 2 columns of lists of floats")
    ragged = [vectors[0][:2], *rows[1:]]
    refuses({"embedding": ragged, "label": labels}, "has lists of .* numbers")
    write_clip_retrieval(tmp_path / "clip", vectors, labels)
    (tmp_path / "clip" / "metadata" / "metadata_9.parquet").unlink()
    with pytest.raises(InputError, match="has 3 files img_emb/.* and 2 files metadata"):
        open_embeddings(f"embeddings:{tmp_path}/clip")


def test_located(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("embeddings:a.npy:b.npy") == f"embeddings:{tmp_path}/a.npy:{tmp_path}/b.npy"
    assert locate("embeddings:clip:caption") == f"embeddings:{tmp_path}/clip:caption"


def test_a_path_may_have_colons_and_labels_may_lie_beside_it(tmp_path, vectors, labels):
    folder = tmp_path / "a:b"
    folder.mkdir()
    write("npy and csv", folder, vectors, labels)
    source = f"embeddings:{folder}/a.npy"
    for given in (f"{source}:names.csv", locate(f"{source}:names.csv")):
        assert open_embeddings(given)[0].class_names == NAMES
    assert locate(f"{source}:names.csv") == f"{source}:{folder}/names.csv"


def test_names_of_labels_that_are_true_or_false(tmp_path, vectors, labels):
    source = bad(tmp_path, embeddings=vectors, labels=labels > 0, names=np.array(["no", "yes"]))
    assert open_embeddings(source)[0].class_names == ("no", "yes")


def test_shards_without_rows_are_passed_over(tmp_path, vectors, labels):
    pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "a" / "1.parquet", vectors[:0], labels[:0], fixed_size=False)
    write_parquet(tmp_path / "a" / "2.parquet", vectors, labels, fixed_size=False)
    write_clip_retrieval(tmp_path / "b", vectors, labels, sizes=(0, 60))
    for folder in ("a", "b"):
        source = f"embeddings:{tmp_path}/{folder}"
        assert size_of(source) == D
        splits = open_splits(source, "", holdout=0.5, seed=0)
        assert Fingerprint.of(splits).images == {"0": 20, "1": 20, "2": 20}


def test_large_lists_are_vectors(tmp_path, vectors, labels):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    column = pa.array(list(vectors), pa.large_list(pa.float32()))
    pq.write_table(pa.table({"embedding": column, "label": labels}), tmp_path / "a.parquet")
    (source,) = open_embeddings(f"embeddings:{tmp_path}/a.parquet")
    np.testing.assert_array_equal(source.gather(np.arange(N)), vectors)


def test_the_parts_of_a_split_folder_have_labels_of_their_own(tmp_path, vectors, labels):
    np.save(tmp_path / "train.npy", vectors[15:])
    np.save(tmp_path / "test.npy", vectors[:15])
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(InputError, match=r"train.npy: expected train_labels.npy beside it"):
        open_embeddings(f"embeddings:{tmp_path}")
    with pytest.raises(InputError, match=r"one file of labels, labels.npy, does not do"):
        open_embeddings(f"embeddings:{tmp_path}:labels.npy")
    np.save(tmp_path / "train_labels.npy", labels[15:])
    np.save(tmp_path / "test_labels.npy", labels[:15])
    train, evaluation = open_embeddings(f"embeddings:{tmp_path}")
    np.testing.assert_array_equal(train.labels, labels[15:])
    np.testing.assert_array_equal(evaluation.labels, labels[:15])
    np.savez(
        tmp_path / "train.npz", embeddings=vectors, labels=labels, split=["train", "test"] * 30
    )
    (tmp_path / "train.npy").unlink()
    with pytest.raises(InputError, match="is split, but so is a file in it"):
        open_embeddings(f"embeddings:{tmp_path}")


def test_training_and_evaluation_are_of_one_kind_and_size(tmp_path, vectors, labels):
    options = tiny.get_config().data.to_dict() | {"image_size": 8, "seed": 0}
    long = bad(tmp_path, embeddings=vectors, labels=labels)
    np.savez(tmp_path / "b.npz", embeddings=vectors[:, :3], labels=labels)
    for source, other, message in (
        (long, f"embeddings:{tmp_path}/b.npz", "have 3 numbers, and those for training 5"),
        ("digits", long, "data are images and the evaluation data embeddings"),
    ):
        with pytest.raises(InputError, match=message):
            open_dataset(**options | {"source": source, "eval_source": other})


def test_a_pickled_source_has_no_vectors_and_sees_that_its_file_has_changed(
    tmp_path, vectors, labels
):
    np.save(tmp_path / "a.npy", np.tile(vectors, (1, 1000)))
    np.save(tmp_path / "labels.npy", labels)
    pickled = pickle.dumps(open_embeddings(f"embeddings:{tmp_path}/a.npy")[0])
    assert len(pickled) < 5000
    np.save(tmp_path / "a.npy", vectors)
    with pytest.raises(InputError, match="has changed since it was opened"):
        pickle.loads(pickled)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_rows_in_any_order_and_on_any_page(tmp_path, dtype):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5000, 37)).astype(dtype)
    np.save(tmp_path / "a.npy", vectors)
    np.save(tmp_path / "labels.npy", np.arange(5000) % 2)
    (source,) = open_embeddings(f"embeddings:{tmp_path}/a.npy")
    for rows in (np.arange(5000), np.array([4999]), rng.integers(0, 5000, 300), np.zeros(0, int)):
        np.testing.assert_array_equal(source.gather(rows), vectors[rows].astype(np.float32))
