"""Workdirs of finished runs, made by hand: without training, of any number of classes."""

import json

import cv2
import jax
import numpy as np

from llc_jax.codes.codebook import Codebook
from llc_jax.evaluation.ood_detection import Detected
from llc_jax.experiment.config import as_json, parse
from llc_jax.experiment.finished_run import write_run
from llc_jax.experiment.network import build_network
from llc_jax.experiment.workdir import StageDirectory
from llc_jax.files import write_arrays, write_json
from llc_jax.report.classes import Confusion, write_confusions
from llc_jax.report.examples import Examples, choose, shown
from tests.tiny import tree

# Names that would do harm in a page that takes them for more than text.
NASTY = (
    "<script>window.harmed = true</script>",
    '"><img src=x onerror="window.harmed = true">',
    "</script><!-- {{ 7 * 7 }} & '",
)


def make_examples(class_names, num_bits, seed=0):
    """Returns examples of 60 grey images of random classes and codes."""
    generator = np.random.default_rng(seed)
    code_logits = generator.normal(size=(60, num_bits)).astype(np.float32)
    chosen, choice = shown(choose(code_logits))
    labels, predictions = generator.integers(len(class_names), size=(2, 60), dtype=np.int32)
    pixels = (np.full((8, 8, 3), 4 * index, np.uint8) for index in chosen)
    return Examples(
        choice=choice,
        thumbnails=tuple(cv2.imencode(".webp", image)[1].tobytes() for image in pixels),
        codes=code_logits[chosen] >= 0,
        labels=labels[chosen],
        predictions=predictions[chosen],
        class_names=tuple(class_names),
    )


def make_ood_scores():
    """Returns scores of 500 known and 300 unknown images, of few values and of many."""
    generator = np.random.default_rng(0)

    def scores(count, mean):
        real = generator.normal(mean, size=count)
        return {"soft_energy": real, "nearest_distance": np.maximum(real.astype(np.int32), 0)}

    return Detected(scores(500, 0), {NASTY[0]: scores(300, 2), "a/b": scores(300, 1)})


def make_run(workdir, class_names, num_bits=20, retrieval=True, images=True):
    """Makes the workdir of a run whose codes, confusions and curves are random; returns it.

    With `images` it also has images, a linear classifier's weights, and scores of unknown ones.
    """
    generator = np.random.default_rng(0)
    length = len(class_names)
    config = parse(tree(num_bits=num_bits))
    write_json(workdir / "config.json", as_json(config))
    counts = dict.fromkeys(class_names, 500)
    record = {"source": "digits", "eval_source": "", "class_names": list(class_names)}
    write_json(workdir / "data.json", record | {"images": counts, "sha256": "0"})
    centers = generator.normal(size=(max(1, length // 10), num_bits))
    nearby = centers[generator.integers(len(centers), size=length)]
    latent = nearby + generator.normal(size=(length, num_bits)) * 0.4
    codebook = Codebook.from_numpy(latent, class_names)
    codebook.save(workdir / "codebook.npz")
    results = {
        "classification/linear": 0.9,
        "classification/linear_top5": 0.99,
        "classification/mhd": 0.875,
        "classification/ed": 0.5,
        "codebook/unique": codebook.num_unique,
        "codebook/min_distance": codebook.min_distance,
        "decoding/mhd/accuracy": 0.875,
        "decoding/mhd/rejected": 0.0,
        "decoding/mhd/codes_per_second": 2e6,
        "decoding/ed/accuracy": 0.5,
        "decoding/ed/rejected": 0.25,
        "decoding/ed/codes_per_second": 4e7,
    }
    write_json(workdir / "results.json", results)
    confusions = [
        Confusion(class_names[c], class_names[other], images)
        for c in range(length)
        # A class is taken for itself, or for one of a few others.
        for other, images in {(c + 4) % length: 2, (c + 1) % length: 3, c: 45}.items()
    ]
    for name in config.stages:
        stage = StageDirectory(workdir / name)
        write_json(stage.results_file, results)
        write_confusions(stage.confusions_file, confusions)
        codebook.save(stage.codebook_file)
    if images:
        _add_images(workdir, class_names, num_bits, nearby)
    if retrieval:
        _add_retrieval(workdir, num_bits)
    _add_metrics(workdir, config.stages)
    return workdir


def _add_images(workdir, class_names, num_bits, centers):
    """Adds images, the weights of a linear classifier near some centers, and unknown images."""
    generator = np.random.default_rng(1)
    weights = centers + generator.normal(size=centers.shape)
    class_weights = {"class_weights": weights.astype(np.float32)}
    write_arrays(StageDirectory(workdir / "linear").examples_file, class_weights)
    examples = make_examples(class_names, num_bits)
    write_arrays(StageDirectory(workdir / "instance").examples_file, examples.as_arrays())
    instance = StageDirectory(workdir / "instance")
    instance.ood_directory.mkdir()
    write_arrays(instance.ood_directory / "scores.npz", make_ood_scores().as_arrays())


def _add_retrieval(workdir, num_bits):
    """Adds curves of retrieval."""
    rank, radius = np.arange(1, 1001), np.arange(num_bits + 1)
    curves = {
        "rank/precision": 0.9 / (1 + rank / 3000),
        "rank/recall": rank / 1000,
        "prefix_4/asymmetric/rank/precision": 0.7 / (1 + rank / 2000),
        "prefix_4/asymmetric/rank/recall": rank / 1000,
        "radius/found": np.ones(num_bits + 1),
        "radius/precision": 0.95 * np.exp(-radius / 10),
        "radius/recall": radius / num_bits,
    }
    write_arrays(StageDirectory(workdir / "instance").curves_file, curves)


def _add_metrics(workdir, stages):
    """Adds the log of 30 epochs of each stage."""
    with (workdir / "metrics.jsonl").open("w") as file:
        for stage in stages:
            for epoch in range(1, 31):
                loss = 3 / epoch if epoch != 2 else float("nan")
                values = {"accuracy": 1 - 0.5 / epoch, "loss": loss, "learning_rate": 0.1 / epoch}
                line = {"stage": stage, "step": 21 * epoch, "epoch": epoch, **values}
                file.write(json.dumps(line) + "\n")


def make_encoder(workdir, num_bits=8):
    """Makes the workdir of a run of the tiny config with random weights and codes; returns it."""
    config = parse(tree(num_bits=num_bits))
    codebook = Codebook.random(10, num_bits, seed=0)
    network = build_network(config, list(config.stages.values())[-1], codebook.num_classes)
    weights = dict(zip(("params", "batch_stats"), network.init(jax.random.key(0)), strict=True))
    write_run(workdir, config, weights, codebook)
    return workdir
