import io
import pathlib
import shutil
import tarfile
import types

import cv2
import numpy as np
import pytest
from PIL import Image

from llc_jax import cli
from llc_jax.data import splits, transforms
from llc_jax.errors import InputError
from llc_jax.files import exclusive_lock
from llc_jax.prepare import resized

SIDE = 32


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def image_file(height, width, suffix=".jpg", seed=0, orientation=None):
    """An image file of few, large spots."""
    spots = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    image = Image.fromarray(cv2.resize(spots, (width, height), interpolation=cv2.INTER_CUBIC))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    out = io.BytesIO()
    kind = {".jpg": "JPEG", ".JPEG": "JPEG", ".png": "PNG", ".webp": "WEBP"}[suffix]
    image.save(out, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return out.getvalue()


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def folder(tmp_path):
    """A split folder: large and small images, of several kinds."""
    files = {}
    for split, count in (("train", 6), ("val", 2)):
        for number, name in enumerate(("ant", "bee", "cat")):
            for i in range(count):
                content = image_file(40 + 7 * i, 60, ".JPEG", seed=10 * number + i)
                files[f"{split}/{name}/{name}_{i}.JPEG"] = content
    files["train/ant/small.jpg"] = image_file(20, 90)
    files["train/bee/large.png"] = image_file(90, 70, ".png")
    files["train/cat/turned.jpg"] = image_file(40, 80, orientation=6)
    files["val/cat/tiny.webp"] = image_file(24, 30, ".webp")
    return write(tmp_path / "photos", files)


def copy(source, out, **settings):
    """The lines that were reported."""
    lines = []
    resized.resize_copy(str(source), out, short_side=SIDE, report=lines.append, **settings)
    return lines


def open_splits(path):
    return splits.open_splits(str(path), "", holdout=0.25, seed=0)[:2]


def test_is_the_dataset_with_smaller_images(folder, tmp_path):
    lines = copy(folder, tmp_path / "small.tar")
    assert lines[0].startswith("28 of 28 images to do, at about")
    assert lines[-1].startswith(f"Written: {tmp_path / 'small.tar'}, ")
    for ours, expected in zip(
        open_splits(tmp_path / "small.tar"), open_splits(folder), strict=True
    ):
        assert ours.class_names == expected.class_names
        np.testing.assert_array_equal(ours.labels, expected.labels)
        assert [pathlib.PurePath(name).stem for name in ours.names] == [
            pathlib.PurePath(name).stem for name in expected.names
        ]
        for index, name in enumerate(expected.names):
            check(ours.read(index), expected.read(index), name)


def check(ours, original, name):
    before, after = (
        transforms.decode(content, name, exif_orientation=False).astype(int)
        for content in (original, ours)
    )
    small = min(before.shape[:2]) <= SIDE
    if small and name.endswith(("jpg", "JPEG")):
        assert ours == original
    assert ours.startswith(b"\xff\xd8")
    assert min(after.shape[:2]) == (min(before.shape[:2]) if small else SIDE)
    ratio = before.shape[0] / before.shape[1]
    assert after.shape[0] == pytest.approx(after.shape[1] * ratio, abs=max(1, ratio))
    expected = np.array(Image.fromarray(before.astype(np.uint8)).resize(after.shape[1::-1]))
    assert np.abs(after - expected).mean() < 5


def test_exif_still_turns(folder, tmp_path):
    copy(folder, tmp_path / "small.tar")
    train = open_splits(tmp_path / "small.tar")[0]
    content = train.read(list(train.names).index("train/cat/turned.jpg"))
    assert transforms.decode(content, "x").shape == (64, 32, 3)
    assert transforms.decode(content, "x", exif_orientation=False).shape == (32, 64, 3)


def test_a_dataset_without_splits_has_none_in_the_copy(folder, tmp_path):
    copy(folder / "train", tmp_path / "small.tar")
    for ours, expected in zip(
        open_splits(tmp_path / "small.tar"), open_splits(folder / "train"), strict=True
    ):
        np.testing.assert_array_equal(ours.labels, expected.labels)
        assert [name.split(".")[0] for name in ours.names] == [
            name.split(".")[0] for name in expected.names
        ]


def test_equal_or_unsorted_names_are_numbered(tmp_path):
    files = {f"{folder}/x.jpg": image_file(9, 9, seed=i) for i, folder in enumerate(("2", "1"))}
    write(tmp_path, {**files, "y.png": image_file(9, 9, ".png")})
    (tmp_path / "all.csv").write_text("2/x.jpg,ant\n1/x.jpg,ant\ny.png,bee\n")
    copy(tmp_path / "all.csv", tmp_path / "small.tar")
    with tarfile.open(tmp_path / "small.tar") as tar:
        assert tar.getnames()[1:] == ["ant/0_x.jpg", "ant/1_x.jpg", "bee/y.jpg"]
        assert tar.extractfile("ant/0_x.jpg").read() == files["2/x.jpg"]


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.05, 0.4, 0.7, 0.95, 1.0])
def test_an_interrupted_copy_continues(folder, tmp_path, fraction):
    complete, interrupted = tmp_path / "complete.tar", tmp_path / "interrupted.tar"
    copy(folder, complete)
    content = complete.read_bytes()
    partial = tmp_path / "interrupted.tar.partial"
    partial.write_bytes(content[: int(fraction * len(content))])
    lines = copy(folder, interrupted)
    assert interrupted.read_bytes() == content
    assert (int(lines[0].split()[0]) < 28) == (fraction > 0.1)
    assert not partial.exists()


def test_does_nothing_twice(folder, tmp_path):
    out = tmp_path / "small.tar"
    copy(folder, out)
    assert copy(folder, out) == [f"{out} is there already."]
    with pytest.raises(InputError, match=r"small.tar is another file: remove it"):
        copy(folder, out, quality=50)
    out.rename(tmp_path / "small.tar.partial")
    with pytest.raises(InputError, match=r"was begun with other images or settings"):
        copy(folder, out, quality=50)


def test_a_damaged_image_is_named_and_continued_from(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(resized, "_SAMPLES", 1)
    path = folder / "train" / "bee" / "bee_3.JPEG"
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    with pytest.raises(InputError, match=r"^train/bee/bee_3.JPEG \(300 bytes\) cannot be decoded"):
        copy(folder, tmp_path / "small.tar")
    path.write_bytes(whole)
    assert copy(folder, tmp_path / "small.tar")[0].startswith("18 of 28 images to do")


def test_no_space(folder, tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=2_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"needs about 0.1 MB, but .* has 0.0 MB free"):
        copy(folder, tmp_path / "small.tar")
    assert not list(tmp_path.glob("small*"))


def test_unreadable_sources_and_unwritable_copies(folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="There is no data at"):
        copy(tmp_path / "nothing", tmp_path / "small.tar")
    with pytest.raises(InputError, match="digits has no image files"):
        copy("digits", tmp_path / "small.tar")
    with pytest.raises(InputError, match=r"Cannot write in .*small.jpg: "):
        copy(folder, folder / "train" / "ant" / "small.jpg" / "small.tar")
    with pytest.raises(InputError, match="The copy is a .tar file, not x.zip"):
        copy(folder, pathlib.Path("x.zip"))
    with pytest.raises(InputError, match="the quality 1 to 100, not 32 and 101"):
        copy(folder, tmp_path / "small.tar", quality=101)

    def deny(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", deny)
    with pytest.raises(InputError, match=r"^Cannot read .*photos: Permission denied.$"):
        copy(folder, tmp_path / "small.tar")


def test_only_one_process_writes(folder, tmp_path):
    partial = tmp_path / "small.tar.partial"
    partial.touch()
    with exclusive_lock(partial):
        with pytest.raises(InputError, match=r"Another process is at work on .*small.tar.partial"):
            copy(folder, tmp_path / "small.tar")


def test_the_command(folder, tmp_path, capsys):
    out = tmp_path / "small.tar"
    assert cli.main(["prepare", "resize", str(folder), str(out), "--short-side", "32"]) == 0
    assert f"Written: {out}" in capsys.readouterr().out
    assert cli.main(["prepare", "resize", str(tmp_path / "none"), str(out)]) == 2
    assert capsys.readouterr().err.startswith("error: There is no data at")


def test_embeddings_are_no_images(tmp_path):
    with pytest.raises(InputError, match="a.npz are embeddings, not images"):
        resized.resize_copy(f"embeddings:{tmp_path}/a.npz", tmp_path / "a.tar")
