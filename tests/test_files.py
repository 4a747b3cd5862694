import json

import pytest

from llc_jax.files import atomic_write, volume, write_json


def test_a_failed_write_keeps_the_old_content(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("second")
        raise RuntimeError
    assert path.read_text() == "first"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_a_written_file_has_the_usual_permissions(tmp_path):
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("x")
    (tmp_path / "usual").write_text("x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, 2.5, None]}


def test_volumes_in_words():
    assert [volume(size) for size in (3e5, 1.5e9, 1.44e11)] == ["0.3 MB", "1.5 GB", "144 GB"]
