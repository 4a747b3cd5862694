import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.metrics.pairwise import cosine_similarity

from llc_jax.codes.codebook import Codebook
from llc_jax.experiment.evaluate import evaluate_again
from llc_jax.experiment.run import run
from llc_jax.weights import packages, pretrained
from tests.tiny import tree

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
OPTIONS = (
    *("--bits", "8", "--rivals", "csq", "--rival-bits", "8", "--epochs", "1", "1", "1"),
    *("--width", "16", "--depth", "1", "--cutoff", "30", "--database", "300"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """600 embeddings of 16 numbers, in ten clusters that overlap."""
    folder = tmp_path_factory.mktemp("embeddings")
    X, y = make_blobs(600, 16, centers=10, cluster_std=6.0, random_state=0)
    for name, rows in (("train", slice(480)), ("test", slice(480, None))):
        np.savez(folder / f"{name}.npz", embeddings=X[rows].astype(np.float16), labels=y[rows])
    return folder


def mean_average_precision(setting, k):
    """The corrected MAP@k of the cosine, by sorting everything."""
    (queries, query_labels), (database, labels) = setting.queries, setting.database
    values = []
    for scores, label in zip(cosine_similarity(queries, database), query_labels, strict=True):
        relevant = labels[np.argsort(-scores)[:k]] == label
        precision = np.cumsum(relevant) / np.arange(1, k + 1)
        values.append(np.sum(precision * relevant) / min(k, np.sum(labels == label)))
    return np.mean(values)


@pytest.mark.slow
def test_ways_to_search_embeddings(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module("embeddings")
    arguments = ["--source", f"embeddings:{folder}", *OPTIONS, "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["embeddings.py", *arguments])
    benchmark.main()
    printed, progress = capsys.readouterr()
    results = {
        result["method"]: result for result in json.loads(printed.splitlines()[-1])["results"]
    }
    assert {"floats, cosine", "sign", "pca_sign", "rotation", "itq", "CSQ"} <= results.keys()
    assert {"LLC", "LLC, then logits", "LLC, then floats", "LLC phase 1"} <= results.keys()
    assert len(progress.splitlines()) >= 2 * len(results)
    for name, setting in benchmark.read_settings(benchmark.parse(arguments)):
        expected = mean_average_precision(setting, 30)
        assert results["floats, cosine"]["figures"][name]["map"] == pytest.approx(expected)
        for method, result in results.items():
            figures = result["figures"][name]
            assert figures["map_min"] <= figures["map"] + 1e-9, method
            assert 0 < figures["map"] <= figures["map_max"] + 1e-9 <= 1 + 2e-9, method
    # The shortlist has all items of the two classes that are held out.
    exact, rescored = (
        results[name]["figures"]["unseen"]["map"] for name in ("floats, cosine", "LLC, then floats")
    )
    assert rescored == pytest.approx(exact)
    for method, figure in (("classifier, logits, cosine", "class_logits"), ("LLC", "soft")):
        assert 0.3 < results[method]["accuracy"][figure] <= 1
    assert [results[name]["num_bytes"] for name in ("floats, cosine", "LLC")] == [64, 1]
    assert results["LLC, then floats"]["num_bytes"] == 65
    table = (tmp_path / "embeddings.md").read_text()
    assert table.count("| LLC, then logits ") == 1
    assert "Of unseen classes, " in table
    assert json.loads((tmp_path / "embeddings.json").read_text())["options"]["cutoff"] == 30


@pytest.mark.slow
def test_accelerator_script_goes_on_where_it_stopped(tmp_path):
    for label in range(2):
        for split in ("train", "test"):
            folder = tmp_path / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(16):
                image = np.full((32, 32, 3), 200 * label + number, np.uint8)
                cv2.imwrite(str(folder / f"{number}.png"), image)
    command = [BENCHMARKS / "accelerator.sh", tmp_path / "out", tmp_path / "images"]
    environment = os.environ | {"TOY": "1", "PYTHON": sys.executable, "XLA_FLAGS": ""}
    # What has failed once is run again, and nothing else.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "decoding.done").touch()
    for done in (False, True):
        finished = subprocess.run(command, env=environment, capture_output=True, text=True)
        logs = [path.read_text() for path in (tmp_path / "out").glob("*.log")]
        assert finished.returncode == 0, finished.stderr + "".join(logs)
        assert finished.stdout.count("done already") == (6 if done else 1)
    assert "x the network" in (tmp_path / "out" / "encode.log").read_text()
    assert (tmp_path / "out" / "runs" / "resnet18_0" / "results.json").exists()


@pytest.mark.slow
def test_unknown_images(tmp_path, monkeypatch, capsys):
    run(tree(data__held_out_classes=2), tmp_path / "run", jax.devices()[:1])
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module("unknown_images")
    monkeypatch.setattr(benchmark.ood_baselines, "COUNTS", (50, 100))
    arguments = ["run", "--near", "held=unseen", "--synthetic", "--reencode", "8"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["unknown_images.py", *arguments, "--test", "100"])
    benchmark.main()
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    plain, coded = (report["scores"][name] for name in ("as they are", "re-encoded"))
    assert list(plain["energy"]) == [
        *("near/held", "near", "far/noise", "far/blur", "far/texture", "far"),
        *("check/known, re-encoded", "check"),
    ]
    assert plain["energy"].keys() - coded["energy"].keys() == {"check/known, re-encoded", "check"}
    scores = ("virtual_logit", "softmax_probability", "max_soft_logit", "nearest_distance")
    assert plain.keys() >= set(scores)
    for score in scores:
        assert 0.4 < plain[score]["check"]["auroc"] < 0.6
        assert abs(plain[score]["near"]["auroc"] - coded[score]["near"]["auroc"]) < 0.1
    # Those that the run itself measures later are the same.
    found = evaluate_again(tmp_path / "run", near=("held=unseen",), devices=jax.devices()[:1])
    for score in ("max_soft_logit", "nearest_distance"):
        assert found[f"ood/near/{score}/auroc"] == pytest.approx(plain[score]["near"]["auroc"])
    assert re.search(r"as they are, \d{3} known images", printed)
    assert list(report["comparisons"]) == ["near/held"]
    assert "In figure 5, the tuned threshold reaches the codes' rule" in printed


def structure(monkeypatch, capsys, *arguments):
    """The printed lines of the benchmark of the structure of codes, and its figures."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    importlib.import_module("structure").main(map(str, arguments))
    lines = capsys.readouterr().out.splitlines()
    return lines, json.loads(lines[-1])["figures"]


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_the_structure_of_the_codes_of_a_run(frozen, tmp_path, monkeypatch, capsys):
    run(tree(frozen_backbone=frozen, report=False, num_bits=6), tmp_path / "run")
    capsys.readouterr()
    halves = tmp_path / "halves.json"
    halves.write_text(json.dumps({"low": list("01234"), "high": list("56789")}))
    lines, figures = structure(monkeypatch, capsys, tmp_path / "run", "--hierarchy", halves)
    assert list(figures) == ["learnt", "svd", "cca", "random"]
    assert sum(line.startswith("| ") for line in lines) == 6
    learnt = Codebook.load(tmp_path / "run" / "instance" / "codebook.npz")
    assert figures["learnt"]["unique"] == learnt.num_unique
    for row in figures.values():
        assert 0.4 < row["purity"] < 1
        assert abs(row["spearman"]) <= 1
    assert figures["svd"]["spearman"] > 0.2 > abs(figures["random"]["spearman"])


@pytest.mark.slow
def test_the_structure_of_a_pretrained_classifier(monkeypatch, capsys):
    weights = np.random.default_rng(0).normal(size=(1000, 32)).astype(np.float32)
    monkeypatch.setattr(packages, "find_weights", lambda name: name)
    monkeypatch.setattr(pretrained, "read_state_dict", lambda path: {"_fc.weight": weights})
    _, figures = structure(monkeypatch, capsys, "--imagenet", "--num-bits", 12)
    assert list(figures) == ["svd", "random"]
    assert figures["svd"].keys() == {"spearman", "unique"}
    assert figures["svd"]["spearman"] > 0.2 > abs(figures["random"]["spearman"])
