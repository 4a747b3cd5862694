import io
import json
import shutil

import numpy as np
import pytest
import rich.console

from llc_jax.files import WriteFailed
from llc_jax.training import logging
from llc_jax.training.console import TimeLeft
from llc_jax.training.logging import RunLog, read_metrics
from tests.workdirs import read_events, read_scalars


def write_some(workdir, steps, first_step=0, stage="codebook"):
    with RunLog(workdir).stage(stage, first_step, 100) as log:
        for step in steps:
            log.write(step, {"epoch": step // 10, "loss": 1 / step})


def test_records_are_lines_of_json_and_events(tmp_path, capsys):
    write_some(tmp_path, [10, 20])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"stage": "codebook", "step": 10, "epoch": 1, "loss": 0.1}
    assert list((tmp_path / "tensorboard" / "codebook").glob("events.out.tfevents.*"))
    assert capsys.readouterr().out.splitlines() == [
        "codebook: compiling",
        "codebook    epoch 1  loss 0.100",
        "codebook    epoch 2  loss 0.050",
    ]


def test_what_comes_again_is_dropped(tmp_path):
    write_some(tmp_path, [10, 20], stage="linear")
    write_some(tmp_path, [10, 20, 30])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "codebook", "st')  # Cut off, as by a power failure.
    write_some(tmp_path, [20, 30], first_step=15)
    found = [(record["stage"], record["step"]) for record in read_metrics(tmp_path)]
    assert found == [
        *(("linear", 10), ("linear", 20)),
        *(("codebook", 10), ("codebook", 20), ("codebook", 30)),
    ]


def test_other_processes_say_and_write_nothing(tmp_path, capsys):
    log = RunLog(tmp_path, primary=False)
    log.say("hello")
    with log.stage("codebook", 0, 10) as stage:
        stage.write(1, {"loss": 1.0})
        stage.progress(1, 1.0, 10.0)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_figures_of_an_evaluation_are_in_the_record_and_named_on_the_console(tmp_path, capsys):
    with RunLog(tmp_path).stage("linear", 0, 10) as log:
        log.write(5, {"epoch": 1, "accuracy": 0.75}, {"class_logits": 0.5})
    record = {"stage": "linear", "step": 5, "epoch": 1, "accuracy": 0.75, "class_logits": 0.5}
    assert read_metrics(tmp_path) == [record]
    assert "training accuracy 75.0%" in (out := capsys.readouterr().out)
    assert "evaluation:  accuracy 50.0%" in out


def test_a_run_says_how_long_it_takes_once_it_is_known(tmp_path, capsys):
    log = RunLog(tmp_path)
    log.expect(later_steps=9_900, batch_size=100)
    with log.stage("linear", 0, 100) as stage:
        stage.progress(1, 1.0, 100.0)  # A second of training tells little.
        assert "About" not in capsys.readouterr().out
        for step in (2, 3):
            stage.progress(step, 1.0, 10.0)
    log.expect(later_steps=0, batch_size=100)
    with log.stage("codebook", 0, 9_900) as stage:
        stage.progress(1, 1.0, 10.0)
    assert capsys.readouterr().out.splitlines() == [
        "About 27 h 46 min of training for all stages that are left.",
        "codebook: compiling",
    ]


def test_a_terminal_of_80_columns_has_a_progress_bar():
    output = io.StringIO()
    console = rich.console.Console(file=output, force_terminal=True, width=80)
    time_left = TimeLeft(num_steps=100_200, batch_size=1000)
    with logging._progress(console, "codebook", 0, 100_200, time_left) as move:
        assert "compiling" in output.getvalue()
        time_left.tick(50, 12_345.0)
        move(50, 1.25, 12_345.0)
    assert "50/100200" in output.getvalue()
    assert "12,345 images/s" in output.getvalue()
    assert "loss 1.250" in output.getvalue()
    assert "2 h 15 min left" in output.getvalue()


def test_what_is_logged_is_on_the_disk_at_once(tmp_path):
    # A process that is killed closes nothing, and one that comes after it starts within a second.
    for first_step in (0, 10):
        log = RunLog(tmp_path).stage("codebook", first_step, 100)
        log.__enter__().write(first_step + 10, {"epoch": first_step // 10, "loss": 0.5})
        assert len(read_metrics(tmp_path)) == first_step // 10 + 1
        assert (None, first_step + 1) in read_events(tmp_path, "codebook")
        assert ("loss", first_step + 10, 0.5) in read_events(tmp_path, "codebook")
    assert ("loss", 10, 0.5) in read_events(tmp_path, "codebook")


def test_tensorboard_shows_each_epoch_once_after_kills(tmp_path):
    write_some(tmp_path, [10, 20, 30])
    write_some(tmp_path, [20, 30], first_step=15)
    (path, _) = sorted((tmp_path / "tensorboard" / "codebook").iterdir())
    path.write_bytes(path.read_bytes()[:-5])  # A record that was cut off.
    assert read_scalars(tmp_path, "codebook") == {
        step: {"epoch": step // 10, "loss": np.float32(1 / step)} for step in (10, 20, 30)
    }


def test_damaged_lines_are_passed_over_and_said_once(tmp_path, capsys):
    write_some(tmp_path, [10, 20])
    good = read_metrics(tmp_path)
    damage = [b"\xff\xfe", b"[1, 2]", b'{"stage": "codebook"}', b'{"step": 3}', b"{", b"[" * 9999]
    path = tmp_path / "metrics.jsonl"
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, *damage, second, b""]))
    assert read_metrics(tmp_path) == good
    capsys.readouterr()
    write_some(tmp_path, [30], first_step=20)
    said = [line for line in capsys.readouterr().out.splitlines() if "is damaged" in line]
    assert len(said) == 6
    assert said[1] == f"Line 3 of {path} is damaged, and is removed: [1, 2]"
    assert [record["step"] for record in read_metrics(tmp_path)] == [10, 20, 30]
    write_some(tmp_path, [40], first_step=30)
    assert "damaged" not in capsys.readouterr().out


def test_a_workdir_that_was_removed_is_one_sentence(tmp_path):
    with pytest.raises(WriteFailed, match=r"metrics\.jsonl .*its directory was removed\."):
        with RunLog(tmp_path / "run").stage("codebook", 0, 100) as log:
            log.write(10, {"loss": 0.5})
            shutil.rmtree(tmp_path / "run")
            log.write(20, {"loss": 0.5})


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(WriteFailed, match=r"\(No space left on device\): make room there\."):
        with RunLog(tmp_path).stage("codebook", 0, 100) as log:
            (tmp_path / "metrics.jsonl").unlink()
            (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
            log.write(10, {"loss": 0.5})
