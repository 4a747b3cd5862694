import json
import shutil
import time

import cv2
import jax
import numpy as np
import pytest

from llc_jax.codes.codebook import Codebook
from llc_jax.data.features import FeatureFile, Features
from llc_jax.data.pipeline import InOrder, ProcessShard, Shuffled
from llc_jax.errors import InputError
from llc_jax.experiment import codebook_sources, extraction
from llc_jax.experiment.evaluate import evaluate_again
from llc_jax.experiment.run import run
from llc_jax.experiment.workdir import StageDirectory
from llc_jax.training.preemption import Stopped
from tests.processes import finish, start
from tests.stops import StopAfter
from tests.tiny import tree
from tests.workdirs import assert_same_weights, records


def frozen(*, stages=None, **changes):
    """The tiny config, or the first so many stages of it, with a backbone that stays as it is."""
    config = tree(frozen_backbone=True, **changes)
    config["stages"] = dict(list(config["stages"].items())[:stages])
    return config


def one(config, workdir, **options):
    """Runs a config on one device."""
    return run(config, workdir, jax.devices()[:1], **options)


@pytest.fixture
def encoded(monkeypatch):
    """What was encoded: of which images, and the batches that were made."""
    calls, encode = [], extraction._Extractor._encode

    def counting(self, part, steps):
        calls.append((part.what, len(steps)))
        return encode(self, part, steps)

    monkeypatch.setattr(extraction._Extractor, "_encode", counting)
    return calls


def feature_files(workdir):
    return sorted((workdir / "features").glob("*.npy"))


def test_each_image_is_encoded_once(tmp_path, encoded):
    one(frozen(), tmp_path / "a")
    assert encoded == [("training", 29), ("evaluation", 29)]
    assert len(feature_files(tmp_path / "a")) == 2
    # Those of a run beside it serve one of other bits, and another seed needs its own.
    one(frozen(num_bits=6, stages=2), tmp_path / "b")
    assert len(encoded) == 2
    assert [file.stat().st_nlink for file in feature_files(tmp_path / "b")] == [2, 2]
    one(frozen(seed=1, stages=1), tmp_path / "c")
    assert len(encoded) == 4


def test_a_codebook_is_made_from_the_features_that_are_there(tmp_path, encoded, monkeypatch):
    config = frozen()
    stages = config["stages"]
    config["stages"] = {
        "linear": stages["linear"],
        "instance": stages["instance"] | {"init_from": "linear", "codebook": "cca"},
    }
    one(config, tmp_path / "a")
    assert len(encoded) == 2
    made = Codebook.load(tmp_path / "a" / "codebook.npz")
    monkeypatch.setattr(codebook_sources, "on_features", lambda stage, *_: stage)
    one(config, tmp_path / "b")
    of_images = Codebook.load(tmp_path / "b" / "codebook.npz")
    np.testing.assert_allclose(made.latent, of_images.latent, atol=0.02)


def test_the_head_is_that_of_the_whole_network(tmp_path):
    results = one(frozen(retrieval=(10,)), tmp_path / "run")
    again = evaluate_again(tmp_path / "run", devices=jax.devices()[:1])
    for name, value in again.items():
        # Rounded to float16, a feature can take an image to another class.
        assert results[name] == pytest.approx(value, abs=0.006), name


def test_training_on_features_is_training_on_images(tmp_path, monkeypatch):
    config = frozen(stages=1, data__augment={"pad": 0, "flip": False})
    one(config, tmp_path / "features")
    with monkeypatch.context() as patch:
        patch.setattr("llc_jax.experiment.stage_run.on_features", lambda stage, *_: stage)
        one(config, tmp_path / "images")
    assert not (tmp_path / "images" / "features").exists()
    folders = (tmp_path / "features", tmp_path / "images")
    assert_same_weights(*folders, stages=["linear"], rtol=2e-3, atol=2e-3)


def test_a_stopped_run_continues_where_it_was(tmp_path, encoded):
    with pytest.raises(Stopped, match="Stopped at the features of 899 training images, and saved"):
        one(frozen(stages=1), tmp_path / "a", stop_request=StopAfter(10))
    one(frozen(stages=1), tmp_path / "a")
    one(frozen(stages=1), tmp_path / "elsewhere" / "b")
    assert encoded[:3] == [("training", 29), ("training", 19), ("evaluation", 29)]
    for file, other in zip(
        *map(feature_files, (tmp_path / "a", tmp_path / "elsewhere" / "b")), strict=True
    ):
        assert file.read_bytes() == other.read_bytes()
    assert records(tmp_path / "a") == records(tmp_path / "elsewhere" / "b")
    runs = (tmp_path / "a", tmp_path / "elsewhere" / "b")
    assert_same_weights(*runs, stages=["linear"], rtol=0, atol=0)


@pytest.mark.slow
def test_a_killed_run_continues_with_whole_batches(tmp_path):
    for attempt in range(6):
        process = start(tmp_path / "a" / "run", "--config.frozen_backbone=True")
        growing = tmp_path / "a" / "run" / "features"
        while not list(growing.glob("*.growing")) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(0.02 * attempt)
        process.kill()
        process.communicate()
    finish(start(tmp_path / "a" / "run", "--config.frozen_backbone=True"))
    finish(start(tmp_path / "b" / "run", "--config.frozen_backbone=True"))
    runs = (tmp_path / "a" / "run", tmp_path / "b" / "run")
    for file, other in zip(*map(feature_files, runs), strict=True):
        assert file.read_bytes() == other.read_bytes()
    assert_same_weights(*runs, rtol=0, atol=0)


def test_a_damaged_file_is_computed_again(tmp_path, encoded, capsys):
    one(frozen(stages=1), tmp_path / "a")
    file = feature_files(tmp_path / "a")[0]
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        file.write_bytes(content)
        shutil.rmtree(tmp_path / "a" / "linear")
        (tmp_path / "a" / "results.json").unlink()
        del encoded[:]
        one(frozen(stages=1), tmp_path / "a")
        assert len(encoded) == 1
        assert f"{file} is damaged, and its features are" in capsys.readouterr().out
        assert file.read_bytes() == whole


def photos(folder, count=24):
    """Two classes of noise of 12 pixels."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (12, 12, 3), np.uint8))
    return folder


@pytest.mark.parametrize("in_memory", [False, True])
def test_damaged_images_are_left_out(tmp_path, in_memory):
    augment = {"pad": 1, "flip": False} if in_memory else {"scale": (0.5, 1.0), "flip": True}
    (photos(tmp_path / "data") / "a" / "0.png").write_bytes(b"no image")
    config = frozen(
        data__source=str(tmp_path / "data"),
        data__in_memory=in_memory,
        data__augment=augment,
        data__on_error="skip",
        batch_size=4,
        stages=1,
    )
    results = one(config, tmp_path / "run")
    damaged = ("data/damaged_train", "data/damaged_evaluation")
    assert sum(results[name] for name in damaged) == 1
    again = one(config | {"num_bits": 6}, tmp_path / "again")
    assert [again[name] for name in damaged] == [results[name] for name in damaged]


def test_views_are_augmented(tmp_path):
    images = photos(tmp_path / "data")
    augment = {"scale": (0.2, 1.0), "flip": True}
    config = frozen(
        data__source=str(images),
        data__in_memory=False,
        data__augment=augment,
        batch_size=4,
        views=3,
        stages=1,
    )
    one(config, tmp_path / "run")
    arrays = sorted((np.load(file) for file in feature_files(tmp_path / "run")), key=len)
    assert [len(array) for array in arrays] == [12, 36]
    first, second, third = np.split(arrays[1], 3)
    assert (first != second).any(axis=1).all()
    assert (second != third).any(axis=1).all()


def write(path, array):
    """A file of features, as it is once it is whole."""
    file = FeatureFile(path, *array.shape)
    with file.append(0) as out:
        out.write(array.tobytes())
    file.finish({})
    return file


def test_an_epoch_reads_one_view(tmp_path):
    labels = np.array([0, 1, 0], np.int32)
    array = np.arange(18, dtype=np.float16).reshape(6, 3)
    array[4] = np.nan
    write(tmp_path / "a.npy", array)
    features = Features.open(tmp_path / "a.npy", labels, ("x", "y"))
    assert features.damaged == {1}
    shard = ProcessShard(3, np.arange(3))
    for epoch, batch in enumerate(features.batches(Shuffled(3, seed=0), shard, range(4))):
        order = Shuffled(3, seed=0)(np.arange(3) + 3 * epoch)
        good = order != 1
        np.testing.assert_array_equal(batch["mask"], good)
        np.testing.assert_array_equal(batch["label"], labels[order])
        rows = array[order + 3 * (epoch % 2)]
        np.testing.assert_array_equal(batch["input"][good], rows[good])
    (last,) = features.batches(InOrder(3), ProcessShard(4, np.arange(4)), range(1))
    assert last["mask"].tolist() == [True, False, True, False]
    assert InOrder(3, views=2)(np.arange(7)).tolist() == [0, 1, 2, 0, 1, 2, -1]


def test_a_file_that_goes_away_is_one_error(tmp_path):
    file = write(tmp_path / "a.npy", np.ones((4, 2), np.float16))
    features = Features.open(file.path, np.zeros(4, np.int32), ("x",))
    batches = features.batches(Shuffled(4, seed=0), ProcessShard(2, np.arange(2)), range(9))
    next(batches)
    file.path.unlink()
    with pytest.raises(InputError, match="cannot be read any more"):
        next(batches)


def test_what_is_written_counts_whole_rows(tmp_path):
    file = FeatureFile(tmp_path / "a.npy", 5, 2)
    assert file.rows_done() == 0
    with file.append(0) as out:
        out.write(np.ones((3, 2), np.float16).tobytes() + b"x")
    assert file.rows_done() == 3
    with file.append(2) as out:
        out.write(np.zeros((3, 2), np.float16).tobytes())
    assert file.rows_done() == 5
    assert not file.is_whole()
    file.finish({"images": 5})
    assert file.is_whole()
    np.testing.assert_array_equal(np.load(file.path)[:, 0], [1, 1, 0, 0, 0])
    assert json.loads(file.record.read_text())["images"] == 5


def test_features_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    finite = extraction._to_host
    monkeypatch.setattr(extraction, "_to_host", lambda features, _: finite(features, False))
    with pytest.raises(InputError, match="The frozen backbone gives features that are not finite"):
        one(frozen(), tmp_path / "run")
    assert not StageDirectory(tmp_path / "run" / "linear").checkpoints.exists()
