"""What the runs of a table have measured, and how it is written down."""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from llc_jax.errors import InputError
from llc_jax.experiment.environment import read_environments
from llc_jax.reproduce.tables import Cell, Table, table


def collect(
    wanted: Table, command: str, workdirs: Mapping[str, Sequence[pathlib.Path]]
) -> dict[str, Any]:
    """Returns the record of a table, as plain values for a JSON file.

    Args:
      wanted: the table.
      command: that computes it.
      workdirs: of its finished runs, by their names; one for each seed.

    Raises:
      InputError: if a run has no such figure.
    """
    results = {
        run: [wanted.read(workdir) for workdir in of_seeds] for run, of_seeds in workdirs.items()
    }
    environments = [
        environment
        for of_seeds in workdirs.values()
        for workdir in of_seeds
        for environment in read_environments(workdir)[-1:]
    ]
    return {
        "table": wanted.name,
        "on": wanted.setting,
        "command": command,
        "dates": sorted({environment["date"] for environment in environments}),
        "machines": sorted({_machine(environment) for environment in environments}),
        "versions": sorted({_versions(environment) for environment in environments}),
        "figures": [
            [None if cell is None else _figures(cell, results[cell.run]) for cell in row.cells]
            for row in wanted.rows
        ],
    }


def to_markdown(record: Mapping[str, Any]) -> str:
    """Returns a record as Markdown: the figures beside the paper's, and how they were computed.

    Figures are the mean over the seeds, and after ± the standard deviation where there are
    several; the paper's are in brackets.
    """
    wanted = table(record["table"], record["on"])
    number = max(len(f) for row in record["figures"] for f in row if f is not None)
    lines = [
        f"{wanted.caption}; {_SETTING_WORDS[wanted.setting]}, {number} seeds; "
        "in brackets, the paper, on ImageNet.",
        "",
        "```",
        record["command"],
        "```",
        "",
        f"{'; '.join(record['machines'])}; {'; '.join(record['versions'])}; "
        f"{' to '.join(dict.fromkeys((record['dates'][0], record['dates'][-1])))}.",
        "",
        f"| | {' | '.join(wanted.columns)} |",
        f"| --- |{' ---: |' * len(wanted.columns)}",
    ]
    for row, figures in zip(wanted.rows, record["figures"], strict=True):
        cells = map(_show, row.cells, figures)
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_SETTING_WORDS = {
    "features": "CIFAR-100 on the features of a pretrained, frozen EfficientNet-Lite0",
    "cifar100": "CIFAR-100 with a ResNet-20",
    "imagenet": "ImageNet",
}


def insert(text: str, record: Mapping[str, Any]) -> str:
    """Returns a Markdown text with a record in the place of what it had of the same table.

    The place is between two comments; where there is none, it is at the end.
    """
    start, end = markers(record["table"], record["on"])
    section = f"{start}\n{to_markdown(record)}{end}"
    if start not in text:
        return f"{text.rstrip()}\n\n{section}\n"
    before, rest = text.split(start, 1)
    return f"{before}{section}{rest.split(end, 1)[1]}"


def markers(name: str, setting: str) -> tuple[str, str]:
    """Returns the comments around a table's section in a Markdown file."""
    return f"<!-- reproduce {name} --on={setting} -->", f"<!-- end of {name} --on={setting} -->"


def _figures(cell: Cell, results: Sequence[Mapping[str, float | None]]) -> list[float | None]:
    missing = [str(number) for number, figures in enumerate(results) if cell.key not in figures]
    if missing:
        raise InputError(
            f"The run {cell.run} has no figure {cell.key} (seed number {', '.join(missing)}): "
            "its data have too few images for it, or it was run with other values of the config. "
            "Remove its workdir, and run the same command with what the table needs."
        )
    return [figures[cell.key] for figures in results]


def _show(cell: Cell | None, figures: Sequence[float | None] | None) -> str:
    if cell is None or figures is None:
        return ""
    paper = f" ({cell.paper})" if cell.paper else ""
    if cell.key.endswith("/least"):
        return _range(figures) + paper
    mean = statistics.fmean(figures)
    spread = statistics.stdev(figures) if len(figures) > 1 else 0.0
    if cell.key.startswith("codebook/"):
        shown = f"{mean:.0f}" if not spread else f"{mean:.1f} ± {spread:.1f}"
    elif cell.key.startswith("retrieval/"):
        shown = _with_spread(f"{mean:.3f}", f"{spread:.3f}", len(figures))
    else:
        shown = _with_spread(f"{100 * mean:.2f}", f"{100 * spread:.2f}", len(figures))
    return shown + paper


def _range(counts: Sequence[int | None]) -> str:
    """Returns the least and the largest of some numbers; None is larger than all."""
    ordered = sorted(counts, key=lambda count: float("inf") if count is None else count)
    shown = ["none of these" if count is None else f"{count:,}" for count in ordered]
    return " to ".join(dict.fromkeys((shown[0], shown[-1])))


def _with_spread(mean: str, spread: str, number: int) -> str:
    return f"{mean} ± {spread}" if number > 1 else mean


def _machine(environment: Mapping[str, Any]) -> str:
    cores = environment["cores"]
    machine = f"{environment['machine']}, {cores} cores" if cores else environment["machine"]
    if environment["device"] == "cpu":
        return machine
    return f"{environment['devices']} x {environment['device']} ({machine})"


def _versions(environment: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
