"""How well each score tells unknown images, as tables."""

import csv
import io
import pathlib
from collections.abc import Iterable, Mapping

import rich.table

from llc_jax.files import atomic_write, make_directory

# The columns of OpenOOD's tables, and the figures of `ood.measure` in them.
_COLUMNS = {"FPR@95": "fpr95", "AUROC": "auroc", "AUPR_IN": "aupr_in", "AUPR_OUT": "aupr_out"}
# FPR is given as one number if its bounds over the order of ties are as near.
_ONE_NUMBER = 5e-4


def write_ood_tables(
    directory: pathlib.Path,
    measured: Mapping[str, Mapping[str, Mapping[str, float]]],
    accuracy: float,
) -> None:
    """Writes a table of each score, `<score>.csv`, in OpenOOD's form; its numbers are per cent.

    A row is a set of unknown images, or `nearood` or `farood`: the means over the sets above it.
    AUPR is the average precision; OpenOOD joins the points of the curve by lines instead.

    Args:
      directory: of the tables; made if missing.
      measured: by score and set, as `Detected.measure` returns it.
      accuracy: of the classification of the known images; it is in every row.
    """
    make_directory(directory)
    for score, rows in measured.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["dataset", *_COLUMNS, "ACC"])
        for row, found in rows.items():
            group, _, name = row.partition("/")
            numbers = (*(found[figure] for figure in _COLUMNS.values()), accuracy)
            writer.writerow([name or f"{group}ood", *(f"{100 * n:.2f}" for n in numbers)])
        with atomic_write(directory / f"{score}.csv") as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


def ood_table(results: Mapping[str, float]) -> rich.table.Table | None:
    """Draws the means of each group of sets for every score of `results.json`; None if none is."""
    rows: dict[str, dict[str, str]] = {}
    for key in results:
        kind, *stage, group, score, name = key.split("/") if key.count("/") >= 3 else [""] * 4
        if kind == "ood" and group in ("near", "far") and name == "auroc":
            title = ": ".join([*stage, score.replace("_", " ")])
            rows.setdefault(title, {})[group] = key.removesuffix("auroc")
    groups = [group for group in ("near", "far") if any(group in row for row in rows.values())]
    if not groups:
        return None
    table = rich.table.Table(caption="per cent; FPR of known images where TPR of unknown is 95%")
    table.add_column("unknown images by", no_wrap=True)
    for group in groups:
        for title in ("AUROC", "FPR95"):
            table.add_column(f"{group}\n{title}", justify="right", no_wrap=True)
    for title, row in rows.items():
        cells = (cell for group in groups for cell in _cells(results, row.get(group, "")))
        table.add_row(title, *cells)
    return table


def _cells(results: Mapping[str, float], prefix: str) -> Iterable[str]:
    """Returns AUROC and FPR in per cent; blanks where they are not measured."""
    if not prefix:
        return ("", "")
    least, most = results[f"{prefix}fpr95_min"], results[f"{prefix}fpr95"]
    return f"{100 * results[f'{prefix}auroc']:.2f}", fpr_range(least, most)


def fpr_range(least: float, most: float) -> str:
    """Returns FPR in per cent: its bounds over the order of ties, or one number if near."""
    if most - least < _ONE_NUMBER:
        return f"{100 * most:.1f}"
    return f"{100 * least:.1f}-{100 * most:.1f}"
