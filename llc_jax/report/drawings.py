"""The figures of a report as files, for papers and slides: drawn by matplotlib, as PNG and SVG."""

import base64
import importlib.util
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from llc_jax.files import atomic_write, make_directory
from llc_jax.report import mosaics

# The colours of the page, where it is light.
_PLUS, _MINUS, _QUIET, _ACCENT = "#6a3fa0", "#ecdfbf", "#6a655c", "#6a3fa0"
_NEAR_TO_FAR, _NONE_TO_ALL = ("#4a1f80", "#b08bcf", "#f6f1e4"), ("#f7f5f0", "#c2410c")
_SERIES = ("#6a3fa0", "#c2570c", "#0f766e", "#1d4ed8", "#be185d", "#5c6b11")
# Classes whose names fit beside the rows, classes whose pairs are drawn, and letters of a name.
_NAMED, _PAIRED, _LETTERS = 150, 4000, 28
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": f"cycler('color', {list(_SERIES)})",
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "llc_jax",
    # The name of a class may have dollar signs.
    "text.parse_math": False,
}


def is_available() -> bool:
    """Whether figures can be drawn: matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_figures(directory: pathlib.Path, figures: Mapping[str, Any]) -> None:
    """Draws every figure of a report, and writes it as PNG and as SVG.

    Args:
      directory: of the files; made if missing.
      figures: see `figures.make_figures`.

    Raises:
      InputError, WriteFailed: if they cannot be written.
    """
    import matplotlib

    make_directory(directory)
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Letters that the font lacks, and names that leave no room for the rest.
        warnings.filterwarnings("ignore", category=UserWarning)
        for name, figure in _drawn(figures):
            file = re.sub(r"\W+", "_", name)
            for kind in ("png", "svg"):
                metadata = {"Date": None} if kind == "svg" else None
                with atomic_write(directory / f"{file}.{kind}") as temporary:
                    figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)


def _drawn(figures: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the name and the drawing of each figure that there is."""
    names = [_one_line(name) for name in figures["names"]]
    if figures["bits"]:
        signs = _signs(figures)
        yield "codebook", _codebook(signs, names, figures["order"], figures["links"])
        if 2 <= len(signs) <= _PAIRED:
            yield from _distances(signs, figures)
    if figures["confusions"]["pairs"] and len(names) <= _PAIRED:
        yield "confusions", _confusions(figures["confusions"], figures["order"])
    for stage in figures["training"]:
        yield f"training_{stage['stage']}", _training(stage)
    for stage in dict.fromkeys(curve["stage"] for curve in figures["retrieval"]):
        yield f"retrieval_{stage}", _retrieval(stage, figures["retrieval"])
    if figures["decoders"]:
        yield "decoders", _decoders(figures["decoders"])
    for name in dict.fromkeys(curve["set"] for curve in figures["unknown"]):
        yield f"unknown_{name}", _unknown([c for c in figures["unknown"] if c["set"] == name])
    if figures["examples"] is not None:
        yield from _examples(figures["examples"])


def _signs(figures: Mapping[str, Any]) -> np.ndarray:
    """Returns the codes of the classes, float32[L, k] of 1 and -1."""
    letters = np.frombuffer(figures["codes"].encode(), np.uint8).reshape(-1, figures["bits"])
    return np.where(letters == ord("1"), 1, -1).astype(np.float32)


def _codebook(
    signs: np.ndarray, names: Sequence[str], order: Sequence[int], links: Sequence[Sequence[float]]
) -> Any:
    """Draws class codes as cells beside their dendrogram: the paper's figure 3."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap

    length, num_bits = signs.shape
    width = 3 + 0.16 * min(num_bits, 64) + (1.5 if length <= _NAMED else 0)
    height = 1.2 + (0.14 if length <= _NAMED else 0.012) * length
    figure = _figure(width, min(height, 30))
    tree, cells = figure.subplots(1, 2, width_ratios=[2, 0.16 * min(num_bits, 64) + 0.5])
    cells.imshow(
        signs[list(order)],
        cmap=ListedColormap([_MINUS, _PLUS]),
        vmin=-1,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
    )
    cells.set_xlabel("bit; purple is +1")
    cells.xaxis.get_major_locator().set_params(integer=True)
    if length <= _NAMED:
        cells.yaxis.tick_right()
        cells.set_yticks(range(length), [names[index] for index in order], fontsize=7)
    else:
        cells.set_yticks([])
    cells.tick_params(length=0)
    places = {index: (0.0, row) for row, index in enumerate(order)}
    lines = []
    for number, (a, b, distance) in enumerate(links, start=length):
        (ax, ay), (bx, by) = places[a], places[b]
        lines.append([(ax, ay), (distance, ay), (distance, by), (bx, by)])
        places[number] = (distance, (ay + by) / 2)
    tree.add_collection(LineCollection(lines, colors=_QUIET, linewidths=0.8))
    tree.set_xlim(max([1, *(link[2] for link in links)]) * 1.02, 0)
    tree.set_ylim(length - 0.5, -0.5)
    tree.set_yticks([])
    tree.spines["left"].set_visible(False)
    tree.set_xlabel("bits between clusters, on average")
    return figure


def _distances(signs: np.ndarray, figures: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields what is drawn of the pairs of classes."""
    length, num_bits = signs.shape
    distances = np.rint((num_bits - signs @ signs.T) / 2).astype(int)
    order = np.array(figures["order"])
    in_order = distances[np.ix_(order, order)]
    yield "distances", _heat_map(in_order, _NEAR_TO_FAR, "bits between two class codes")
    upper = np.triu_indices(length, 1)
    counts = np.bincount(distances[upper])
    yield "pairs_at_distances", _bars(counts, "bits between two class codes", "pairs of classes")
    wrong = [pair for pair in figures["confusions"]["pairs"] if pair[0] != pair[1]]
    wrong = [pair for pair in wrong if max(pair[:2]) < length]
    if wrong:
        of_class, taken, images = np.array(wrong).T
        counts = np.bincount(distances[of_class, taken], images, minlength=len(counts))
        yield (
            "wrong_at_distances",
            _bars(counts, "bits between the class and the one taken for it", "images"),
        )
    representations = figures["representations"]
    if representations is not None:
        products = np.zeros((length, length))
        content = base64.b64decode(representations["products"])
        products[np.triu_indices(length)] = np.frombuffer(content, np.uint8) / 255
        products = np.maximum(products, products.T)
        low, high = representations["ends"]
        products = low + (high - low) * products[np.ix_(order, order)]
        yield (
            "representations",
            _heat_map(products, _NEAR_TO_FAR[::-1], "inner product of real representations"),
        )


def _heat_map(values: np.ndarray, colours: Sequence[str], label: str, most: Any = None) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    figure = _figure(6, 5)
    axes = figure.subplots()
    shades = LinearSegmentedColormap.from_list("", colours)
    image = axes.imshow(values, cmap=shades, vmax=most)
    figure.colorbar(image, label=label)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("classes in the order of the dendrogram")
    return figure


def _bars(counts: np.ndarray, x: str, y: str) -> Any:
    figure = _figure(5, 3)
    axes = figure.subplots()
    axes.bar(np.arange(len(counts)), counts, color=_ACCENT, width=0.92)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure


def _confusions(confusions: Mapping[str, Any], order: Sequence[int]) -> Any:
    totals = np.array(confusions["totals"])
    row = np.arange(len(totals))
    row[list(order)] = np.arange(len(order))
    shares = np.zeros((len(totals), len(totals)))
    true, taken, images = np.array(confusions["pairs"]).T
    shares[row[true], row[taken]] = images / totals[true]
    # Small shares are drawn stronger than they are.
    figure = _heat_map(np.sqrt(shares), _NONE_TO_ALL, "square root of the share of a class", 1)
    figure.axes[0].set_xlabel(f"taken for, stage {confusions['stage']}")
    figure.axes[0].set_ylabel("class")
    return figure


def _training(stage: Mapping[str, Any]) -> Any:
    metrics = stage["metrics"]
    rows = -(-len(metrics) // 3)
    figure = _figure(9, 2.3 * rows)
    plots = figure.subplots(rows, 3, squeeze=False).ravel()
    for axes, (name, values) in zip(plots, metrics.items(), strict=False):
        # None, of what was no number, is left out.
        axes.plot(stage["epochs"], np.array(values, float), color=_ACCENT)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_xlabel("epoch")
    for axes in plots[len(metrics) :]:
        axes.set_visible(False)
    return figure


def _retrieval(stage: str, curves: Sequence[Mapping[str, Any]]) -> Any:
    figure = _figure(6, 4)
    axes = figure.subplots()
    for curve in curves:
        if curve["stage"] == stage:
            title = f"{curve['title']}, by radius" if curve["by"] == "radius" else curve["title"]
            axes.plot(
                np.array(curve["recall"], float), np.array(curve["precision"], float), label=title
            )
    return _finished(figure, "recall", "precision")


def _decoders(decoders: Sequence[Mapping[str, Any]]) -> Any:
    figure = _figure(6, 4)
    axes = figure.subplots()
    for decoder in decoders:
        axes.plot(decoder["rate"], 100 * decoder["accuracy"], "o", label=decoder["name"])
    axes.set_xscale("log")
    return _finished(figure, "codes per second", "accuracy in %")


def _unknown(curves: Sequence[Mapping[str, Any]]) -> Any:
    """Draws the ROC curves of all scores of a set, and a histogram of each score."""
    figure = _figure(12, 3 * -(-(len(curves) + 1) // 3))
    plots = figure.subplots(-(-(len(curves) + 1) // 3), 3, squeeze=False).ravel()
    for curve in curves:
        roc, share = curve["roc"], curve["figures"]["auroc"]
        label = f"{curve['score'].replace('_', ' ')}, AUROC {share:.1%}"
        plots[0].plot(roc["known"], roc["unknown"], label=label)
    plots[0].set_xlabel("known images called unknown")
    plots[0].set_ylabel("unknown images found")
    plots[0].legend(frameon=False, fontsize=7)
    for axes, curve in zip(plots[1:], curves, strict=False):
        histogram = curve["histogram"]
        for name, label in (("known", "known"), ("unknown", curve["set"])):
            axes.plot(histogram["at"], histogram[name], label=label)
        axes.set_xlabel(curve["score"].replace("_", " "))
        axes.set_ylabel("share of images")
        axes.legend(frameon=False, fontsize=7)
    for axes in plots[len(curves) + 1 :]:
        axes.set_visible(False)
    return figure


def _examples(examples: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    contents = (base64.b64decode(image[3]) for image in examples["images"])
    decoded = [cv2.imdecode(np.frombuffer(c, np.uint8), cv2.IMREAD_COLOR) for c in contents]
    pictures = [image[..., ::-1] for image in decoded]
    for name, mosaic in (
        ("bits", mosaics.hyperplanes(examples, pictures)),
        ("found", mosaics.found(examples, pictures)),
    ):
        height, width = mosaic.pixels.shape[:2]
        figure = _figure((width + 120) / 100, height / 100)
        axes = figure.subplots()
        axes.imshow(mosaic.pixels, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks(mosaic.rows, [_one_line(label) for label in mosaic.labels], fontsize=8)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        yield name, figure


def _finished(figure: Any, x: str, y: str) -> Any:
    (axes,) = figure.axes
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, fontsize=7)
    return figure


def _figure(width: float, height: float) -> Any:
    """Returns an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _one_line(name: str) -> str:
    """Returns a name as a label: in letters of UTF-8, on one line, cut where it is long."""
    line = " ".join(name.encode("utf-8", "replace").decode().split())
    return line if len(line) <= _LETTERS else f"{line[: _LETTERS - 1]}\u2026"
