import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from llc_jax.errors import InputError
from llc_jax.experiment import locking
from llc_jax.experiment.locking import locked, locked_for_evaluation
from llc_jax.files import WriteFailed

ROOT = pathlib.Path(__file__).parents[2]
HOLDER = """
import pathlib, sys, time
from llc_jax.experiment.locking import locked
with locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def contents(directory):
    """Returns every file with its bytes and the time of its last change."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_lock_refuses_others_names_its_holder_and_leaves_nothing(tmp_path):
    with locked(tmp_path):
        before = contents(tmp_path)
        holder = rf"process {os.getpid()} on {socket.gethostname()} since 20\d\d-.*"
        with pytest.raises(InputError, match=rf"at work in {tmp_path}: {holder}\. Wait until"):
            with locked(tmp_path):
                pass
        assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == []


def test_a_lock_dies_with_its_process(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"process {process.pid} on"):
            with locked(tmp_path):
                pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with locked(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / "lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_its_holder_has_just_removed_is_made_again(tmp_path, monkeypatch):
    opened = []

    def remove_first(descriptor):
        opened.append(descriptor)
        if len(opened) == 1:
            (tmp_path / "lock").unlink()
        return True

    monkeypatch.setattr(locking, "try_lock", remove_first)
    with locked(tmp_path):
        assert len(opened) == 2
        assert (tmp_path / "lock").exists()


def test_an_evaluation_may_be_at_work_beside_a_run_but_not_beside_another(tmp_path):
    with locked(tmp_path), locked_for_evaluation(tmp_path):
        with pytest.raises(InputError, match=f"Another evaluation is at work in {tmp_path}: proc"):
            with locked_for_evaluation(tmp_path):
                pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, None])
def test_a_workdir_that_was_removed_is_one_sentence(tmp_path, error):
    (tmp_path / "run").mkdir()
    with pytest.raises(WriteFailed, match="run was removed while the run was at work there"):
        with locked(tmp_path / "run"):
            shutil.rmtree(tmp_path / "run")
            if error:
                raise error


def test_a_start_sweeps_temporary_files_of_the_run_and_its_stages(tmp_path):
    (tmp_path / "linear" / "checkpoints").mkdir(parents=True)
    for directory in (tmp_path, tmp_path / "linear"):
        (directory / ".results.abc.partial.json").touch()
        (directory / ".kept").touch()
    with locked(tmp_path):
        left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
        assert left == {".kept", "lock"}
