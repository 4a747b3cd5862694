"""How well a run tells images of unknown classes from those of its own, by each score.

  python benchmarks/unknown_images.py runs/cifar100 --near cifar10=cifar10_test.zip --synthetic
  python benchmarks/unknown_images.py runs/cifar100 --near cifar10=cifar10_test.zip --reencode 32

The run has a linear stage and codes, as those of `llc train` do. Known images are those that it
was evaluated on; the sets of unknown ones are those of its config, or those of `--near` and
`--far`, NAME=DATA, where one is given. With `--synthetic` there are three more far sets, made of
the known images: `noise`, `blur` and `texture`. The first table has every score: of the codes, of
the linear classifier, and of its features. AUROC counts ties as half; the bounds of FPR at 95% TPR
are those of the best and the worst order of ties.

With `--reencode SIDE` there is one more set, the known images themselves, cropped to SIDE pixels
and coded as JPEG of quality 75: a score that does not see how images are coded has an AUROC of 50%
there. One more table has all sets, and the known images, coded alike. `--images N` takes N random
images of each set.

The last table is appendix E of the paper: F1 of the codes' rule without unknown images, of a
threshold of the linear classifier's maximum softmax probability that is tuned with n of them,
and of the threshold of 50 of them; for validation sets that are not representative (figure 5),
and that are (figure 6). It is of each set that is not synthetic. With `--out`, both figures are
drawn where `matplotlib` is installed. The last line is JSON.

Where the backbone is frozen, the features of all these images are kept in the run's `features/`.
"""

import argparse
import collections
import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from llc_jax.data.pipeline import Images, InMemory, Streamed
from llc_jax.data.sources import ArraySource
from llc_jax.data.synthetic import KINDS, Altered
from llc_jax.data.transforms import Crop
from llc_jax.data.unknown import SYNTHETIC
from llc_jax.evaluation import ood_baselines
from llc_jax.evaluation.ood_baselines import Comparison
from llc_jax.evaluation.ood_detection import Detected
from llc_jax.experiment.config import RunConfig, UnknownConfig
from llc_jax.experiment.extraction import on_features
from llc_jax.experiment.figures import detect_ood
from llc_jax.experiment.plan import plan_run
from llc_jax.experiment.stage import Stage
from llc_jax.experiment.workdir import read_config
from llc_jax.mesh import make_mesh
from llc_jax.report.ood import fpr_range
from llc_jax.training.logging import RunLog
from llc_jax.training.preemption import StopRequest

# Of the JPEGs as which images are coded anew.
_QUALITY = 75
# The set of known images that are coded anew.
_CHECK = "check/known, re-encoded"


def with_sets(config: RunConfig, options: argparse.Namespace) -> RunConfig:
    """Returns a config with the sets of unknown images that are measured."""
    sets = UnknownConfig(tuple(options.near), tuple(options.far))
    sets = sets if options.near or options.far else config.ood
    made = tuple(f"{kind}={SYNTHETIC}{kind}" for kind in KINDS) if options.synthetic else ()
    return dataclasses.replace(config, ood=dataclasses.replace(sets, far=(*sets.far, *made)))


def some(images: Images, count: int) -> Images:
    """Returns so many random images, or all of them where there are no more, as a stream."""
    if isinstance(images, InMemory):
        names = [str(index) for index in range(len(images.labels))]
        crop = Crop(images.images.shape[1], 1.0)
        source = ArraySource(images.images, images.labels, ("known",), names)
        images = Streamed(source, crop)
    indices = np.random.default_rng(0).permutation(len(images.labels))[:count]
    return dataclasses.replace(images, source=images.source.select(np.sort(indices)))


def reencoded(images: Streamed, side: int) -> Streamed:
    """Returns images that are cropped to some side, in pixels, and coded as JPEG."""
    transform = images.transform
    if not isinstance(transform, Altered):
        transform = Altered(transform)
    transform = dataclasses.replace(transform, side=side, quality=_QUALITY)
    return dataclasses.replace(images, transform=transform)


def detect(
    stages: tuple[Stage, Stage], known: Images, unknown: Mapping[str, Images], log: RunLog
) -> Detected:
    """Returns all scores of known and unknown images, by the linear stage and that of codes."""
    scores, by_set = {}, {name: {} for name in unknown}
    for stage in stages:
        dataset = dataclasses.replace(stage.dataset, evaluation=known, unknown=unknown)
        stage = dataclasses.replace(stage, dataset=dataset)
        stage = on_features(stage, log, StopRequest())
        found = detect_ood(stage, stage.trained_weights(), stage.directory.load_codebook())
        scores |= found.known
        for name in unknown:
            by_set[name] |= found.unknown[name]
    return Detected(scores, by_set)


def table_of_scores(measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Returns a Markdown table of every score on every set, and means over several sets."""
    rows = list(next(iter(measured.values())))
    sizes = collections.Counter(row.split("/")[0] for row in rows)  # The means are one row.
    rows = [row for row in rows if "/" in row or sizes[row] > 2]
    titles = (row.partition("/")[2] or f"{row}, mean" for row in rows)
    lines = ["| score | " + " | ".join(f"{title}: AUROC | FPR95" for title in titles) + " |"]
    lines.append("| --- |" + " ---: | ---: |" * len(rows))
    for score, figures in measured.items():
        cells = []
        for found in map(figures.get, rows):
            fpr = fpr_range(found["fpr95_min"], found["fpr95_max"])
            cells += [f"{100 * found['auroc']:.2f}", fpr]
        lines.append(f"| {score.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_of_comparisons(comparisons: Mapping[str, Comparison]) -> str:
    """Returns appendix E as a Markdown table: mean F1 and where 95% of the repeats lie."""
    lines = ["| setting | n | codes | tuned | of 50 |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, comparison in comparisons.items():
        bands = [
            ood_baselines.band(getattr(comparison, kind)) for kind in ("codes", "tuned", "fixed")
        ]
        for index, count in enumerate(comparison.counts):
            cells = [_range(*(values[index] for values in band)) for band in bands]
            lines.append(f"| {name} | {count:,} | {' | '.join(cells)} |")
    for name, comparison in comparisons.items():
        match = ood_baselines.samples_to_match(comparison)
        needs = "at none of these n" if match is None else f"from n = {match:,} on"
        lines.append(f"\nIn {name}, the tuned threshold reaches the codes' rule {needs}.")
    return "\n".join(lines)


def _range(mean: float, low: float, high: float) -> str:
    """Returns a mean and a range of shares, in per cent."""
    return f"{100 * mean:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def draw(comparisons: Mapping[str, Comparison], path: pathlib.Path) -> None:
    """Draws F1 against n, both figures side by side; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    plots = figure.subplots(1, len(comparisons), sharey=True)
    looks = {"codes": "tab:red", "tuned": "tab:blue", "fixed": "tab:gray"}
    names = {"codes": "codes, no OOD images", "tuned": "threshold tuned with n", "fixed": "of 50"}
    for axes, (name, comparison) in zip(plots, comparisons.items(), strict=True):
        for kind, colour in looks.items():
            band = ood_baselines.band(getattr(comparison, kind))
            axes.plot(comparison.counts, band.mean, color=colour, marker="o", label=names[kind])
            axes.fill_between(comparison.counts, band.low, band.high, color=colour, alpha=0.2)
        axes.set_xscale("log")
        axes.set_title(f"{name} of the paper")
        axes.set_xlabel("n, OOD images in the validation set")
        axes.spines[["top", "right"]].set_visible(False)
    plots[0].set_ylabel("F1, OOD positive")
    plots[0].legend(frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measures, and prints tables and a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=pathlib.Path)
    for group in ("near", "far"):
        parser.add_argument(f"--{group}", nargs="+", default=[], metavar="NAME=DATA")
    parser.add_argument("--synthetic", action="store_true", help="far sets made of known images")
    parser.add_argument("--reencode", type=int, metavar="SIDE", help="compare with coded images")
    parser.add_argument("--images", type=int, help="the most images of a set; by default all")
    parser.add_argument("--test", type=int, default=5000, help="OOD images of figure 5's test set")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    workdir = options.run.absolute()
    plan = plan_run(with_sets(read_config(workdir), options), workdir, make_mesh())
    stages = (next(stage for stage in plan.stages if stage.head == "linear"), plan.stages[-1])
    log, known, unknown = RunLog(workdir), plan.dataset.evaluation, dict(plan.dataset.unknown)
    if options.images or options.reencode:
        count = options.images or len(known.labels)
        known = some(known, count)
        unknown = {name: some(images, options.images) for name, images in unknown.items()}
    checks = {_CHECK: reencoded(known, options.reencode)} if options.reencode else {}
    found = detect(stages, known, unknown | checks, log)
    measured = {"as they are": found.measure()}
    if options.reencode:
        alike = {name: reencoded(images, options.reencode) for name, images in unknown.items()}
        measured["re-encoded"] = detect(stages, checks[_CHECK], alike, log).measure()
    for title, scores in measured.items():
        print(f"\n{title}, {len(known.labels):,} known images:\n{table_of_scores(scores)}")
    report = {"scores": measured, "comparisons": {}}
    for name, images in unknown.items():
        if isinstance(images.transform, Altered):
            continue
        comparisons = {
            title: ood_baselines.compare_detected(
                found, name, representative=representative, num_test=options.test
            )
            for title, representative in (("figure 5", False), ("figure 6", True))
        }
        print(f"\n{name}:\n{table_of_comparisons(comparisons)}")
        report["comparisons"][name] = {
            setting: {
                kind: np.mean(value, axis=0).tolist() for kind, value in vars(comparison).items()
            }
            for setting, comparison in comparisons.items()
        }
        if options.out and importlib.util.find_spec("matplotlib"):
            options.out.mkdir(parents=True, exist_ok=True)
            draw(comparisons, options.out / f"unknown_{name.replace('/', '_')}.png")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
