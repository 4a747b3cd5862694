"""The paper's tables: their runs and keys are real, and RESULTS.md says what the records say."""

import json
import pathlib
import re
import subprocess

import cv2
import numpy as np
import pytest

from llc_jax import main as llc_main
from llc_jax.errors import InputError
from llc_jax.evaluation import ood_baselines
from llc_jax.experiment.config import as_json, parse
from llc_jax.files import write_arrays, write_json
from llc_jax.reproduce import __main__ as command
from llc_jax.reproduce import records
from llc_jax.reproduce.tables import SETTINGS, TABLES, table
from tests.tiny import tree

ROOT = pathlib.Path(__file__).parent.parent
RECORDS = sorted((ROOT / "docs" / "records").glob("*.json"))
EVERY = [(name, setting) for name in TABLES for setting in SETTINGS]


@pytest.mark.parametrize(("name", "setting"), EVERY)
def test_each_cell_is_of_a_run_that_the_table_has(name, setting):
    wanted = table(name, setting)
    assert {cell.run for row in wanted.rows for cell in row.cells if cell} == {
        run.name for run in wanted.runs
    }
    assert all(len(row.cells) == len(wanted.columns) for row in wanted.rows)
    assert all(run.config in llc_main._configs() for run in wanted.runs)


def leave_environment(workdir, seed):
    environment = {"date": f"2026-01-0{seed + 1}", "machine": "a CPU", "cores": 2}
    environment |= {"device": "cpu", "devices": 1, "versions": {"jax": "1"}}
    write_json(workdir / "environment.json", {"starts": [environment]})


def fake_run(calls):
    """Writes the results that a table wants of a run, where it would be run."""

    def run(command, env):
        calls.append(command)
        (workdir,) = [w.split("=", 1)[1] for w in command if w.startswith("--workdir=")]
        (seed,) = [int(w.split("=")[1]) for w in command if w.startswith("--config.seed=")]
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True)
        cells = [cell for row in table("table1", "cifar100").rows for cell in row.cells if cell]
        results = {cell.key: 100 if "unique" in cell.key else 0.5 + seed / 100 for cell in cells}
        (workdir / "results.json").write_text(json.dumps(results))
        leave_environment(workdir, seed)
        return subprocess.CompletedProcess(command, 0)

    return run


def run_with_scores(command, env):
    """Leaves what a run keeps of unknown images: the codes find them all, and so does a score."""
    (workdir,) = [
        pathlib.Path(word.split("=", 1)[1]) for word in command if word.startswith("--workdir=")
    ]
    directory = workdir / "instance" / "ood"
    directory.mkdir(parents=True)
    write_json(workdir / "config.json", as_json(parse(tree())))
    leave_environment(workdir, seed=0)
    scores = {
        "known/softmax_probability": np.linspace(-1, 0, 8000),
        "known/nearest_distance": np.arange(8000) % 10 == 0,
        "unknown/near/held_out/softmax_probability": np.linspace(1, 2, 2000),
        "unknown/near/held_out/nearest_distance": np.ones(2000),
    }
    write_arrays(directory / "scores.npz", scores)
    (workdir / "results.json").write_text("{}")
    return subprocess.CompletedProcess(command, 0)


def test_figures_are_made_of_the_scores_that_runs_have_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.subprocess, "run", run_with_scores)
    monkeypatch.setattr(ood_baselines, "COUNTS", (50, 2000))
    arguments = ["--on=features", "--data=x.zip", "--out", str(tmp_path), "--seeds", "0", "1"]
    assert command.main(["figure5", "figure6", *arguments]) == 0
    printed = capsys.readouterr().out
    # The 1,600 unknown images of figure 5's test set are found, and 800 known ones besides.
    for count in ("50", "2,000"):
        assert f"n = {count} | 80.00 ± 0.00 | 100.00 ± 0.00 |" in printed
    least = "| 20 classes held out, least n as good as the codes |  | 50"
    assert f"{least} (3000 beside 50,000 known) |  |" in printed
    # In figure 6 it has n: 2 n / (2 n + 800).
    assert "n = 50 | 11.11 ± 0.00 | 100.00 ± 0.00 |" in printed
    assert "n = 2,000 | 83.33 ± 0.00 | 100.00 ± 0.00 |" in printed
    assert f"{least} |  |" in printed
    record = json.loads((tmp_path / "features" / "figure5.json").read_text())
    record["figures"][-1][1] = [2000, None, 50]
    assert "| 50 to none of these (3000 beside" in records.to_markdown(record)


def test_a_run_without_scores_is_one_sentence(tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "cifar100" / "unknown_0"
    workdir.mkdir(parents=True)
    write_json(workdir / "config.json", as_json(parse(tree())))
    (workdir / "results.json").write_text("{}")
    arguments = ["--on=cifar100", "--data=x.zip", "--out", str(tmp_path), "--seeds", "0"]
    assert command.main(["figure5", *arguments]) == 2
    assert "no softmax_probability of unknown images near/held_out" in capsys.readouterr().err


@pytest.mark.slow
def test_figures_and_separability_from_images(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    for number in range(2 * 24 * 6):
        split = ("train", "test")[number % 2]
        folder = tmp_path / "images" / split / f"class{number // 2 % 24}"
        folder.mkdir(parents=True, exist_ok=True)
        image = generator.integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"{number}.png"), image)
    monkeypatch.setattr(ood_baselines, "COUNTS", (20, 100))
    monkeypatch.setenv("XLA_FLAGS", "")
    stages = {"linear": 1, "codebook": 1, "instance": 1}
    arguments = [
        *("--on=cifar100", f"--data={tmp_path / 'images'}", "--out", str(tmp_path / "runs")),
        *("--seeds", "0", "--config.model.name=resnet8_small", "--config.model.width=4"),
        *("--config.batch_size=16", "--config.report=False"),
        *(f"--config.stages.{name}.epochs={number}" for name, number in stages.items()),
    ]
    assert command.main(["figure5", "figure6", *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| 20 classes held out, n = 100 |") == 2
    assert printed.count("-m llc_jax.main") == 1
    assert command.main(["separability", *arguments]) == 0
    assert "| the same, and the last 3 blocks trained |" in capsys.readouterr().out


def test_runs_what_is_missing_and_writes_the_table(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(command.subprocess, "run", fake_run(calls))
    results = tmp_path / "RESULTS.md"
    results.write_text("# Measured\n\nBefore.\n")
    arguments = ["table1", "--on=cifar100", "--data=cifar100.zip", "--out", str(tmp_path / "runs")]
    assert command.main([*arguments, "--seeds", "0", "1", "--write", str(results)]) == 0
    assert len(calls) == 2
    written = results.read_text()
    assert written.startswith("# Measured\n\nBefore.\n")
    assert "| LLC | 100 (1000) | 50.50 ± 0.71 (68.82) | 50.50 ± 0.71 (74.57) |" in written
    assert "2026-01-01 to 2026-01-02" in written
    assert "a CPU, 2 cores; jax 1" in written
    # A second time nothing is run; a third seed changes the section in its place.
    results.write_text(written + "\nAfter.\n")
    assert command.main([*arguments, "--seeds", "0", "1", "--write", str(results)]) == 0
    assert len(calls) == 2
    assert results.read_text() == written + "\nAfter.\n"
    assert command.main([*arguments, "--write", str(results)]) == 0
    assert len(calls) == 3
    assert results.read_text().endswith("\nAfter.\n")
    assert results.read_text().count("reproduce table1 --on=cifar100 -->") == 1
    assert "51.00 ± 1.00" in capsys.readouterr().out


def test_a_run_that_fails_ends_it_with_its_status(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 2)
    monkeypatch.setattr(command.subprocess, "run", lambda command, **_: failed)
    arguments = ["table1", "--on=cifar100", "--data=missing.zip", "--out", str(tmp_path)]
    assert command.main(arguments) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_commands_that_can_be_pasted(tmp_path, capsys):
    arguments = ["table2", "--on=imagenet", "--data=the images", "--out", str(tmp_path)]
    assert command.main([*arguments, "--dry-run", "--config.batch_size=64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith("python -m llc_jax.main '--config=imagenet_20bit:the images' ")
    assert lines[0].endswith("--config.num_bits=15 --config.batch_size=64")


def test_features_are_made_once_for_all_seeds(tmp_path, capsys):
    arguments = ["separability", "--on=features", "--data=cifar100.zip", "--out", str(tmp_path)]
    assert command.main([*arguments, "--dry-run"]) == 0
    first, second, *runs = capsys.readouterr().out.splitlines()
    assert "--config=features_codebooks:cifar100.zip" in first
    workdir, file = tmp_path / "features" / "codebooks_0", tmp_path / "features" / "features.npz"
    assert second == f"python -m llc_jax.reproduce.features {workdir} {file}"
    assert len(runs) == 3
    assert all(f"--config=embeddings_separability:{file}" in line for line in runs)


def test_what_cannot_be_computed_is_one_sentence(tmp_path, capsys):
    assert command.main(["table9", "--on=features", "--data=x"]) == 2
    assert "table" in capsys.readouterr().err
    assert command.main(["table1", "--on=features", "--data=x", "--seed=0"]) == 2
    assert "Expected --config.KEY=VALUE, not --seed=0" in capsys.readouterr().err
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "results.json").write_text("{}")
    wanted = table("table1", "features")
    with pytest.raises(InputError, match=r"The run codebooks has no figure codebook/random/unique"):
        records.collect(wanted, "command", {"codebooks": [workdir]})


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_results_say_what_the_records_say(path):
    record = json.loads(path.read_text())
    start, end = map(re.escape, records.markers(record["table"], record["on"]))
    (section,) = re.findall(f"{start}\n(.*?){end}", (ROOT / "RESULTS.md").read_text(), re.DOTALL)
    assert section == records.to_markdown(record)
