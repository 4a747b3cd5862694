import os
import pathlib
import shutil
import types

import cv2
import numpy as np
import pytest

from llc_jax import cli
from llc_jax.data import imagenet, splits
from llc_jax.data import tfds as our_tfds
from llc_jax.data.imagenet import EVAL_TAR, TRAIN_TAR
from llc_jax.errors import InputError
from llc_jax.prepare import progress, tfds_datasets
from tests import writing
from tests.small_disks import fill_before, small_disk

tfds = pytest.importorskip("tensorflow_datasets")

CLASSES = ("n01751748", "n09193705", "n02105855", "n04263257")  # Of validation images 1 to 4.


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    our_tfds._open_records.cache_clear()


def image_file(suffix, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def no_space(monkeypatch):
    usage = types.SimpleNamespace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


class TestImageNet:
    @pytest.fixture
    def tars(self, tmp_path, monkeypatch):
        """The two tars, with three training images a class and four validation images."""
        train, evaluation = {}, {}
        for number, name in enumerate(CLASSES, start=1):
            files = {f"{name}_{i}.JPEG": image_file(".jpg", 4 * number + i) for i in range(3)}
            train[f"{name}.tar"] = writing.tar_bytes(files)
            evaluation[f"ILSVRC2012_val_{number:08}.JPEG"] = image_file(".jpg", number)
        folder = tmp_path / "tars"
        folder.mkdir()
        (folder / TRAIN_TAR).write_bytes(writing.tar_bytes(train))
        (folder / EVAL_TAR).write_bytes(writing.tar_bytes(evaluation))
        sizes = {name: (folder / name).stat().st_size for name in tfds_datasets.SIZES}
        monkeypatch.setattr(tfds_datasets, "SIZES", sizes)
        monkeypatch.setattr(imagenet, "COUNTS", {TRAIN_TAR: (12, 4), EVAL_TAR: (4, 4)})
        return folder

    def test_complete_tars(self, tars):
        train, evaluation = tfds_datasets.check_imagenet(tars)
        assert (len(train), len(evaluation)) == (12, 4)

    @pytest.mark.parametrize("name", [TRAIN_TAR, EVAL_TAR])
    def test_a_missing_tar(self, tars, name):
        (tars / name).unlink()
        with pytest.raises(InputError, match=rf"^There is no .*{name}: ImageNet needs both"):
            tfds_datasets.check_imagenet(tars)

    def test_another_size(self, tars):
        with (tars / EVAL_TAR).open("ab") as file:
            file.write(b"more")
        with pytest.raises(InputError, match=r"img_val.tar has [\d,]+ bytes, not [\d,]+: it is"):
            tfds_datasets.check_imagenet(tars)

    def test_another_number_of_images(self, tars, monkeypatch):
        monkeypatch.setattr(imagenet, "COUNTS", {TRAIN_TAR: (13, 4), EVAL_TAR: (4, 4)})
        with pytest.raises(InputError, match=r"img_train.tar holds 12 images of 4 classes, not 13"):
            tfds_datasets.check_imagenet(tars)

    def test_an_unreadable_folder(self, tars, monkeypatch):
        with pytest.raises(InputError, match=r"^Cannot read .*: Not a directory.$"):
            tfds_datasets.check_imagenet(tars / TRAIN_TAR)

        def deny(path, mode):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(pathlib.Path, "open", deny)
        with pytest.raises(InputError, match=rf"^Cannot read .*{TRAIN_TAR}: Permission denied.$"):
            tfds_datasets.check_imagenet(tars)

    def test_without_tensorflow(self, tars, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(InputError, match="needs TensorFlow: pip install tensorflow"):
            tfds_datasets.prepare_imagenet(tars)

    def test_no_space(self, tars, monkeypatch, tmp_path):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
        monkeypatch.setattr(imagenet, "_eval_classes", lambda: list(CLASSES))
        no_space(monkeypatch)
        with pytest.raises(InputError, match=r"imagenet2012 needs about 0.1 MB, but .* 0.0 MB"):
            tfds_datasets.prepare_imagenet(tars)
        assert not list((tmp_path / "tfds" / "imagenet2012").iterdir())

    def test_is_prepared(self, tars, tmp_path, capsys):
        pytest.importorskip("tensorflow", reason="TFDS prepares imagenet2012 with TensorFlow")
        incomplete = tmp_path / "tfds" / "imagenet2012" / "incomplete.ABCDEF_5.1.0"
        incomplete.mkdir(parents=True)
        assert cli.main(["prepare", "imagenet", str(tars)]) == 0
        assert not incomplete.exists()
        for ours, expected in zip(open_splits("tfds:imagenet2012"), open_splits(tars), strict=True):
            assert len(ours.class_names) == 1000
            assert list(ours.names) == [pathlib.PurePath(name).name for name in expected.names]
            for index in range(len(expected)):
                assert ours.read(index) == expected.read(index)
                name = expected.class_names[expected.labels[index]]
                assert ours.class_names[ours.labels[index]] == name
        assert "16 images: about 1 s and" in capsys.readouterr().out
        assert cli.main(["prepare", "imagenet", str(tars)]) == 0
        assert capsys.readouterr().out.endswith("is prepared already.\n")


def open_splits(source):
    return splits.open_splits(str(source), "", holdout=0.2, seed=0)[:2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder of the dataset's images."""
    root = tmp_path_factory.mktemp("files")
    for seed, (split, name, number) in enumerate(
        (split, name, number)
        for split in ("train", "validation")
        for name in CLASSES[:2]
        for number in range(4)
    ):
        path = root / split / name / f"{name}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_file(".png", seed))
    return root


@pytest.fixture(scope="module")
def builder(files):
    """TFDS's builder of a small dataset."""
    features = {
        "image": tfds.features.Image(encoding_format="png"),
        "label": tfds.features.ClassLabel(names=CLASSES[:2]),
        "file_name": tfds.features.Text(),
    }
    return writing.tfds_builder("TinyRecords", features, files, ("train", "validation"))


class TestArrayRecord:
    @pytest.fixture
    def directory(self, builder):
        """The dataset as TFRecord; TFDS itself needs TensorFlow for that."""
        config = tfds.download.DownloadConfig(num_shards=2)
        prepared = builder(data_dir=os.environ["TFDS_DATA_DIR"], file_format="array_record")
        prepared.download_and_prepare(download_config=config)
        directory = pathlib.Path(prepared.data_path)
        for path in directory.glob("*.array_record*"):
            records = tfds.core.file_adapters.array_record_data_source.ArrayRecordDataSource(path)
            content = b"".join(
                len(record).to_bytes(8, "little") + b"crc1" + record + b"crc2"
                for record in map(records.__getitem__, range(len(records)))
            )
            path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(content)
            path.unlink()
        info = directory / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        return directory

    @pytest.fixture
    def disk(self, monkeypatch):
        """A small disk for the dataset."""
        with small_disk() as directory:
            monkeypatch.setenv("TFDS_DATA_DIR", str(directory))
            yield directory

    def check(self, files):
        for ours, expected in zip(
            open_splits("tfds:tiny_records"), open_splits(files), strict=True
        ):
            assert ours.class_names == expected.class_names
            np.testing.assert_array_equal(ours.labels, expected.labels)
            assert list(ours.names) == [pathlib.PurePath(name).name for name in expected.names]
            assert all(ours.read(index) == expected.read(index) for index in range(len(expected)))

    def test_has_the_same_images(self, directory, files, capsys):
        with pytest.raises(InputError, match="`llc prepare array_record tiny_records` adds"):
            open_splits("tfds:tiny_records")
        assert cli.main(["prepare", "array_record", "tiny_records"]) == 0
        assert capsys.readouterr().out.startswith("16 examples to convert, ")
        self.check(files)
        assert len(list(directory.glob("*tfrecord*"))) == 4
        for path in directory.glob("*tfrecord*"):
            path.unlink()
        self.check(files)
        tfds_datasets.convert_to_array_record("tiny_records")
        assert capsys.readouterr().out.endswith("has array_record already.\n")

    def test_converts_the_files_of_tensorflow(self, builder, files, tmp_path):
        pytest.importorskip("tensorflow", reason="TFDS writes TFRecord with TensorFlow")
        builder(data_dir=tmp_path / "tfds", file_format="tfrecord").download_and_prepare()
        tfds_datasets.convert_to_array_record("tiny_records")
        self.check(files)

    def test_converted_shards_are_not_converted_again(self, directory, files, monkeypatch):
        convert_shard, converted = tfds_datasets._convert_shard, []

        def stop(shard):
            if len(converted) == 2:
                raise KeyboardInterrupt
            convert_shard(shard)
            converted.append(shard)

        monkeypatch.setattr(tfds_datasets, "_convert_shard", stop)
        with pytest.raises(KeyboardInterrupt):
            tfds_datasets.convert_to_array_record("tiny_records")
        with pytest.raises(InputError, match="is prepared as tfrecord"):
            open_splits("tfds:tiny_records")
        monkeypatch.setattr(tfds_datasets, "_convert_shard", convert_shard)
        lines = []
        tfds_datasets.convert_to_array_record("tiny_records", lines.append)
        assert lines[0].startswith("8 examples to convert")
        self.check(files)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda content: content[:-50], "is damaged or cut short"),
            (lambda content: b"\xff" * 8 + content[8:], "is damaged or cut short"),
            (lambda content: content + content, "has 8 examples, not 4: it is incomplete"),
            (lambda content: b"", "has 0 examples, not 4"),
        ],
    )
    def test_damaged_files_are_named(self, directory, damage, message):
        path = directory / "tiny_records-train.tfrecord-00001-of-00002"
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(InputError, match=rf"{path.name} {message}"):
            tfds_datasets.convert_to_array_record("tiny_records")
        assert not list(directory.glob("*.partial"))

    def test_a_missing_file(self, directory):
        (directory / "tiny_records-train.tfrecord-00001-of-00002").unlink()
        with pytest.raises(InputError, match=r"Cannot read .*00001-of-00002: No such file"):
            tfds_datasets.convert_to_array_record("tiny_records")

    def test_no_space(self, directory, monkeypatch):
        no_space(monkeypatch)
        with pytest.raises(InputError, match=r"tiny_records as array_record needs about .* free"):
            tfds_datasets.convert_to_array_record("tiny_records")
        assert not list(directory.glob("*array_record*"))

    @pytest.mark.parametrize(("name", "call"), [("_convert_shard", 3), ("write_json", 1)])
    def test_a_full_disk(self, disk, directory, files, monkeypatch, capsys, name, call):
        fill_before(monkeypatch, disk, tfds_datasets, name, call)
        arguments = ["prepare", "array_record", "tiny_records"]
        assert cli.main(arguments) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"error: Cannot write {directory}/")
        assert "(No space left on device): make room there." in err
        assert err.count("\n") == 1
        (disk / "filler").unlink()
        assert cli.main(arguments) == 0
        self.check(files)
        assert not list(directory.glob("*.partial"))


def test_progress_reports_the_rate_and_the_remaining_time():
    lines = []
    progress.Progress(100, "images", lines.append, interval=0.0).add(50)
    assert lines[0].startswith("50 of 100 images, ")
    assert lines[0].endswith("/s, 1 s left")
    assert [progress.duration(seconds) for seconds in (0, 29, 90, 7300)] == [
        *("1 s", "29 s", "2 min"),
        "2 h 2 min",
    ]
