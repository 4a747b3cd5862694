import io
import re
import shutil
import zipfile

import numpy as np
import pytest

from llc_jax.data.fingerprint import Fingerprint
from llc_jax.data.splits import open_splits
from llc_jax.data.stores import Folder
from tests.writing import tar_bytes

FILES = {f"{name}/{index}.png": bytes(index + 1) for name in ("cat", "dog") for index in range(3)}


def write(folder, files=FILES):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def fingerprint(source):
    return Fingerprint.of(open_splits(str(source), "", holdout=0.4, seed=0))


def test_the_same_files_have_the_same_fingerprint_wherever_they_lie(tmp_path):
    folder = write(tmp_path / "photos")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in FILES.items():
            file.writestr(name, content)
    (tmp_path / "photos.zip").write_bytes(archive.getvalue())
    (tmp_path / "photos.tar").write_bytes(tar_bytes(FILES))
    found = fingerprint(folder)
    assert found.images == {"cat": 3, "dog": 3}
    for other in (shutil.copytree(folder, tmp_path / "moved"), f"{folder}.zip", f"{folder}.tar"):
        assert found.changes(fingerprint(other)) == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fox/0.png": b"", "fox/1.png": b""}, "the class 'fox' is new"),
        ({"cat/9.png": b""}, "'cat' has 4 images, not 3"),
        ({"cat/0.png": b"another size"}, "some have other names or sizes"),
        ({f"{name}/0.png": b"" for name in "abcde"}, "'a' is new; .*'c' is new, and 2 more"),
    ],
)
def test_what_has_changed_is_said(tmp_path, changes, expected):
    before = fingerprint(write(tmp_path))
    assert re.search(expected, before.changes(fingerprint(write(tmp_path, changes))))


def test_a_class_that_is_gone_and_a_name_that_is_not_utf_8(tmp_path):
    before = fingerprint(write(tmp_path, FILES | {"fox/0.png": b"", "fox/\udcff.png": b""}))
    shutil.rmtree(tmp_path / "fox")
    assert before.changes(fingerprint(tmp_path)) == "the class 'fox' is missing"


def test_digits_have_a_fingerprint():
    found = fingerprint("digits")
    assert sum(found.images.values()) == 1797
    assert found == fingerprint("digits")


def test_the_sizes_of_many_files(tmp_path):
    files = {f"cat/{index}.png": bytes(index % 7) for index in range(2500)}
    store = Folder(write(tmp_path, files))
    np.testing.assert_array_equal(store.sizes(list(files)), [len(v) for v in files.values()])
    np.testing.assert_array_equal(store.sizes(["cat/gone.png"]), [0])
