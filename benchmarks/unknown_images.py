"""How well a run tells images of unknown classes from those of its own, by each score.

  python benchmarks/unknown_images.py runs/cifar100 --ood cifar10=cifar10_test.zip
  python benchmarks/unknown_images.py runs/cifar100 --ood cifar10=cifar10_test.zip --test 5000

The run has a linear stage and codes, as those of `llc train` do. Known images are those that it
was evaluated on; unknown ones are those of each `--ood NAME=DATA`, and two sets that are made of
the known ones: `blurred`, with a Gaussian filter of a quarter of their side, and `noise`, with
all pixels of all images shuffled. The first table has every score: of the codes, of the linear
classifier, and the distance to the 50th nearest training image by the linear stage's features.
AUROC counts ties as half; the bounds of FPR at 95% TPR are those of the best and the worst order
of ties.

The second table is appendix E of the paper: F1 of the codes' rule without unknown images, of a
threshold of the linear classifier's maximum softmax probability that is tuned with n of them,
and of the threshold of 50 of them; for validation sets that are not representative (figure 5),
and that are (figure 6). With `--out`, both figures are drawn where `matplotlib` is installed.
The last line is JSON.
"""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Callable, Mapping

import cv2
import numpy as np

from llc_jax.compiling import jit_network
from llc_jax.data.pipeline import Images, InOrder, ProcessShard, Streamed
from llc_jax.data.sources import ArraySource
from llc_jax.data.splits import Splits, open_source
from llc_jax.data.transforms import Crop
from llc_jax.evaluation import ood, ood_baselines, ood_scores
from llc_jax.evaluation.gathering import gather
from llc_jax.evaluation.ood_baselines import Comparison, Scores, Setting
from llc_jax.experiment.extraction import on_features
from llc_jax.experiment.plan import plan_run
from llc_jax.experiment.stage import Stage
from llc_jax.experiment.workdir import read_config
from llc_jax.mesh import make_mesh
from llc_jax.training.logging import RunLog
from llc_jax.training.preemption import StopRequest

# Of the synthetic images.
_SYNTHETIC = 2000


class Outputs:
    """What two stages of a run make of images.

    Args:
      workdir: of the run, which is finished.
    """

    def __init__(self, workdir: pathlib.Path):
        config, self._log = read_config(workdir), RunLog(workdir)
        stages = plan_run(config, workdir, make_mesh()).stages
        self.linear = next(stage for stage in stages if stage.head == "linear")
        self.coded = stages[-1]
        self.crop = Crop(
            self.linear.example.shape[1], config.data.crop_fraction, config.data.exif_orientation
        )

    def scores(self, images: Images, train_features: np.ndarray) -> dict[str, np.ndarray]:
        """Returns every score of images, float[N]."""
        code_logits = self._of(self.coded, images, lambda output: output.code_logits)
        class_logits = self._of(self.linear, images, lambda output: output.class_logits)
        features = self._of(self.linear, images, None)
        codebook = self.coded.directory.load_codebook()
        return (
            ood_scores.code_scores(code_logits, codebook.packed)
            | ood_scores.class_logit_scores(class_logits)
            | {"neighbor_distance": ood_scores.neighbor_distance(features, train_features)}
        )

    def train_features(self) -> np.ndarray:
        """Returns the linear stage's features of the training images, float32[N, d]."""
        return self._of(self.linear, self.linear.dataset.plain, None)

    def _of(self, stage: Stage, images: Images, part: Callable | None) -> np.ndarray:
        """Returns a part of the stage's output for images, or its features if the part is None."""
        dataset = dataclasses.replace(stage.dataset, evaluation=images, unseen=None)
        stage = dataclasses.replace(stage, dataset=dataset)
        if stage.frozen is not None:
            stage = on_features(stage, self._log, StopRequest())
        weights = stage.trained_weights()

        def embed(params, batch_stats, inputs):
            if part is None:
                return stage.network.features(params, batch_stats, inputs)
            return part(stage.network.evaluate(params, batch_stats, inputs))

        compiled = jit_network(embed)
        batches = stage.eval_batches(stage.dataset.evaluation)
        arguments = (weights["params"], weights["batch_stats"])
        return gather(lambda inputs: compiled(*arguments, inputs), batches)[0]


def unknown_images(known: Images, crop: Crop, sources: Mapping[str, str]) -> dict[str, Images]:
    """Returns sets of unknown images by name: those that are named, and those that are made."""
    sets = {}
    for name, source in sources.items():
        images = open_source(source)
        images = images.evaluation if isinstance(images, Splits) else images
        sets[name] = Streamed(images, crop)
    pixels = _some_pixels(known)
    side = pixels.shape[1]
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), side / 4) for image in pixels])
    flat = pixels.reshape(-1, 3)
    noise = np.random.default_rng(0).permutation(flat).reshape(pixels.shape)
    for name, images in (("blurred", blurred), ("noise", noise)):
        names = [f"{name}[{index}]" for index in range(len(images))]
        labels = np.zeros(len(images), np.int32)
        sets[name] = Streamed(ArraySource(images, labels, (name,), names), crop)
    return sets


def _some_pixels(images: Images) -> np.ndarray:
    """Returns some of the known images as the network sees them, uint8[N, H, W, 3]."""
    count = min(_SYNTHETIC, len(images.labels))
    shard = ProcessShard(count, np.arange(count))
    (batch,) = images.batches(InOrder(count), shard, range(1))
    return batch["input"][batch["mask"]]


def table_of_scores(known: Mapping, unknown: Mapping[str, Mapping]) -> tuple[str, dict]:
    """Returns a Markdown table of every score on every set, and the figures in it."""
    figures = {
        name: {score: ood.measure(known[score], scores[score]) for score in known}
        for name, scores in unknown.items()
    }
    lines = ["| score | " + " | ".join(f"{name}: AUROC | FPR95" for name in figures) + " |"]
    lines.append("| --- |" + " ---: | ---: |" * len(figures))
    for score in known:
        cells = []
        for name in figures:
            found = figures[name][score]
            least, most = found["fpr95_min"], found["fpr95_max"]
            fpr = (
                f"{100 * most:.1f}"
                if most - least < 5e-4
                else f"{100 * least:.1f}-{100 * most:.1f}"
            )
            cells += [f"{100 * found['auroc']:.2f}", fpr]
        lines.append(f"| {score.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines), figures


def compare(known: Mapping, unknown: Mapping, num_test: int) -> dict[str, Comparison]:
    """Returns the comparisons of figures 5 and 6."""
    most = len(unknown["softmax_probability"])
    counts = tuple(count for count in ood_baselines.COUNTS if count <= most)
    pairs = (
        Scores(known[score], unknown[score])
        for score in ("softmax_probability", "nearest_distance")
    )
    scores, distances = pairs
    common = {"counts": counts, "num_test": min(num_test, most)}
    return {
        "figure 5": ood_baselines.compare(scores, distances, Setting(False, **common)),
        "figure 6": ood_baselines.compare(scores, distances, Setting(True, **common)),
    }


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
    parser.add_argument("--ood", nargs="+", default=[], metavar="NAME=DATA")
    parser.add_argument("--test", type=int, default=5000, help="OOD images of figure 5's test set")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    outputs = Outputs(options.run.absolute())
    known_images, train_features = outputs.linear.dataset.evaluation, outputs.train_features()
    known = outputs.scores(known_images, train_features)
    sources = dict(item.split("=", 1) for item in options.ood)
    sets = unknown_images(known_images, outputs.crop, sources)
    unknown = {name: outputs.scores(images, train_features) for name, images in sets.items()}
    table, figures = table_of_scores(known, unknown)
    print(table)
    report = {"scores": figures, "comparisons": {}}
    for name in sources:
        comparisons = compare(known, unknown[name], options.test)
        print(f"\n{name}:\n{table_of_comparisons(comparisons)}")
        report["comparisons"][name] = {
            setting: {kind: np.mean(value, axis=0).tolist() for kind, value in vars(found).items()}
            for setting, found in comparisons.items()
        }
        if options.out and importlib.util.find_spec("matplotlib"):
            options.out.mkdir(parents=True, exist_ok=True)
            draw(comparisons, options.out / f"unknown_{name}.png")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
