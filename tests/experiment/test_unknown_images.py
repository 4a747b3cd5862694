import csv
import json

import cv2
import jax
import numpy as np
import pytest

from llc_jax import cli
from llc_jax.data.dataset import open_dataset
from llc_jax.errors import InputError
from llc_jax.evaluation import ood, ood_scores
from llc_jax.experiment.run import run
from llc_jax.inference import load
from tests.tiny import tree

SETS = {"near": ("held=unseen",), "far": ("noise=synthetic:noise", "blur=synthetic:blur")}
CODES = ("nearest_distance", "outside_radius", "weighted_distance", "max_soft_logit")
LINEAR = ("softmax_probability", "energy", "neighbor_distance", "virtual_logit")
ROWS = ("near", "near/held", "far", "far/noise", "far/blur")


def config(**changes):
    return tree(data__held_out_classes=2, **changes)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run of three stages with sets of unknown images."""
    workdir = tmp_path_factory.mktemp("unknown") / "run"
    run(config(ood=SETS), workdir, jax.devices()[:1])
    return workdir


@pytest.mark.slow
def test_every_stage_has_the_scores_of_its_outputs(measured, capsys):
    results = json.loads((measured / "results.json").read_text())
    for row in ROWS:
        for prefix, scores in (("", LINEAR), ("", CODES), ("codebook/", CODES)):
            for score in scores:
                figures = [results[f"ood/{prefix}{row}/{score}/{f}"] for f in ("auroc", "fpr95")]
                assert all(0 <= figure <= 1 for figure in figures)
    for score in LINEAR:
        assert f"ood/codebook/near/{score}/auroc" not in results
        sets = [results[f"ood/far/{name}/{score}/auroc"] for name in ("noise", "blur")]
        assert results[f"ood/far/{score}/auroc"] == pytest.approx(np.mean(sets))
    # Shuffled pixels are no digits: features that have learnt anything know.
    assert results["ood/far/noise/neighbor_distance/auroc"] > 0.8
    run(config(ood=SETS), measured)
    assert "unknown images by" in capsys.readouterr().out


@pytest.mark.slow
def test_a_table_of_each_score_lies_beside_the_stage(measured):
    results = json.loads((measured / "results.json").read_text())
    for stage, score, accuracy in [
        ("linear", "virtual_logit", "linear"),
        ("instance", "max_soft_logit", "mhd_first"),
    ]:
        text = (measured / stage / "ood" / f"{score}.csv").read_text()
        rows = {row["dataset"]: row for row in csv.DictReader(text.splitlines())}
        assert list(rows) == ["held", "nearood", "noise", "blur", "farood"]
        area = results[f"ood/far/{score}/auroc"]
        assert rows["farood"]["AUROC"] == f"{100 * area:.2f}"
        assert rows["held"]["ACC"] == f"{100 * results[f'classification/{accuracy}']:.2f}"


@pytest.mark.slow
def test_scores_are_those_of_the_loaded_model(measured):
    data = config()["data"] | {"image_size": 8}
    dataset = open_dataset(**data, seed=0)
    model = load(measured)
    known, unknown = (
        ood_scores.code_scores(model.code_logits(images.images), model.codebook.packed)
        for images in (dataset.evaluation, dataset.unseen.evaluation)
    )
    results = json.loads((measured / "results.json").read_text())
    for score in CODES:
        expected = ood.auroc(known[score], unknown[score]).value
        assert results[f"ood/near/{score}/auroc"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_sets_can_be_measured_later(measured, capsys):
    far = ["noise=synthetic:noise", "other=synthetic:texture"]
    assert cli.main(["eval", str(measured), "--far", *far]) == 0
    found = json.loads((measured / "evaluation.json").read_text())
    results = json.loads((measured / "results.json").read_text())
    key = "ood/far/noise/soft_energy/auroc"
    assert found[key] == pytest.approx(results[key], abs=1e-3)
    assert "ood/far/other/soft_energy/auroc" in found
    assert not any(key.startswith("ood/near") for key in found)
    assert (measured / "evaluation_ood" / "soft_energy.csv").exists()
    with pytest.raises(InputError, match="`llc eval .* --near held=unseen x=digits` measures a"):
        run(config(ood=SETS | {"near": ("held=unseen", "x=digits")}), measured)
    assert cli.main(["eval", str(measured), "--near", "x=none.zip"]) == 2
    assert "set near/x of unknown images: There is no data at" in capsys.readouterr().err


@pytest.mark.slow
def test_damaged_unknown_images_are_named_or_skipped_and_counted(tmp_path):
    for name, content in (("a", b"no image"), ("b", None), ("c", None)):
        path = tmp_path / "set" / "x" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((9, 9, 3), 99, np.uint8))
        path.write_bytes(content or path.read_bytes())
    stages = {"linear": tree()["stages"]["linear"] | {"epochs": 1}}
    changed = tree(stages=stages, ood={"far": (f"mine={tmp_path / 'set'}",)})
    with pytest.raises(InputError, match=r"x/a.png .*on_error=skip it is left out"):
        run(changed, tmp_path / "run", jax.devices()[:1])
    changed["data"]["on_error"] = "skip"
    results = run(changed, tmp_path / "run", jax.devices()[:1])
    assert results["data/damaged_unknown/far/mine"] == 1
    # The two that are left are the same: each metric has one of two tied images.
    assert 0 < results["ood/far/energy/auroc"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 2])
def test_a_frozen_backbone_encodes_each_set_once(tmp_path, views):
    stages = tree()["stages"]
    changed = config(frozen_backbone=True, views=views, ood=SETS, stages=stages)
    results = run(changed, tmp_path, jax.devices()[:1])
    for row in ROWS:
        for score in (*LINEAR, *CODES):
            assert 0 <= results[f"ood/{row}/{score}/auroc"] <= 1
    # Training images as they are and augmented, evaluation images, and three sets.
    assert len(list((tmp_path / "features").glob("*.npy"))) == 5 + (views > 1)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"near": ("digits",)}, "config.ood.near are sets of unknown images, NAME=DATA, not 'dig"),
        ({"far": ("a b=digits",)}, "config.ood.far are sets .* not 'a b=digits'"),
        ({"near": ("a=",)}, "config.ood.near are sets"),
        ({"near": ("a=digits",), "far": ("a=digits",)}, "config.ood has 'a' twice"),
        ({"near": ("near=digits",)}, "config.ood has 'near' twice"),
        ({"nearr": ()}, "config.ood has no key 'nearr'. Did you mean 'near'"),
        ({"near": ("a=none.txt",)}, "The set near/a of unknown images: There is no data at none"),
    ],
)
def test_wrong_sets_stop_a_run_before_anything_is_written(tmp_path, sets, message):
    with pytest.raises(InputError, match=message):
        run(config(ood=sets), tmp_path / "run")
    assert not (tmp_path / "run").exists()
