"""Search among labelled embeddings: floats, codes without labels, and learnt codes.

  python benchmarks/embeddings.py --source embeddings:FOLDER
  python benchmarks/embeddings.py --source runs/cifar100 --train 5000 --queries 1000 --bits 32

The source is split: FOLDER has `train.npz` and `test.npz`, of `embeddings` and `labels`. Or it is
the run of `llc train cifar100.zip --run runs/cifar100`, whose frozen backbone has encoded photos:
then these features are the embeddings. There are two settings:

  seen     The methods learn from the training embeddings of all classes. The test embeddings
           search a sample of the training embeddings.
  unseen   They learn without a fifth of the classes, which the seed chooses. The test embeddings
           of those classes search their training embeddings.

MAP is the corrected MAP@1000, as the mean over all orders of items that tie (`cmap_tie`). A
shortlist of 4,000 items by bits is scored again in "LLC, then logits", by the query's code
logits, and in "LLC, then floats", by the cosine of the embeddings, which must be stored too.

Seconds to fit a trained method are those of all its stages. Milliseconds are those of finding
the first 1,000 items for 1,000 queries, on all cores: codes by `HammingIndex`, floats by
FAISS's `IndexFlatIP`, or by NumPy where there is no FAISS. Both, and how many embeddings are
encoded in a second, are of the setting "seen", and so is the accuracy of classification.

So that the whole takes about 20 minutes on two cores, it trains for half as many epochs as
`llc_jax.LLC` does; `--epochs 10 10 20` are as many.

FAISS's quantizers are measured where `faiss-cpu` is installed, and MAP against bytes is drawn
where `matplotlib` is. With `--out`, `embeddings.png`, `embeddings.md` and `embeddings.json`
are written there. The last line is JSON. Every number but the times is repeated by the same
seed on the same machine.
"""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator

import numpy as np
from embeddings_methods import (
    Cost,
    Method,
    Pair,
    Rows,
    Search,
    Setting,
    faiss,
    linear_encoders,
    quantizers,
    timed,
)
from embeddings_training import RIVALS, trained_methods
from sklearn.preprocessing import normalize

from llc_jax.data.protocols import hold_out
from llc_jax.data.splits import Splits, open_splits
from llc_jax.data.vectors import VectorSource
from llc_jax.evaluation.retrieval import evaluate_ranker
from llc_jax.experiment.run_features import features_of_run
from llc_jax.experiment.workdir import CONFIG_FILE

BITS = (16, 20, 32, 64, 128, 256)
# Queries that are timed.
_TIMED = 250

# Titles of the table of accuracies, by the names of `evaluation.classification`.
_ACCURACIES = {"class_logits": "class logits", "soft": "soft", "mhd": "MHD", "ed": "ED"}

# In the picture, by how names begin: colour and style of lines.
_LOOKS = {
    "LLC phase 1": ("tab:orange", ":"),
    "LLC": ("tab:red", "-"),
    "floats": ("black", "-"),
    "classifier": ("tab:purple", "-"),
    "FAISS": ("tab:blue", "-"),
    **{name: ("tab:green", "-") for name, _ in RIVALS.values()},
    "": ("tab:gray", "-"),
}
# Of items that are not larger, the series are labelled on their left.
_SMALL_ITEM = 8


@dataclasses.dataclass
class Result:
    """What is measured of a method.

    Attributes:
      method: in words.
      bits: of a code; None where they cannot be chosen.
      num_bytes: of a stored item.
      fit_seconds: with all that it is trained on before.
      encoded_per_second: embeddings; None where they are not encoded.
      accuracy: of the test embeddings, by name; {} where the method does not classify.
      milliseconds: of the search for 1,000 queries.
      figures: of each setting, `map`, and its bounds over the orders of ties.
    """

    method: str
    bits: int | None
    num_bytes: int
    fit_seconds: float
    encoded_per_second: float | None
    accuracy: dict[str, float]
    milliseconds: float | None = None
    figures: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """The method, and how many bits it has."""
        return self.method if self.bits is None else f"{self.method}, {self.bits} bits"

    def map(self, setting: str) -> float:
        """Returns MAP in a setting."""
        return self.figures[setting]["map"]


def read_settings(options: argparse.Namespace) -> Iterator[tuple[str, Setting]]:
    """Yields the settings by name, each as it is read into memory.

    Queries and databases are samples in a random order: nothing is found first for its place.
    """
    if (pathlib.Path(options.source) / CONFIG_FILE).exists():
        splits = features_of_run(options.source)
    else:
        splits = open_splits(options.source, "", holdout=options.holdout, seed=options.seed)
    yield "seen", _setting(splits, splits, options)
    count = max(2, round(len(splits.train.class_names) / 5))
    splits = hold_out(splits, count, options.seed)
    yield "unseen", _setting(splits, splits.unseen, options)


def _setting(trained: Splits, searched: Splits, options: argparse.Namespace) -> Setting:
    """Reads what is learnt from, and the queries and the database of the classes searched."""
    rng = np.random.default_rng(options.seed)
    return Setting(
        train=_sample(trained.train, options.train, rng),
        class_names=trained.train.class_names,
        queries=_sample(searched.evaluation, options.queries, rng),
        database=_sample(searched.train, options.database, rng),
        has_trained_classes=searched is trained,
    )


def _sample(source: VectorSource, most: int | None, rng: np.random.Generator) -> Rows:
    """Returns embeddings in a random order, at most so many."""
    rows = rng.permutation(len(source))[:most]
    return Rows(source.gather(rows), source.labels[rows])


def all_methods(setting: Setting, options: argparse.Namespace) -> Iterator[Method]:
    """Yields the methods, each as soon as it is fitted."""
    unit = Pair(normalize(setting.queries.vectors), normalize(setting.database.vectors))
    search = Search(setting.database.labels, options.cutoff, options.oversample)
    yield search.by_dots("floats, cosine", unit, Cost())
    yield from linear_encoders(setting, search, options)
    if faiss is not None:
        yield from quantizers(normalize(setting.train.vectors), unit, search, options)
    yield from trained_methods(setting, unit, search, options)


def measure(options: argparse.Namespace) -> list[Result]:
    """Measures all methods in all settings, and says so, a line each."""
    results, start = {}, time.perf_counter()
    for name, setting in read_settings(options):
        rows = np.arange(min(_TIMED, len(setting.queries.labels)))
        for method in all_methods(setting, options):
            result = results.setdefault((method.name, method.bits), _result(method, setting))
            result.figures[name] = _figures(method, setting, options.cutoff)
            if result.milliseconds is None:
                method.search(rows[:2])  # Compiles.
                result.milliseconds = 1e6 * timed(method.search, rows)[1] / len(rows)
            _say(
                f"{time.perf_counter() - start:6.0f} s  {name:<6}  {result.title:<48}"
                f"MAP {result.figures[name]['map']:.4f}"
            )
    order = list(dict.fromkeys(result.method for result in results.values()))
    return sorted(results.values(), key=lambda result: order.index(result.method))


def _result(method: Method, setting: Setting) -> Result:
    """Returns the result of a method, without what is measured of its search."""
    cost, count = method.cost, len(setting.database.labels)
    return Result(
        method=method.name,
        bits=method.bits,
        num_bytes=method.num_bytes,
        fit_seconds=cost.fit,
        encoded_per_second=count / cost.encode if cost.encode else None,
        accuracy=dict(method.accuracy),
    )


def _figures(method: Method, setting: Setting, cutoff: int) -> dict[str, float]:
    """Returns MAP, and its bounds over the orders of ties."""
    labels = setting.queries.labels
    no_exclusions = np.full(len(labels), -1)
    figures = evaluate_ranker(
        method.ranker, method.queries, labels, no_exclusions, (cutoff,)
    ).figures
    names = {"map": "cmap_tie", "map_min": "cmap_min", "map_max": "cmap_max"}
    return {name: figures[f"{figure}@{cutoff}"] for name, figure in names.items()}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def tables(results: Iterable[Result], cutoff: int, markdown: bool) -> str:
    """Returns a table of retrieval and one of accuracies."""
    titles = (f"MAP@{cutoff} {setting}" for setting in ("seen", "unseen"))
    retrieval = [
        ("method", "bits", "bytes", *titles, "fit, s", "encoded/s", "ms/1,000 queries"),
        *(
            (
                result.method,
                _number(result.bits, ""),
                _number(result.num_bytes, ","),
                *(f"{result.map(setting):.4f}" for setting in ("seen", "unseen")),
                f"{result.fit_seconds:.1f}",
                _number(result.encoded_per_second, ",.0f"),
                _number(result.milliseconds, ",.0f"),
            )
            for result in results
        ),
    ]
    accuracy = [
        ("accuracy, seen classes", "bits", *_ACCURACIES.values(), "unique codes"),
        *(
            (
                result.method.partition(",")[0],
                _number(result.bits, ""),
                *(_number(result.accuracy.get(name), ".2%") for name in _ACCURACIES),
                _number(result.accuracy.get("unique"), ""),
            )
            for result in results
            if result.accuracy
        ),
    ]
    return "\n".join(_table(rows, markdown) for rows in (retrieval, accuracy))


def _table(rows: list[tuple[str, ...]], markdown: bool) -> str:
    """Returns rows, of which the first has the titles, as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    separator = " | " if markdown else "  "
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        line = separator.join(cells)
        lines.append(f"| {line} |" if markdown else line)
    if markdown:
        lines.insert(1, f"| --- |{' ---: |' * (len(widths) - 1)}")
    return "\n".join(lines) + "\n"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def in_words(results: list[Result]) -> str:
    """Returns who wins in each setting: of all methods, and of those that store codes alone."""
    sentences = []
    floats, *others = results
    most = max(result.num_bytes for result in others if result.method == "LLC")
    small = [result for result in others if result.num_bytes <= most]
    for setting in ("seen", "unseen"):

        def value(result: Result, setting: str = setting) -> float:
            return result.map(setting)

        best, best_small = max(others, key=value), max(small, key=value)
        lead = value(floats) - value(best)
        if lead > -5e-5:  # Less is not shown.
            sentence = f"floats by cosine win by {lead:.4f}; closest: {best.title}"
        else:
            sentence = f"{best.title}: wins; floats by cosine are {-lead:.4f} behind"
        sentences.append(f"Of {setting} classes, {sentence} (MAP {value(best):.4f}).")
        sentences.append(
            f"Of {setting} classes, the best with at most {most} byte{'s' * (most > 1)} an item: "
            f"{best_small.title} (MAP {value(best_small):.4f}; floats {value(floats):.4f})."
        )
    return "\n".join(sentences)


def draw(results: list[Result], cutoff: int, path: pathlib.Path) -> None:
    """Draws MAP against bytes, seen and unseen side by side; needs matplotlib."""
    from matplotlib.figure import Figure

    series = {}
    for result in sorted(results, key=lambda result: result.num_bytes):
        series.setdefault(result.method.partition(" (")[0], []).append(result)
    top = 1.1 * max(result.map(setting) for result in results for setting in result.figures)
    figure = Figure(figsize=(16, 9), layout="constrained")
    for axes, setting in zip(figure.subplots(1, 2, sharey=True), ("seen", "unseen"), strict=True):
        axes.set_ylim(-0.02 * top, top)
        labels = {"left": [], "right": []}
        for name, members in series.items():
            sizes = [result.num_bytes for result in members]
            values = [result.map(setting) for result in members]
            colour, style = next(look for start, look in _LOOKS.items() if name.startswith(start))
            axes.plot(sizes, values, style, color=colour, marker="o", markersize=4)
            side, end = ("left", 0) if sizes[0] <= _SMALL_ITEM else ("right", -1)
            labels[side].append((sizes[end], values[end], name, colour))
        for side, of_side in labels.items():
            _label(axes, side, of_side)
        axes.set_xscale("log", base=2)
        axes.set_xlim(2.0**-10.5, 2.0**23)
        axes.set_xticks([4**power for power in range(7)], [4**power for power in range(7)])
        axes.set_xlabel("bytes of a stored item")
        axes.set_title(f"{setting} classes")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(f"MAP@{cutoff}")
    figure.savefig(path, dpi=100)


def _label(axes, side: str, labels: list[tuple[float, float, str, str]]) -> None:
    """Names series beside their ends, one above the other where they are close.

    Args:
      axes: of matplotlib.
      side: "left" or "right".
      labels: where each series ends, x and y; its name and its colour.
    """
    labels, gap = sorted(labels, key=lambda label: label[1]), 0.026 * axes.get_ylim()[1]
    heights = np.array([label[1] for label in labels])
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    x, alignment = (0.6, "right") if side == "left" else (2.0**13.5, "left")
    for height, (end, value, name, colour) in zip(heights, labels, strict=True):
        axes.plot([x, end], [height, value], color=colour, linewidth=0.4)
        axes.text(x, height, f" {name} ", color=colour, ha=alignment, va="center", fontsize=9)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    parser.add_argument("--holdout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bits", type=int, nargs="+", default=BITS)
    parser.add_argument("--rivals", nargs="*", default=tuple(RIVALS), choices=tuple(RIVALS))
    parser.add_argument("--rival-bits", type=int, nargs="+", default=(16, 32))
    parser.add_argument("--train", type=int, help="training embeddings, at most")
    parser.add_argument("--queries", type=int, default=10_000, help="at most")
    parser.add_argument("--database", type=int, default=20_000, help="embeddings, at most")
    parser.add_argument("--epochs", type=int, nargs=3, default=(5, 5, 10))
    parser.add_argument("--width", type=int, default=512, help="of the hidden layers")
    parser.add_argument("--depth", type=int, default=3, help="the number of hidden layers")
    parser.add_argument("--cutoff", type=int, default=1000)
    parser.add_argument("--oversample", type=int, default=4)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args(arguments)


def main() -> None:
    """Measures, and prints tables, sentences and a line of JSON."""
    options = parse()
    if faiss is None:
        _say("FAISS's quantizers are left out: pip install faiss-cpu.")
    results = measure(options)
    text = tables(results, options.cutoff, options.markdown)
    sentences = in_words(results)
    print(f"{text}\n{sentences}")
    shown = {name: value for name, value in vars(options).items() if name != "out"}
    report = json.dumps({"options": shown, "results": list(map(dataclasses.asdict, results))})
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        markdown = tables(results, options.cutoff, markdown=True)
        (options.out / "embeddings.md").write_text(f"{markdown}\n{sentences}\n")
        (options.out / "embeddings.json").write_text(f"{report}\n")
        if importlib.util.find_spec("matplotlib"):
            draw(results, options.cutoff, options.out / "embeddings.png")
        else:
            _say("The picture is left out: pip install matplotlib.")
    print(report)


if __name__ == "__main__":
    main()
