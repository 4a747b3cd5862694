import numpy as np
import pytest
import sklearn.metrics

from llc_jax.errors import InputError
from llc_jax.evaluation.ood_detection import Detected
from llc_jax.report.unknown import curves
from tests.made_runs import make_ood_scores


@pytest.fixture(scope="module")
def found():
    return {(curve["set"], curve["score"]): curve for curve in curves(make_ood_scores())}


def test_points_lie_on_the_curve_of_scikit_learn(found):
    scores = make_ood_scores()
    for (name, score), curve in found.items():
        known, unknown = scores.known[score], scores.unknown[name][score]
        labels = np.repeat([0, 1], [len(known), len(unknown)])
        fpr, tpr, _ = sklearn.metrics.roc_curve(
            labels, np.concatenate([known, unknown]), drop_intermediate=False
        )
        exact = set(zip(fpr.round(4).tolist(), tpr.round(4).tolist(), strict=True))
        roc = curve["roc"]
        points = list(zip(roc["known"], roc["unknown"], strict=True))
        assert set(points) <= exact
        assert (points[0], points[-1]) == ((0, 0), (1, 1))
        assert len(points) <= 161
        for threshold, share in list(zip(roc["threshold"], roc["unknown"], strict=True))[1:]:
            assert np.mean(unknown >= threshold) == pytest.approx(share, abs=0.005)


def test_histograms_have_all_images(found):
    for (_, score), curve in found.items():
        histogram = curve["histogram"]
        for kind in ("known", "unknown"):
            assert len(histogram[kind]) == len(histogram["at"])
            assert sum(histogram[kind]) == pytest.approx(1, abs=1e-3)
        if score == "nearest_distance":
            assert histogram["at"] == [0, 1, 2, 3, 4, 5][: len(histogram["at"])]
    distances = make_ood_scores().known["nearest_distance"]
    shares = found["a/b", "nearest_distance"]["histogram"]["known"]
    counted = np.bincount(distances, minlength=len(shares)) / len(distances)
    np.testing.assert_allclose(shares, counted, atol=1e-4)


@pytest.mark.parametrize("unknown", [np.zeros(4), np.ones(4), np.arange(4) > 1])
def test_scores_of_one_or_two_values_are_drawn(unknown):
    (curve,) = curves(Detected({"s": np.zeros(3)}, {"x": {"s": unknown}}))
    assert curve["roc"]["unknown"][-1] == 1
    assert sum(curve["histogram"]["known"]) == 1


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="Score 1 of the OOD images is nan"):
        curves(Detected({"s": np.zeros(3)}, {"x": {"s": np.array([0, np.nan])}}))


def test_scores_are_read_as_they_were_written():
    scores = make_ood_scores()
    again = Detected.from_arrays(scores.as_arrays())
    assert curves(again) == curves(scores)
