import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.experiment.evaluate import evaluate
from llc_jax.experiment.run import run
from llc_jax.experiment.run_report import write_report
from llc_jax.report.classes import read_confusions
from llc_jax.training import logging
from llc_jax.training.loop import Diverged
from llc_jax.training.preemption import Stopped
from tests.tiny import tree
from tests.workdirs import assert_same_weights, records

ALEXNET = {"name": "alexnet", "dtype": "float32"}
RESULTS = {
    *("codebook/unique", "codebook/min_distance"),
    *(f"classification/{name}" for name in ("class_code", "linear", "ed", "ed_official")),
    *(f"classification/{name}" for name in ("mhd", "mhd_first", "soft", "bits_right")),
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The workdir of a run that nothing stopped, on eight devices, and its step losses."""
    workdir = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        losses = record_losses(patch)
        run(tree(), workdir)
    return workdir, losses


def record_losses(patch, stop_at=None):
    """Records each step's loss; sends SIGTERM once so many steps were taken in all."""
    losses = []

    def note(step, loss, images_per_second):
        losses.append((step, loss))
        if len(losses) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(logging, "_no_bar", note)
    return losses


def test_leaves_a_whole_workdir(unbroken):
    workdir, _ = unbroken
    for name in ("config.json", "codebook.npz", "metrics.jsonl", "results.json", "tensorboard"):
        assert (workdir / name).exists()
    results = json.loads((workdir / "results.json").read_text())
    assert set(results) >= RESULTS
    assert results["codebook/unique"] == Codebook.load(workdir / "codebook.npz").num_unique
    assert results["classification/linear"] > 0.5
    assert 0 <= results["classification/ed"] <= results["classification/mhd"] <= 1
    assert not list(workdir.rglob(".*"))


def test_leaves_what_each_class_was_taken_for(unbroken, capsys):
    workdir, _ = unbroken
    results = json.loads((workdir / "results.json").read_text())
    for stage, name in (("instance", "mhd_first"), ("linear", "linear")):
        confusions = read_confusions(workdir / stage / "confusion.csv")
        right = sum(images for true, predicted, images in confusions if true == predicted)
        total = sum(images for *_, images in confusions)
        assert right / total == pytest.approx(results[f"classification/{name}"], abs=1e-6)
    run(tree(), workdir)
    out = capsys.readouterr().out
    assert "most often taken for" in out
    assert "instance/confusion.csv" in out


def test_evaluates_again_what_is_trained(unbroken):
    workdir, _ = unbroken
    results = json.loads((workdir / "results.json").read_text())
    found = evaluate(tree(), workdir)
    assert found.keys() >= {"classification/mhd", "codebook/unique"}
    assert found == {key: results[key] for key in found}
    confusions = (workdir / "evaluation_confusion.csv").read_text()
    assert confusions == (workdir / "instance" / "confusion.csv").read_text()
    (workdir / "evaluation.json").unlink()


def test_says_that_it_evaluates_an_unfinished_stage(unbroken, tmp_path, capsys):
    workdir = shutil.copytree(unbroken[0], tmp_path / "run")
    (workdir / "instance" / "results.json").unlink()
    assert evaluate(tree(), workdir)["classification/mhd"] > 0.5
    assert "'instance' is not finished: its newest checkpoint" in capsys.readouterr().out


def assert_retrieval(results, way):
    """Checks the figures of a way to search, at 10 and at all."""
    forms = ("cmap_min", "cmap", "cmap_max", "cmap_tie", "rmap", "recall")
    least, given, most, tied, reported, _ = (results[f"{way}{form}@10"] for form in forms)
    assert 0 < least <= given <= most < 1
    assert least <= tied <= most
    assert given <= reported + 1e-12
    assert results[f"{way}recall@2000"] == pytest.approx(1)


def test_retrieval_can_be_measured_later(unbroken, capsys):
    workdir, _ = unbroken
    results = evaluate(tree(retrieval=(10, 2000)), workdir)
    for way in ("", "asymmetric/", "cosine/", "dot/"):
        assert_retrieval(results, f"retrieval/{way}")
    assert results["retrieval/cmap_min@10"] < results["retrieval/cmap_max@10"]
    assert 0 < results["retrieval/precision_radius_2"] < 1
    assert "retrieval by" in capsys.readouterr().out
    assert not (workdir / "instance" / "pr_curve.npz").exists()
    with np.load(workdir / "evaluation_pr_curve.npz") as curves:
        assert curves["radius/precision"].shape == (9,)
        assert curves["rank/recall"][-1] == pytest.approx(1)
    (workdir / "evaluation.json").unlink()
    (workdir / "evaluation_pr_curve.npz").unlink()


def test_retrieval_by_features_and_of_unseen_classes(tmp_path):
    linear = tree()["stages"]["linear"] | {"epochs": 1}
    changed = tree(stages={"linear": linear}, retrieval=(10, 2000), data__held_out_classes=2)
    results = run(changed, tmp_path)
    for way in ("cosine/", "dot/", "unseen/cosine/", "unseen/dot/"):
        assert_retrieval(results, f"retrieval/linear/{way}")
    # Among the unseen are two classes, and the seen are not.
    assert results["retrieval/linear/unseen/dot/precision@2000"] == pytest.approx(0.5, abs=0.02)
    with np.load(tmp_path / "linear" / "pr_curve.npz") as curves:
        assert curves["unseen/dot/rank/recall"][-1] == pytest.approx(1)


def test_cannot_evaluate_what_is_not_trained(tmp_path):
    with pytest.raises(InputError, match="There is no checkpoint in"):
        evaluate(tree(), tmp_path)


def test_knows_the_steps_of_the_stages_to_come(tmp_path, monkeypatch):
    expected = []
    monkeypatch.setattr(logging.RunLog, "expect", lambda _, *given: expected.append(given))
    run(tree(), tmp_path)
    # 14 steps an epoch; 2, 3 and 2 epochs.
    assert expected == [(70, 64), (28, 64), (0, 64)]


def test_logs_every_epoch(unbroken):
    found = records(unbroken[0])
    assert [(record["stage"], record["epoch"]) for record in found] == [
        *(("linear", epoch) for epoch in (1, 2)),
        *(("codebook", epoch) for epoch in (1, 2, 3)),
        *(("instance", epoch) for epoch in (1, 2)),
    ]
    assert found[0].keys() >= {"loss", "accuracy", "learning_rate", "step"}
    assert found[2].keys() >= {"logit_scale", "flipped_bits", "unique_codes", "min_distance"}
    assert found[5].keys() >= {"loss", "bits_right"}
    for epochs in (found[:2], found[2:5], found[5:]):
        assert epochs[-1]["loss"] < epochs[0]["loss"]


def test_a_finished_run_says_so(unbroken, capsys):
    workdir, _ = unbroken
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    results = run(tree(data__workers=3), workdir)
    assert results == json.loads((workdir / "results.json").read_text())
    assert "This run is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_makes_a_report_unless_it_is_switched_off(unbroken, tmp_path, capsys):
    assert (unbroken[0] / "report.html").exists()
    workdir = shutil.copytree(unbroken[0], tmp_path / "run")
    (workdir / "report.html").unlink()
    run(tree(report=False), workdir)
    assert "Report" not in capsys.readouterr().out
    assert not (workdir / "report.html").exists()
    run(tree(), workdir)
    *_, report, last = capsys.readouterr().out.splitlines()
    assert (report, last) == (f"Report: {workdir}/report.html", f"Run: {workdir}")
    assert "phase 2: MHD, nearest class code" in (workdir / "report.html").read_text()


def test_a_report_of_the_unfinished_run_is_replaced_at_its_end(unbroken, tmp_path):
    workdir = shutil.copytree(unbroken[0], tmp_path / "run")
    (workdir / "results.json").unlink()
    write_report(workdir)
    assert "This run is not finished" in (workdir / "report.html").read_text()
    run(tree(), workdir)
    assert "This run is not finished" not in (workdir / "report.html").read_text()


# 14 steps an epoch: the run stops in each stage, within an epoch and at its end.
@pytest.mark.parametrize("stops", [[5, 14, 30, 3], [60]])
def test_stopped_and_continued_is_bit_identical(unbroken, tmp_path, monkeypatch, stops):
    for stop in stops:
        record_losses(monkeypatch, stop_at=stop)
        with pytest.raises(Stopped, match="the same command continues"):
            run(tree(), tmp_path)
    record_losses(monkeypatch)
    results = run(tree(), tmp_path)
    assert_same_weights(tmp_path, unbroken[0], rtol=0, atol=0)
    assert records(tmp_path) == records(unbroken[0])
    assert results == json.loads((unbroken[0] / "results.json").read_text())


@pytest.mark.slow
def test_continues_on_other_devices(unbroken, tmp_path, monkeypatch):
    _, expected = unbroken
    found = []
    for devices, stop in [(8, 20), (2, 30), (1, None)]:
        losses = record_losses(monkeypatch, stop_at=stop)
        if stop is None:
            run(tree(), tmp_path, jax.devices()[:devices])
        else:
            with pytest.raises(Stopped):
                run(tree(), tmp_path, jax.devices()[:devices])
        found += losses
    # The last loss before a stop is not read; all others are there, in order.
    by_step = iter(expected)
    for step, loss in found:
        matching = next(value for at, value in by_step if at == step)
        assert loss == pytest.approx(matching, abs=1e-5)
    assert len(found) >= len(expected) - 2


def test_a_checkpoint_within_the_epoch_does_not_change_the_result(unbroken, tmp_path):
    run(tree(checkpoint__steps=5, checkpoint__keep=4), tmp_path)
    assert_same_weights(tmp_path, unbroken[0], rtol=0, atol=0)
    kept = sorted(int(p.name) for p in (tmp_path / "linear" / "checkpoints").iterdir())
    assert kept == [15, 20, 25, 28]


def test_a_stage_that_was_not_evaluated_is_evaluated(unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "run")
    for name in ("results.json", "instance/results.json"):
        (tmp_path / "run" / name).unlink()
    assert run(tree(), tmp_path / "run") == json.loads((unbroken[0] / "results.json").read_text())


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    changed = tree(stages__codebook__optimizer__learning_rate=1e30)
    with pytest.raises(Diverged, match=r"Stage codebook .* at step [23] .*Lower the"):
        run(changed, tmp_path)
    assert not (tmp_path / "results.json").exists()
    assert not list((tmp_path / "codebook" / "checkpoints").glob("*"))
    with pytest.raises(Diverged, match="No checkpoint was made yet"):
        run(changed, tmp_path)


def test_divergence_keeps_the_last_good_checkpoint(unbroken, tmp_path):
    shutil.copytree(unbroken[0] / "linear", tmp_path / "linear")
    shutil.rmtree(tmp_path / "linear" / "checkpoints" / "28")
    (tmp_path / "linear" / "results.json").unlink()
    with pytest.raises(Diverged, match="The checkpoint of step 14 is kept"):
        run(tree(stages__linear__optimizer__learning_rate=1e30), tmp_path)
    assert [p.name for p in (tmp_path / "linear" / "checkpoints").iterdir()] == ["14"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 60}, "batch of 60 cannot be divided among 8 devices"),
        ({"batch_size": 2000}, "batch of 2000 is larger than the 89[89] training images"),
        ({"seed": -1}, "config.seed is at least 0, not -1"),
        ({"num_microbatches": 0}, "config.num_microbatches is at least 1, not 0"),
        (
            {"num_microbatches": 3},
            "batch of 64 cannot be divided into 3 microbatches, each over 8 devices",
        ),
        (
            {"num_microbatches": 2, "stages__instance__objective": {"name": "hashnet"}},
            "num_microbatches is 1 for the objective 'hashnet' of config.stages.instance, which",
        ),
        ({"batch_size": 0}, "config.batch_size is at least 1, not 0"),
        ({"num_bits": 1025}, "between 1 and 1024 bits, not 1025"),
        ({"data__source": "/nowhere"}, "no data at /nowhere"),
        ({"data__sauce": "x"}, "config.data has no key 'sauce'. Did you mean 'source'"),
        ({"data__augment": {"pat": 1}}, "no option 'pat'. Did you mean 'pad'"),
        ({"data__augment": {"randaugment": (2, 9)}}, "memory, has no option .* It has pad, flip"),
        (
            {"data__in_memory": False, "data__augment": {"randaugment": (2, 90)}},
            r"randaugment is the number of layers, .* from 0 to 10, .*, not \(2, 90\)",
        ),
        ({"model__name": "resnet5"}, "config.model.name is one of .*Did you mean 'resnet50'"),
        ({"model__widht": 3}, "backbone cnn has no option 'widht'. Did you mean 'width'"),
        ({"model__dtype": "float16"}, "model.dtype is one of bfloat16, float32, not 'float16'"),
        ({"stages__linear__epochs": 0}, "config.stages.linear.epochs is at least 1, not 0"),
        ({"stages__linear__epochs": "two"}, "config.stages.linear.epochs is int, not 'two'"),
        ({"stages__codebook__init_from": "liner"}, "init_from is one of .*Did you mean 'linear'"),
        ({"stages__linear__init_from": "codebook"}, "init_from is one of pretrained, scratch, not"),
        ({"stages__linear__objective": {"name": "softmx"}}, "Did you mean 'softmax'"),
        ({"stages__linear__objective__smoothing": 1.0}, "softmax has no option 'smoothing'"),
        (
            {"stages__linear__head": {"name": "code"}},
            "head.name is 'linear' or 'bottleneck' or 'class_number' for the objective",
        ),
        ({"codebook": ""}, "'instance' needs a codebook, or a file of one: config.codebook is"),
        ({"stages__instance__codebook": "x.npz"}, "no codebook at x.npz"),
        (
            {"codebook": "hadamrd"},
            "'instance' is one of cca, .*svd, or a file, not 'hadamrd'. Did you mean 'hadamard'",
        ),
        ({"codebook": "svd", "num_bits": 11}, "'svd', which has at most 10 bits for 10 classes"),
        ({"codebook": "cca", "num_bits": 10}, "'cca', which has at most 9 bits for 10 classes"),
        ({"stages__linear__codebook": "learnt"}, "no stage with a codebook head before it"),
        ({"stages__linear__codebook": "svd"}, "is 'svd', but there is no stage with a linear"),
        ({"stages__linear__optimizer__schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"stages": {}}, "config.stages is empty"),
        ({"prefixes": (4, 8)}, "config.prefixes are from 1 to 7, not 8"),
        ({"retrieval": (1000, 0)}, "config.retrieval are ranks from 1, not 0"),
        ({"data__protocol__name": "seded"}, "is one of '', imagenet100, seeded, not 'seded'"),
        ({"decoders": ("med",)}, "no decoder 'med'; there are ed, mhd"),
        ({"data__image_size": 6, "model": ALEXNET}, "alexnet does not take images of 6 pixels"),
        ({"stages__linear__trainable_blocks": 4}, "trainable_blocks is from 0 to 3"),
        ({"data__on_error": "ignore"}, "config.data.on_error is one of skip, stop"),
        ({"init_from": "none.pth"}, "There are no weights at none.pth"),
        ({"init_from": "none.npz"}, "Weights are a file of .safetensors, .pth"),
        ({"stages__linear__mixup": -1}, "config.stages.linear.mixup is at least 0, not -1"),
        ({"stages__linear__mixup": float("nan")}, "linear.mixup is at least 0, not nan"),
        ({"prefixes": 4}, "config.prefixes is tuple | list, not 4"),
        ({"prefixes": ("a",)}, r"config.prefixes\[0\] is int, not 'a'"),
    ],
)
def test_a_wrong_config_fails_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(tree(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_config_in_the_workdir_is_an_error(unbroken):
    changed = tree(seed=3, stages__linear__epochs=9)
    with pytest.raises(InputError, match=r"seed is 0 there and 3 here; .*epochs is 2 there and 9"):
        run(changed, unbroken[0])


def test_a_run_goes_on_that_was_begun_before_a_key_with_a_default(unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "run")
    before = json.loads((tmp_path / "run" / "config.json").read_text())
    for stage in before["stages"].values():
        del stage["mixup"]
    del before["retrieval"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(before))
    assert run(tree(data__augment__randaugment=None), tmp_path / "run")
    with pytest.raises(InputError, match=r"linear.mixup is 0.0 there and 0.5 here\. Choose"):
        run(tree(stages__linear__mixup=0.5), tmp_path / "run")


def test_mixup_of_a_stage(unbroken, tmp_path, monkeypatch):
    losses = record_losses(monkeypatch)
    linear = tree()["stages"]["linear"] | {"mixup": 5.0}
    run(tree(stages={"linear": linear}), tmp_path)
    mixed, plain = ([loss for _, loss in found[14:28]] for found in (losses, unbroken[1]))
    assert np.mean(mixed) > np.mean(plain) + 0.1


def test_evaluates_on_the_way(tmp_path, capsys):
    run(tree(eval_epochs=1) | {"stages": {"linear": tree()["stages"]["linear"]}}, tmp_path)
    (evaluated,) = re.findall(r"evaluation:  accuracy \d+\.\d%", capsys.readouterr().out)
    assert evaluated
    found = records(tmp_path)
    assert "class_logits" in found[0]
    assert "class_logits" not in found[1]


def test_a_workdir_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"Cannot write in {tmp_path}/file/run: Not a directory"):
        run(tree(), tmp_path / "file" / "run")
