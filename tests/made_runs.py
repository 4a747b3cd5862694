"""Workdirs of finished runs, made by hand: without training, of any number of classes."""

import json

import jax
import numpy as np

from llc_jax.codes.codebook import Codebook
from llc_jax.experiment.config import as_json, parse
from llc_jax.experiment.finished_run import write_run
from llc_jax.experiment.network import build_network
from llc_jax.experiment.workdir import StageDirectory
from llc_jax.files import write_arrays, write_json
from llc_jax.report.classes import Confusion, write_confusions
from tests.tiny import tree

# Names that would do harm in a page that takes them for more than text.
NASTY = (
    "<script>window.harmed = true</script>",
    '"><img src=x onerror="window.harmed = true">',
    "</script><!-- {{ 7 * 7 }} & '",
)


def make_run(workdir, class_names, num_bits=20, retrieval=True):
    """Makes the workdir of a run whose codes, confusions and curves are random; returns it."""
    generator = np.random.default_rng(0)
    length = len(class_names)
    config = parse(tree(num_bits=num_bits))
    write_json(workdir / "config.json", as_json(config))
    images = dict.fromkeys(class_names, 500)
    record = {"source": "digits", "eval_source": "", "class_names": list(class_names)}
    write_json(workdir / "data.json", record | {"images": images, "sha256": "0"})
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
    if retrieval:
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
    with (workdir / "metrics.jsonl").open("w") as file:
        for stage in config.stages:
            for epoch in range(1, 31):
                loss = 3 / epoch if epoch != 2 else float("nan")
                values = {"accuracy": 1 - 0.5 / epoch, "loss": loss, "learning_rate": 0.1 / epoch}
                line = {"stage": stage, "step": 21 * epoch, "epoch": epoch, **values}
                file.write(json.dumps(line) + "\n")
    return workdir


def make_encoder(workdir, num_bits=8):
    """Makes the workdir of a run of the tiny config with random weights and codes; returns it."""
    config = parse(tree(num_bits=num_bits))
    codebook = Codebook.random(10, num_bits, seed=0)
    network = build_network(config, list(config.stages.values())[-1], codebook.num_classes)
    weights = dict(zip(("params", "batch_stats"), network.init(jax.random.key(0)), strict=True))
    write_run(workdir, config, weights, codebook)
    return workdir
