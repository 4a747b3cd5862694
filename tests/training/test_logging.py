import io
import json

import rich.console

from llc_jax.training import logging
from llc_jax.training.console import TimeLeft
from llc_jax.training.logging import RunLog, read_metrics


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
