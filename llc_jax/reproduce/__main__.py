"""Computes the paper's tables and figures: python -m llc_jax.reproduce table1 --on=features ...

Each run is the same as by hand, with `python -m llc_jax.main`; what is finished is not run again,
and what was stopped continues.
"""

import argparse
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llc_jax.errors import InputError
from llc_jax.experiment.workdir import RESULTS_FILE
from llc_jax.files import atomic_write, make_directory, write_json
from llc_jax.reproduce import records
from llc_jax.reproduce.tables import SETTINGS, TABLES, Run, Table, table

_COMPILED = "JAX_COMPILATION_CACHE_DIR"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the arguments ask for; returns the exit status."""
    options, overrides = _parser().parse_known_args(arguments)
    try:
        if wrong := [word for word in overrides if not word.startswith("--config.")]:
            raise InputError(f"Expected --config.KEY=VALUE, not {wrong[0]}; see --help.")
        tables = [table(name, options.on) for name in options.tables]
        for wanted in tables:
            status = _compute(wanted, options, overrides)
            if status:
                return status
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llc_jax.reproduce",
        allow_abbrev=False,
        description="Computes tables and figures of the paper, and prints ours beside the paper's.",
        epilog="Values of the config follow as --config.KEY=VALUE; they are the same for all runs.",
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--on", required=True, choices=SETTINGS, help="data and network")
    parser.add_argument("--data", required=True, help="CIFAR-100 as a folder or zip; or ImageNet")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="0 1 2")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/reproduce"), help="of all runs"
    )
    parser.add_argument(
        "--write", type=pathlib.Path, help="a Markdown file for the tables; records go beside it"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    return parser


def _compute(wanted: Table, options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs what a table lacks, and shows it; returns the status of a run that fails."""
    directory = options.out / wanted.setting
    # A command that several runs need is done once.
    steps = dict.fromkeys(
        step
        for run in wanted.runs
        for seed in options.seeds
        for step in _steps(run, options.data, seed, directory, overrides)
    )
    # Runs of other seeds read what the first has compiled.
    environment = {_COMPILED: str((options.out / "compiled").absolute())} | os.environ
    for step in steps:
        if options.dry_run:
            print(shlex.join(["python", *step.command]))
        elif not step.result.exists():
            print(f"{wanted.name}: {shlex.join(['python', *step.command])}", flush=True)
            status = subprocess.run([sys.executable, *step.command], env=environment).returncode
            if status:
                return status if status > 0 else 128 - status
    if options.dry_run:
        return 0
    workdirs = {
        run.name: [_workdir(run, seed, directory) for seed in options.seeds] for run in wanted.runs
    }
    record = records.collect(wanted, _own_command(wanted, options, overrides), workdirs)
    write_json(directory / f"{wanted.name}.json", record)
    print(records.to_markdown(record))
    if options.write:
        _write(record, options.write)
    return 0


class _Step(NamedTuple):
    """The arguments of Python for one command, and the file that is there once it is done."""

    command: tuple[str, ...]
    result: pathlib.Path


def _steps(
    run: Run, data: str, seed: int, directory: pathlib.Path, overrides: Sequence[str]
) -> Iterator[_Step]:
    """Yields what is to be done for a run, which comes last."""
    if run.features_of is not None:
        yield from _steps(run.features_of, data, 0, directory, overrides)
        encoded, data = _workdir(run.features_of, 0, directory), directory / "features.npz"
        command = ("-m", "llc_jax.reproduce.features", f"{encoded}", f"{data}")
        yield _Step(command, data)
    workdir = _workdir(run, seed, directory)
    command = (
        *("-m", "llc_jax.main", f"--config={run.config}:{data}", f"--workdir={workdir}"),
        *(f"--config.seed={seed}", *run.overrides, *overrides),
    )
    yield _Step(command, workdir / RESULTS_FILE)


def _workdir(run: Run, seed: int, directory: pathlib.Path) -> pathlib.Path:
    return directory / f"{run.name}_{seed}"


def _write(record: Mapping[str, Any], path: pathlib.Path) -> None:
    """Puts a record into a Markdown file, and into `docs/records` beside it."""
    directory = path.absolute().parent / "docs" / "records"
    make_directory(directory)
    write_json(directory / f"{record['on']}_{record['table']}.json", record)
    text = path.read_text() if path.exists() else ""
    with atomic_write(path) as temporary:
        temporary.write_text(records.insert(text, record))


def _own_command(wanted: Table, options: argparse.Namespace, overrides: Sequence[str]) -> str:
    data = pathlib.Path(options.data).name
    seeds = [] if options.seeds == [0, 1, 2] else ["--seeds", *map(str, options.seeds)]
    words = [wanted.name, f"--on={wanted.setting}", f"--data={data}", *seeds, *overrides]
    return shlex.join(["python", "-m", "llc_jax.reproduce", *words])


if __name__ == "__main__":
    sys.exit(main())
