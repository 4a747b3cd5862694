"""What the report of a run shows: facts, tables and the data of its figures, as plain values."""

import collections
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import rich.table

from llc_jax.codes.codebook import Codebook
from llc_jax.report.figures import class_accuracies, make_figures
from llc_jax.report.record import RunRecord
from llc_jax.report.table import remarks, results_tables

# The most lines of the tables of classes, and of pairs of them.
_CLASSES, _PAIRS = 2000, 300
# The most bits of which a table shows every one.
_SHOWN_BITS = 64
# The most numbers that the distances between some classes and all of them take at a time.
_BLOCK = 50_000_000


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      columns: the titles, each with whether its cells are numbers.
      rows: one text a column.
      caption: what is said below it, "" for nothing.
    """

    columns: list[tuple[str, bool]]
    rows: list[list[str]]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Page:
    """The content of a report.

    Attributes:
      name: of the run.
      is_finished: whether the run is.
      facts: titles and values.
      results: the tables that the console shows at the end of a run.
      remarks: what there is to say of the results, in lines.
      unknown: how scores tell unknown images; None where that was not measured.
      pairs: the classes that are confused most; None where that was not measured.
      classes: one line a class; None where the run has neither codes nor confusions.
      figures: see `figures.make_figures`.
      config: the config as indented JSON.
    """

    name: str
    is_finished: bool
    facts: list[tuple[str, str]]
    results: list[Table]
    remarks: list[str]
    unknown: Table | None
    pairs: Table | None
    classes: Table | None
    figures: Mapping[str, Any]
    config: str


def make_page(record: RunRecord) -> Page:
    """Returns what the report of a run shows."""
    figures = make_figures(record)
    stages = [stage.name for stage in record.stages]
    drawn = results_tables(record.results, stages, record.unprefixed_stage)
    return Page(
        name=record.name,
        is_finished=record.is_finished,
        facts=_facts(record),
        results=[table for table in map(_as_text, drawn) if table.rows],
        remarks=remarks(record.results),
        unknown=_unknown(figures),
        pairs=_pairs(record.codebook, figures),
        classes=_classes(record, figures),
        figures=figures,
        config=json.dumps(record.config, indent=2),
    )


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    config, codebook = record.config, record.codebook
    facts = []
    if codebook is not None:
        facts += [
            ("bits of a code", str(codebook.num_bits)),
            ("classes", str(codebook.num_classes)),
            ("different class codes", str(codebook.num_unique)),
            ("least distance", f"{codebook.min_distance} bits"),
            ("codebook", codebook.source),
        ]
    if config["prefixes"]:
        facts.append(("codes of fewer bits", ", ".join(map(str, config["prefixes"]))))
    if record.images:
        facts.append(("images of the data", f"{sum(record.images.values()):,}"))
    stages = (f"{name} ({stage['epochs']} epochs)" for name, stage in config["stages"].items())
    return [
        *facts,
        ("data", config["data"]["source"]),
        ("backbone", config["model"]["name"]),
        ("stages", ", ".join(stages)),
        ("seed", str(config["seed"])),
    ]


def _as_text(table: rich.table.Table) -> Table:
    """Returns the text of a table that is drawn for the console."""
    columns = [
        (" ".join(str(column.header).split()), column.justify == "right")
        for column in table.columns
    ]
    cells = zip(*(column.cells for column in table.columns), strict=True)
    return Table(columns, [list(map(str, row)) for row in cells], str(table.caption or ""))


def _unknown(figures: Mapping[str, Any]) -> Table | None:
    """Returns how each score tells each set of unknown images from the known ones."""
    if not figures["unknown"]:
        return None
    columns = [("unknown images", False), ("score", False), ("AUROC", True)]
    columns += [("FPR at 95% TPR", True), ("AUPR of unknown", True), ("AUPR of known", True)]
    rows = []
    for curve in figures["unknown"]:
        found = curve["figures"]
        least, most = (f"{100 * found[f'fpr95_{end}']:.1f}" for end in ("min", "max"))
        fpr = f"{most}%" if least == most else f"{least} to {most}%"
        shares = [f"{found[name]:.1%}" for name in ("auroc", "aupr_out", "aupr_in")]
        rows.append([curve["set"], curve["score"].replace("_", " "), shares[0], fpr, *shares[1:]])
    caption = "FPR at 95% TPR: over the orders of images of the same score."
    return Table(columns, rows, caption)


def _pairs(codebook: Codebook | None, figures: Mapping[str, Any]) -> Table | None:
    """Returns the pairs of classes that are confused most, with the distance of their codes."""
    confusions, names = figures["confusions"], figures["names"]
    if not confusions["pairs"]:
        return None
    bits = None if codebook is None else codebook.latent >= 0
    wrong = [pair for pair in confusions["pairs"] if pair[0] != pair[1]]
    columns = [("class", False), ("taken for", False), ("images", True), ("share", True)]
    rows = []
    for true, taken, images in wrong[:_PAIRS]:
        share = images / confusions["totals"][true]
        row = [names[true], names[taken], str(images), f"{share:.1%}"]
        if bits is not None:
            coded = max(true, taken) < len(bits)
            row.append(str(np.count_nonzero(bits[true] != bits[taken])) if coded else "")
        rows.append(row)
    if bits is not None:
        columns.append(("bits between their codes", True))
    rest = len(wrong) - len(rows)
    more = f"; {rest:,} more pairs in its confusion.csv" if rest > 0 else ""
    return Table(columns, rows, f"Evaluation images of the stage {confusions['stage']}{more}.")


def _classes(record: RunRecord, figures: Mapping[str, Any]) -> Table | None:
    """Returns a line for each class: those that are recognised least come first."""
    names, codebook, confusions = figures["names"], record.codebook, figures["confusions"]
    if not names:
        return None
    columns: dict[str, list[str]] = {"class": names}
    accuracies = class_accuracies(confusions)
    if accuracies:
        columns["evaluation images"] = [str(total) for total in confusions["totals"]]
        columns["accuracy"] = ["" if share is None else f"{share:.1%}" for share in accuracies]
        columns["most often taken for"] = _most_often_taken_for(figures)
    if record.images:
        columns["images of the data"] = [str(record.images.get(name, "")) for name in names]
    if codebook is not None:
        columns |= _code_columns(codebook, figures["codes"], len(names))
    order = sorted(
        range(len(names)), key=lambda c: accuracies[c] if accuracies and accuracies[c] else 0
    )
    texts = {"class", "most often taken for", "nearest class", "code"}
    rows = [[column[index] for column in columns.values()] for index in order[:_CLASSES]]
    rest = len(order) - len(rows)
    caption = f"{rest:,} more classes are left out." if rest else ""
    return Table([(title, title not in texts) for title in columns], rows, caption)


def _code_columns(codebook: Codebook, letters: str, num_classes: int) -> dict[str, list[str]]:
    """Returns the nearest other class of each and its distance, and the codes where short."""
    length, num_bits = codebook.num_classes, codebook.num_bits
    blank = [""] * (num_classes - length)  # Of classes without a code.
    columns = {}
    if length > 1:
        nearest, distances = _nearest_others(codebook)
        columns["nearest class"] = [codebook.class_names[other] for other in nearest] + blank
        columns["bits to it"] = [*map(str, distances.tolist()), *blank]
    if num_bits <= _SHOWN_BITS:
        starts = range(0, length * num_bits, num_bits)
        columns["code"] = [letters[start : start + num_bits] for start in starts] + blank
    return columns


def _nearest_others(codebook: Codebook) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest other class of each class, and its distance in bits, int64[L] each."""
    signs = np.where(codebook.latent >= 0, 1.0, -1.0).astype(np.float32)
    length, num_bits = signs.shape
    size = max(1, _BLOCK // length)
    nearest, distances = [], []
    for start in range(0, length, size):
        products = signs[start : start + size] @ signs.T
        rows = np.arange(len(products))
        products[rows, start + rows] = -np.inf
        nearest.append(products.argmax(axis=1))
        distances.append((num_bits - products[rows, nearest[-1]]) / 2)
    return np.concatenate(nearest), np.concatenate(distances).astype(int)


def _most_often_taken_for(figures: Mapping[str, Any]) -> list[str]:
    """Returns for each class the other one that most of its images were taken for."""
    found: dict[int, tuple[int, int]] = collections.defaultdict(lambda: (0, -1))
    for true, taken, images in figures["confusions"]["pairs"]:
        if true != taken and images > found[true][0]:
            found[true] = (images, taken)
    names = figures["names"]
    return [names[found[c][1]] if c in found else "" for c in range(len(names))]
