"""What a run keeps for its report, and what the report computes once more."""

import itertools

import cv2
import embeddings_20bit
import jax
import numpy as np
import pytest
from sklearn.datasets import make_blobs

import llc_jax
from llc_jax.cli import main
from llc_jax.data.splits import open_splits
from llc_jax.errors import InputError
from llc_jax.evaluation import ood_scores
from llc_jax.experiment.report_inputs import FinishedRun
from llc_jax.experiment.run import run
from tests.tiny import tree


def read(path):
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of frozen features, so that its stages do not see the images themselves."""
    workdir = tmp_path_factory.mktemp("run") / "frozen"
    run(tree(frozen_backbone=True), workdir, jax.devices()[:1])
    return workdir


def test_a_run_keeps_the_images_that_its_report_shows(workdir):
    kept = read(workdir / "instance" / "examples.npz")
    images = open_splits("digits", "", holdout=0.5, seed=0).evaluation
    ends = [0, *kept["thumbnail_ends"].tolist()]
    contents = [kept["thumbnails"][a:b] for a, b in itertools.pairwise(ends)]
    shown = np.stack([cv2.imdecode(content, cv2.IMREAD_COLOR) for content in contents])
    # WebP changes images of 8 pixels by little; each is nearest to an image of its class.
    differences = np.abs(
        shown[:, None].astype(np.int16) - images.images[None, ..., ::-1].astype(np.int16)
    ).mean(axis=(2, 3, 4))
    assert differences.min(axis=1).max() < 12
    nearest = differences.argmin(axis=1)
    np.testing.assert_array_equal(images.labels[nearest], kept["labels"])
    model = llc_jax.load(workdir)
    logits = model.code_logits(images.images[nearest])
    agree = (logits >= 0) == kept["codes"]
    assert agree.mean() > 0.99  # Features are kept in 16 bits.
    labels, _ = model.classify(images.images[nearest])
    assert np.mean(labels == kept["predictions"]) > 0.95


def test_a_run_keeps_the_weights_of_a_linear_classifier(workdir):
    weights = read(workdir / "linear" / "examples.npz")["class_weights"]
    assert weights.shape[0] == 10
    assert weights.std() > 0


def test_images_that_a_run_has_not_kept_are_encoded_again(workdir, capsys):
    files = [workdir / stage / "examples.npz" for stage in ("linear", "codebook", "instance")]
    before = [read(file) for file in files]
    for file in files:
        file.unlink()
    assert main(["report", str(workdir), "--examples"]) == 0
    assert f"Report: {workdir}/report.html" in capsys.readouterr().out
    for file, old in zip(files, before, strict=True):
        new = read(file)
        assert new.keys() == old.keys()
        for name in old:
            np.testing.assert_array_equal(new[name], old[name])


def test_unknown_images_are_scored_and_shown(workdir, tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(256, size=(20, 8, 8, 3), dtype=np.uint8)
    (tmp_path / "noise" / "x").mkdir(parents=True)
    for number, image in enumerate(images):
        cv2.imwrite(str(tmp_path / "noise" / "x" / f"{number:02d}.png"), image[..., ::-1])
    assert main(["report", str(workdir), "--near", f"noise={tmp_path}/noise"]) == 0
    kept = read(workdir / "instance" / "ood" / "scores.npz")
    model = llc_jax.load(workdir)
    expected = ood_scores.code_scores(model.code_logits(images), model.codebook.packed)
    known = [name for name in kept if name.startswith("known/")]
    assert {name.removeprefix("known/") for name in known} == expected.keys()
    for name, scores in expected.items():
        # Features are kept in 16 bits, and a bit may change by that.
        close = np.isclose(kept[f"unknown/near/noise/{name}"], scores, rtol=0.05, atol=0.05)
        assert close.mean() > 0.8
        assert kept[f"known/{name}"].shape == (898,)
    page = (workdir / "report.html").read_text()
    assert '<section id="unknown">' in page
    assert '<section id="images">' in page


def test_what_cannot_be_scored_is_refused(workdir, tmp_path, capsys):
    for given, message in (
        ("noise", "NAME=DATA"),
        ("noise=/there/is/no/such", "There is no data at /there/is/no/such"),
    ):
        assert main(["report", str(workdir), "--far", given]) == 2
        assert message in capsys.readouterr().err
    vectors = np.zeros((4, 3), np.float32)
    np.savez(tmp_path / "vectors.npz", embeddings=vectors, labels=np.zeros(4, np.int32))
    source = f"embeddings:{tmp_path}/vectors.npz"
    with pytest.raises(InputError, match="embeddings of 3 numbers"):
        FinishedRun(workdir, near=[f"vectors={source}"])


def test_embeddings_have_no_images(tmp_path):
    X, y = make_blobs(200, 16, centers=4, random_state=0)
    np.savez(tmp_path / "data.npz", embeddings=X.astype(np.float32), labels=y)
    config, workdir = embeddings_20bit.get_config(f"{tmp_path}/data.npz").unlock(), tmp_path / "run"
    config.num_bits, config.min_steps = 4, 10
    for stage in config.stages.values():
        stage.epochs, stage.head.hidden = 1, ()
    run(config.to_dict(), workdir)
    assert not (workdir / "instance" / "examples.npz").exists()
    page = (workdir / "report.html").read_text()
    assert '<section id="images">' not in page
    assert "representations-figure" in page
