"""Computes tables of the paper: python -m llc_jax.reproduce table1 --on=features --data PATH

Each run is the same as by hand, with `python -m llc_jax.main`; what is finished is not run again,
and what was stopped continues.
"""

import argparse
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from llc_jax.errors import InputError
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
        description="Computes tables of the paper, and prints them beside the paper's figures.",
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
    workdirs = {
        run.name: [options.out / wanted.setting / f"{run.name}_{seed}" for seed in options.seeds]
        for run in wanted.runs
    }
    # Runs of other seeds read what the first has compiled.
    environment = {_COMPILED: str((options.out / "compiled").absolute())} | os.environ
    for run in wanted.runs:
        for seed, workdir in zip(options.seeds, workdirs[run.name], strict=True):
            command = _command(run, options.data, seed, workdir, overrides)
            if options.dry_run:
                print(shlex.join(["python", *command]))
            elif not (workdir / "results.json").exists():
                print(f"{wanted.name}: {shlex.join(['python', *command])}", flush=True)
                status = subprocess.run([sys.executable, *command], env=environment).returncode
                if status:
                    return status if status > 0 else 128 - status
    if options.dry_run:
        return 0
    record = records.collect(wanted, _own_command(wanted, options, overrides), workdirs)
    write_json(options.out / wanted.setting / f"{wanted.name}.json", record)
    print(records.to_markdown(record))
    if options.write:
        _write(record, options.write)
    return 0


def _command(
    run: Run, data: str, seed: int, workdir: pathlib.Path, overrides: Sequence[str]
) -> list[str]:
    return [
        *("-m", "llc_jax.main", f"--config={run.config}:{data}", f"--workdir={workdir}"),
        *(f"--config.seed={seed}", *run.overrides, *overrides),
    ]


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
