import cv2
import numpy as np
import pytest

from llc_jax.data import protocols
from llc_jax.data.pipeline import ProcessShard, Streamed, eval_batches
from llc_jax.data.splits import open_splits
from llc_jax.data.synthetic import Altered
from llc_jax.data.transforms import Crop
from llc_jax.data.unknown import open_unknown
from llc_jax.data.vectors import Vectors
from llc_jax.errors import InputError

CROP = Crop(8)


def digits(held_out=2):
    splits = open_splits("digits", "", holdout=0.5, seed=0)
    return protocols.hold_out(splits, held_out, seed=0)


def embeddings(path, size):
    vectors = np.random.default_rng(0).normal(size=(40, size)).astype(np.float32)
    np.savez(path, embeddings=vectors, labels=np.arange(40) % 2)
    return f"embeddings:{path}"


def open_sets(splits, **sources):
    named = {f"near/{name}": source for name, source in sources.items()}
    return open_unknown(named, splits, CROP, workers=0, skip=False)


def test_held_out_classes_and_synthetic_images_are_at_hand():
    splits = digits()
    images = open_sets(splits, held="unseen", noise="synthetic:noise")
    assert list(images) == ["near/held", "near/noise"]
    assert images["near/held"].source is splits.unseen.evaluation
    assert images["near/noise"] == Streamed(splits.evaluation, Altered(CROP, "noise"), 0)


def test_of_a_dataset_that_is_split_the_evaluation_images_are_read(tmp_path):
    for name in ("train/a/1", "train/b/2", "val/a/3", "val/c/4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((12, 9, 3), int(name[-1]), np.uint8))
    (images,) = open_sets(digits(), mine=str(tmp_path)).values()
    (batch,) = eval_batches(images, ProcessShard(4, np.arange(4)))
    assert batch["input"][:, 0, 0, 0].tolist() == [3, 4, 0, 0]
    assert batch["mask"].tolist() == [True, True, False, False]


def test_embeddings(tmp_path):
    splits = open_splits(embeddings(tmp_path / "a.npz", 6), "", holdout=0.5, seed=0)
    (vectors,) = open_sets(splits, other=embeddings(tmp_path / "b.npz", 6)).values()
    assert isinstance(vectors, Vectors)
    assert len(vectors.labels) == 40
    for source, message in [
        (embeddings(tmp_path / "c.npz", 7), "embeddings of 7 numbers, .* of embeddings of 6"),
        ("digits", "has images, and the run is of embeddings of 6 numbers"),
        ("synthetic:blur", "is made of images, and the run has embeddings"),
    ]:
        with pytest.raises(InputError, match=message):
            open_sets(splits, other=source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("unseen", "near/x of unknown images is 'unseen', but no class is held out: set config"),
        ("synthetic:nois", "synthetic:KIND of the set near/x is one of .*Did you mean 'noise'"),
        ("none.zip", "The set near/x of unknown images: There is no data at none.zip"),
        ("", "The set near/x of unknown images: The config names no data"),
    ],
)
def test_bad_sets_are_named(source, message):
    with pytest.raises(InputError, match=message):
        open_sets(digits(held_out=0), x=source)


def test_a_set_of_another_kind_is_named(tmp_path):
    source = embeddings(tmp_path / "a.npz", 6)
    with pytest.raises(InputError, match="has embeddings of 6 numbers, and the run is of images"):
        open_sets(digits(), x=source)
