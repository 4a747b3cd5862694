"""The paper's tables: their runs and keys are real, and RESULTS.md says what the records say."""

import json
import pathlib
import re
import subprocess

import pytest

from llc_jax import main as llc_main
from llc_jax.errors import InputError
from llc_jax.reproduce import __main__ as command
from llc_jax.reproduce import records
from llc_jax.reproduce.tables import SETTINGS, TABLES, table

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
        environment = {"date": f"2026-01-0{seed + 1}", "machine": "a CPU", "cores": 2}
        environment |= {"device": "cpu", "devices": 1, "versions": {"jax": "1"}}
        (workdir / "environment.json").write_text(json.dumps({"starts": [environment]}))
        return subprocess.CompletedProcess(command, 0)

    return run


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
