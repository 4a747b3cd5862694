import json
import resource
import subprocess
import sys

import pytest

from llc_jax.errors import InputError
from llc_jax.files import WriteFailed, atomic_write, read_json, sweep, volume, write_json

KILLED_WHILE_WRITING = """
import os, sys
from llc_jax.files import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os._exit(1)
"""


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


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "a.json").write_text("[1]")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
    try:
        with pytest.raises(WriteFailed, match=r"a\.json \(File too large\): allow larger files"):
            write_json(tmp_path / "a.json", list(range(100)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["[1]"]


def test_what_a_killed_process_has_left_is_swept(tmp_path):
    for name in ("weights.npz", "results"):
        subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path / name)])
    (tmp_path / ".hidden").touch()
    assert len(list(tmp_path.iterdir())) == 3
    with atomic_write(tmp_path / "living.json") as temporary:
        sweep(tmp_path)
        assert set(tmp_path.iterdir()) == {tmp_path / ".hidden", temporary}
    assert {path.name for path in tmp_path.iterdir()} == {".hidden", "living.json"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b'{"a": "\xff\xff"}', "can't decode byte 0xff"),
        (b"[1]", "it holds a list, not an object"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_damaged_json_is_named(tmp_path, content, reason):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.json is damaged \(.*{reason}"):
        read_json(tmp_path / "a.json")


def test_volumes_in_words():
    assert [volume(size) for size in (3e5, 1.5e9, 1.44e11)] == ["0.3 MB", "1.5 GB", "144 GB"]
