"""The paper's tables: which runs, which of their figures, and what the paper has there."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, Optional

from llc_jax.errors import InputError
from llc_jax.evaluation import ood_baselines
from llc_jax.experiment.workdir import RESULTS_FILE, read_results
from llc_jax.options import choose
from llc_jax.reproduce import unknown

SETTINGS = ("features", "cifar100", "imagenet")


class Run(NamedTuple):
    """A run of `python -m llc_jax.main`, without its data, seed and workdir.

    Attributes:
      name: of its workdir.
      config: the name of a config that comes with the package.
      overrides: of the config's values, as on the command line.
      features_of: a run whose features of the images are the data of this one; None where the
        images are.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    features_of: Optional["Run"] = None


class Cell(NamedTuple):
    """One figure.

    Attributes:
      run: the name of the run that measures it.
      key: its name among the run's figures.
      paper: what the paper has in its place, as it prints it; "" for nothing.
    """

    run: str
    key: str
    paper: str


class Row(NamedTuple):
    """One line of a table.

    Attributes:
      label: what is measured.
      cells: a figure for each column; None for none.
    """

    label: str
    cells: tuple[Cell | None, ...]


def _results(workdir: pathlib.Path) -> dict[str, float]:
    return read_results(workdir / RESULTS_FILE)


class Table(NamedTuple):
    """A table of the paper, in one setting.

    Attributes:
      name: "table1", "figure5", ...
      setting: "features", "cifar100" or "imagenet".
      caption: what it shows.
      columns: their headings.
      runs: what is to be run.
      rows: its lines.
      read: returns the figures of a finished run by their keys; by default its `results.json`.
    """

    name: str
    setting: str
    caption: str
    columns: tuple[str, ...]
    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    read: Callable[[pathlib.Path], Mapping[str, float | None]] = _results


def table(name: str, setting: str) -> Table:
    """Returns a table of the paper in a setting.

    Args:
      name: "table1" to "table5", "figure5", "figure6", "nested" or "separability".
      setting: "features": CIFAR-100 on a pretrained, frozen network; "cifar100": on ResNet-20 from
        scratch; "imagenet": the paper's.

    Raises:
      InputError: if there is no such table or setting, or not this one in that one.
    """
    make = choose(name, TABLES, "The table")
    if setting not in SETTINGS:
        raise InputError(f"--on is one of {', '.join(SETTINGS)}, not {setting!r}.")
    return make(setting)


_COLUMNS = ("unique codes", "ED", "MHD")


def _codebooks(setting: str) -> Table:
    run = {
        "features": Run("codebooks", "features_codebooks"),
        "cifar100": Run("codebooks_20", "cifar100_codebooks"),
        "imagenet": Run("codebooks_20", "imagenet_codebooks"),
    }[setting]
    learnt = "llc_20/" if setting == "features" else ""
    published = {
        ("random", "random/"): ("1000", "64.07", "66.91"),
        ("CCA", "cca/"): ("813", "55.17", "57.03"),
        ("SVD", "svd/"): ("969", "65.12", "69.18"),
        ("LLC", learnt): ("1000", "68.82", "74.57"),
    }
    rows = [
        Row(label, _code_cells(run, prefix, paper)) for (label, prefix), paper in published.items()
    ]
    linear = Cell(run.name, "classification/linear", "77")
    rows.append(Row("linear classifier", (None, None, linear)))
    return Table("table1", setting, "Table 1: codebooks of 20 bits", _COLUMNS, (run,), tuple(rows))


def _lengths(setting: str) -> Table:
    published = {
        15: ("990", "67.20", "71.03"),
        20: ("1000", "68.82", "74.57"),
        25: ("1000", "67.93", "74.79"),
        30: ("1000", "67.51", "75.13"),
    }
    if setting == "features":
        runs = dict.fromkeys(published, Run("codebooks", "features_codebooks"))
        prefixes = {bits: f"llc_{bits}/" for bits in published} | {15: ""}
    else:
        config = "imagenet_20bit" if setting == "imagenet" else "cifar100_20bit"
        runs = {k: Run(f"llc_{k}", config, (f"--config.num_bits={k}",)) for k in published}
        prefixes = dict.fromkeys(published, "")
    rows = tuple(
        Row(f"{bits} bits", _code_cells(runs[bits], prefixes[bits], paper))
        for bits, paper in published.items()
    )
    different = tuple(dict.fromkeys(runs.values()))
    return Table("table2", setting, "Table 2: code lengths", _COLUMNS, different, rows)


def _nested(setting: str) -> Table:
    config = {
        "features": "folder_20bit",
        "cifar100": "cifar100_20bit",
        "imagenet": "imagenet_20bit",
    }[setting]
    frozen = ("--config.frozen_backbone=True",) if setting == "features" else ()
    lengths = ("--config.num_bits=30", "--config.prefixes=(20, 25)")
    run = Run("nested", config, (*lengths, *frozen))
    prefixes = {"the first 20 bits": "prefix_20/", "the first 25 bits": "prefix_25/", "30 bits": ""}
    rows = tuple(
        Row(label, _code_cells(run, prefix, ("", "", ""))) for label, prefix in prefixes.items()
    )
    caption = "Section 4.4: codes of 20 and 25 bits within those of 30"
    return Table("nested", setting, caption, _COLUMNS, (run,), rows)


def _code_cells(run: Run, prefix: str, paper: tuple[str, str, str]) -> tuple[Cell, ...]:
    """Returns unique codes, ED and MHD of the codes whose figures have a prefix."""
    figures = (
        f"codebook/{prefix}unique",
        f"classification/{prefix}ed",
        f"classification/{prefix}mhd",
    )
    return tuple(Cell(run.name, *cell) for cell in zip(figures, paper, strict=True))


# Of the paper: MAP@1000 by method and bits, corrected but for the last.
_BITS = (10, 16, 32, 48, 64)
_LLC = (".3086", ".4305", ".5565", ".5749", ".6000")


def _rivals(setting: str) -> Table:
    published = {
        ("HashNet", "hashnet", "cmap"): (".1995", ".2815", ".4300", ".5270", ".5124"),
        ("Greedy Hash", "greedy_hash", "cmap"): (".2860", ".4247", ".5412", ".5720", ".5895"),
        ("LLC", "llc", "cmap"): _LLC,
    }
    caption = "Table 3: corrected MAP@1000, by the number of bits"
    return _retrieval("table3", setting, caption, "imagenet100_alexnet", published, _BITS)


def _reals(setting: str) -> Table:
    published = {
        ("LLC, bits", "llc", "cmap"): ("", ".6458", ".6773"),
        ("real numbers", "real", "cosine/cmap"): (".5041", ".6657", ".7794"),
    }
    caption = "Table 4: corrected MAP@1000 of bits, and of as many real numbers"
    return _retrieval("table4", setting, caption, "imagenet100_resnet50", published, (8, 10, 64))


def _reported(setting: str) -> Table:
    published = {
        ("LLC, as reported", "llc", "rmap"): (".4815", ".5617", ".6587", ".6750", ".6932"),
        ("LLC, corrected", "llc", "cmap"): _LLC,
    }
    caption = "Table 5: MAP@1000 as other papers report it, and corrected"
    return _retrieval("table5", setting, caption, "imagenet100_alexnet", published, _BITS)


# The stages of the configs of retrieval that have all lengths in one run.
_STAGES = {
    "features": {"llc": _BITS, "hashnet": _BITS, "greedy_hash": _BITS, "real": (8, 10, 64)},
    "cifar100": {"llc": (10, 16, 32, 64)}
    | dict.fromkeys(("hashnet", "greedy_hash", "real"), (16, 32, 64)),
}


def _retrieval(
    name: str,
    setting: str,
    caption: str,
    imagenet_config: str,
    published: Mapping[tuple[str, str, str], tuple[str, ...]],
    lengths: tuple[int, ...],
) -> Table:
    """Makes a table of lengths, by (label, method, figure) and what the paper has of each."""
    if setting == "imagenet":
        shared = imagenet_config.replace("imagenet100_", "")
        runs = {
            k: Run(f"{shared}_{k}", imagenet_config, (f"--config.num_bits={k}",)) for k in lengths
        }
    else:
        runs = dict.fromkeys(lengths, Run("retrieval", f"{setting}_retrieval"))
    rows = []
    for (label, method, figure), paper in published.items():
        cells = []
        for bits, value in zip(lengths, paper, strict=True):
            stage = method if setting == "imagenet" else f"{method}_{bits}"
            # The figures of a run's first stage of codes have no prefix.
            prefix = "" if stage in ("llc", "llc_10") else f"{stage}/"
            cell = Cell(runs[bits].name, f"retrieval/{prefix}{figure}@1000", value)
            missing = setting != "imagenet" and bits not in _STAGES[setting][method]
            cells.append(None if missing else cell)
        rows.append(Row(label, tuple(cells)))
    columns = tuple(f"{bits}" for bits in lengths)
    return Table(name, setting, caption, columns, tuple(dict.fromkeys(runs.values())), tuple(rows))


def _separability(setting: str) -> Table:
    run = {
        "features": Run(
            "separability",
            "embeddings_separability",
            features_of=Run("codebooks", "features_codebooks"),
        ),
        "cifar100": Run("separability", "cifar100_separability"),
        "imagenet": Run("separability", "imagenet_separability"),
    }[setting]
    blocks = {"features": (1, 2), "cifar100": (1, 3), "imagenet": (1,)}[setting]
    what = "layer" if setting == "features" else "block"
    rows = [
        Row("linear classifier", (Cell(run.name, "classification/linear", "77"), None, None)),
        Row("codes, phase 2", _decoded(run, "", ("", "74.57", "68.82"))),
        Row(
            "a classifier on the frozen network of the codes",
            (Cell(run.name, "classification/probe/linear", "75.51"), None, None),
        ),
        Row(
            "codes on the frozen network of the classifier",
            _decoded(run, "projection/", ("", "", "21")),
        ),
    ]
    for count in blocks:
        paper = "68" if count == blocks[-1] else ""
        trained = f"the last {what}" if count == 1 else f"the last {count} {what}s"
        cells = _decoded(run, f"last_{count}/", ("", "", paper))
        rows.append(Row(f"the same, and {trained} trained", cells))
    caption = "Section 4.4: what classifiers and codes separate"
    columns = ("linear or soft", "MHD", "ED")
    return Table("separability", setting, caption, columns, (run,), tuple(rows))


def _decoded(run: Run, prefix: str, paper: tuple[str, str, str]) -> tuple[Cell, ...]:
    """Returns soft, MHD and ED of the codes whose figures have a prefix."""
    figures = (f"classification/{prefix}{decoder}" for decoder in ("soft", "mhd", "ed"))
    return tuple(Cell(run.name, *cell) for cell in zip(figures, paper, strict=True))


# Sets of unknown images: how they are called, and the n from which in the paper's figure 5 the
# tuned threshold comes near the codes.
_UNKNOWN = {
    "near/imagenet750": ("ImageNet-750", "3000"),
    "far/places365": ("Places365", ""),
    "near/held_out": ("20 classes held out", "3000 beside 50,000 known"),
}
_HOLD_OUT = ("--config.data.held_out_classes=20", "--config.ood.near=('held_out=unseen',)")


def _unknown(setting: str, *, name: str, representative: bool) -> Table:
    run = {
        "features": Run("unknown", "folder_20bit", ("--config.frozen_backbone=True", *_HOLD_OUT)),
        "cifar100": Run("unknown", "cifar100_20bit", _HOLD_OUT),
        "imagenet": Run("unknown", "imagenet_ood"),
    }[setting]
    sets, most = ("near/held_out",), 2000
    if setting == "imagenet":
        sets, most = ("near/imagenet750", "far/places365"), 10_000
    rows = []
    for of in sets:
        title, least = _UNKNOWN[of]
        for count in ood_baselines.COUNTS:
            if count <= most:
                cells = (Cell(run.name, f"{of}/{kind}@{count}", "") for kind in unknown.KINDS)
                rows.append(Row(f"{title}, n = {count:,}", tuple(cells)))
        matching = Cell(run.name, f"{of}/least", "" if representative else least)
        rows.append(Row(f"{title}, least n as good as the codes", (None, matching, None)))
    number, test = (6, "as in the test set") if representative else (5, "not as in the test set")
    caption = (
        f"Figure {number}: F1 of finding unknown images, of which a validation set has n, {test}"
    )
    columns = ("codes, which need none", "threshold tuned with n", "threshold from 50")
    read = functools.partial(unknown.read_f1, sets=sets, representative=representative)
    return Table(name, setting, caption, columns, (run,), tuple(rows), read)


TABLES = {
    "table1": _codebooks,
    "table2": _lengths,
    "table3": _rivals,
    "table4": _reals,
    "table5": _reported,
    "figure5": functools.partial(_unknown, name="figure5", representative=False),
    "figure6": functools.partial(_unknown, name="figure6", representative=True),
    "nested": _nested,
    "separability": _separability,
}
