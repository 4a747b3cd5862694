"""Runs whose images move, or change, and evaluations on other images."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest

import llc_jax
from llc_jax import cli
from llc_jax.data.prefetch import ReadersFailed
from llc_jax.errors import InputError
from llc_jax.experiment.evaluate import evaluate, evaluate_again
from llc_jax.experiment.run import run
from tests.tiny import tree


def write(folder, classes, count=16):
    """Writes grey images, each class of another brightness."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = rng.integers(0, 60, (8, 8, 3)) + 60 * (ord(name[0]) - ord("a"))
            cv2.imwrite(str(folder / name / f"{index}.png"), image.astype(np.uint8))
    return folder


def config(source, **changes):
    """The tiny config on a folder, with an epoch for each stage."""
    epochs = {f"stages__{stage}__epochs": 1 for stage in ("linear", "codebook", "instance")}
    return tree(data__source=str(source), batch_size=16, **epochs | changes)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "photos", ("ape", "bee", "cat"))


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    run(config(photos), workdir)
    return workdir


@pytest.fixture
def moved(photos, tmp_path):
    return shutil.copytree(photos, tmp_path / "elsewhere" / "photos")


@pytest.fixture
def unfinished(finished, tmp_path):
    """A copy of the finished run that lacks its last stage."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    (workdir / "results.json").unlink()
    shutil.rmtree(workdir / "instance")
    return workdir


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def test_a_run_has_a_record_of_its_images(photos, finished):
    record = json.loads((finished / "data.json").read_text())
    assert record["source"] == str(photos)
    assert record["images"] == {"ape": 16, "bee": 16, "cat": 16}
    assert record["class_names"] == ["ape", "bee", "cat"]


def test_images_may_move(finished, unfinished, moved, monkeypatch, capsys):
    assert run(config(moved), finished) == results(finished)
    assert "This run is finished" in capsys.readouterr().out
    monkeypatch.chdir(moved.parent.parent)
    assert run(config("elsewhere/photos/"), unfinished) == results(finished)
    assert json.loads((unfinished / "data.json").read_text())["source"] == str(moved)
    shutil.rmtree(moved)
    assert run(config(moved), finished) == results(finished)


def test_images_that_change_are_noticed(finished, unfinished, moved):
    before = {path: path.stat().st_mtime_ns for path in unfinished.rglob("*")}
    write(moved, ["cat"], count=17)
    for workdir in (finished, unfinished):
        with pytest.raises(InputError, match="begun with: 'cat' has 17 images, not 16. Choose"):
            run(config(moved), workdir)
    write(moved, ["dog"])
    with pytest.raises(InputError, match="begun with: the class 'dog' is new; 'cat' has 17"):
        run(config(moved), unfinished)
    assert {path: path.stat().st_mtime_ns for path in unfinished.rglob("*")} == before


def test_a_run_without_a_record_goes_on_and_gets_one(finished, unfinished, photos, monkeypatch):
    (unfinished / "data.json").unlink()
    with pytest.raises(InputError, match="data.source is '.*' there and '.*/other' here. Choose"):
        run(config(photos.parent / "other"), unfinished)
    monkeypatch.chdir(photos)
    assert run(config("../photos/"), unfinished) == results(finished)
    assert (unfinished / "data.json").read_bytes() == (finished / "data.json").read_bytes()


def test_a_damaged_record_is_named(unfinished, photos):
    for content in ("", "[]", "{}", '{"images": 3}'):
        (unfinished / "data.json").write_text(content)
        with pytest.raises(InputError, match="data.json is damaged .*: remove it"):
            run(config(photos), unfinished)


def test_a_stage_that_has_not_started_may_change(unfinished, photos):
    changes = {"stages__instance__epochs": 2, "stages__instance__mixup": 0.1}
    with pytest.raises(InputError, match="codebook.epochs is 1 there and 2 here"):
        run(config(photos, stages__codebook__epochs=2, **changes), unfinished)
    run(config(photos, **changes), unfinished)
    stages = json.loads((unfinished / "config.json").read_text())["stages"]
    assert [stage["epochs"] for stage in stages.values()] == [1, 1, 2]
    with pytest.raises(InputError, match="instance.epochs is 2 there and 1 here"):
        run(config(photos), unfinished)


def test_what_is_only_measured_is_refused_with_the_way_to_measure_it(finished, photos):
    with pytest.raises(InputError, match=r"decoders is \[\] there .*`llc eval .* --decoders ed`"):
        run(config(photos, decoders=("ed",)), finished)
    with pytest.raises(InputError, match="`llc eval .* --decoders ed mhd --retrieval 5 10`"):
        run(config(photos, decoders=("ed", "mhd"), retrieval=(5, 10)), finished)


def test_an_evaluation_takes_the_config_from_the_run(finished, photos, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    expected = results(finished)
    assert cli.main(["eval", "run", "--decoders", "ed", "chase_2", "--retrieval", "5"]) == 0
    found = json.loads((workdir / "evaluation.json").read_text())
    assert {key: found[key] for key in expected if key in found}.items() <= expected.items()
    assert found.keys() >= {"decoding/chase_2/accuracy", "retrieval/cmap@5"}
    with pytest.raises(InputError, match="num_bits is 8 there and 9 here. Let `llc eval"):
        evaluate(config(photos, num_bits=9), workdir)


def test_an_evaluation_of_images_that_moved_is_of_their_evaluation_images(finished, moved, capsys):
    found = evaluate_again(finished, source=str(moved))
    assert found["classification/mhd"] == results(finished)["classification/mhd"]
    assert "24 evaluation images of 3 classes" in capsys.readouterr().out
    assert evaluate_again(finished) == found
    write(moved, ["cat"], count=17)
    evaluate_again(finished, source=str(moved))
    assert "These are not the images that the run was" in capsys.readouterr().out


def test_an_evaluation_of_images_that_are_gone_says_how_to_name_them(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((workdir / "data.json").read_text())
    (workdir / "data.json").write_text(json.dumps(record | {"source": "/nowhere"}))
    with pytest.raises(InputError, match="images are not at /nowhere: name them with --data"):
        evaluate_again(workdir)


def test_an_evaluation_on_other_images(finished, tmp_path, capsys):
    other = write(tmp_path / "other", ("bee", "cat"), count=3)
    found = evaluate_again(finished, source=str(other))
    assert "6 evaluation images of 3 classes" in capsys.readouterr().out
    model = llc_jax.load(finished)
    labels, _ = model.classify(sorted(other.glob("*/*.png")))
    accuracy = np.mean(labels == [1, 1, 1, 2, 2, 2])
    assert found["classification/mhd_first"] == pytest.approx(accuracy)
    # The same through the config, with the images to evaluate named there.
    assert evaluate(config(other, data__eval_source=str(other)), finished) == found
    write(other, ["dog"])
    assert cli.main(["eval", str(finished), "--data", str(other)]) == 2
    assert "classes that the run was not trained on: dog" in capsys.readouterr().err


def test_an_evaluation_of_a_folder_that_has_grown_says_so(photos, tmp_path, capsys):
    grown = shutil.copytree(photos, tmp_path / "photos")
    stages = {"linear": tree()["stages"]["linear"]}
    run(config(grown) | {"stages": stages}, tmp_path / "run")
    write(grown, ["bee"], count=20)
    evaluate_again(tmp_path / "run")
    assert "have changed since the run was begun: 'bee' has 20" in capsys.readouterr().out
    for name in os.listdir(grown):
        shutil.rmtree(grown / name)
    with pytest.raises(InputError, match="There are no images in"):
        evaluate_again(tmp_path / "run")


def test_readers_that_hang_end_an_evaluation(monkeypatch, capsys):
    def hang(*_, **__):
        raise ReadersFailed("Reading has stalled.")

    def end(status):
        raise SystemExit(status)

    monkeypatch.setattr("llc_jax.experiment.evaluate.evaluate_again", hang)
    monkeypatch.setattr("os._exit", end)
    with pytest.raises(SystemExit, match="1"):
        cli.main(["eval", "runs/photos"])
    assert capsys.readouterr().err == "error: Reading has stalled.\n"
