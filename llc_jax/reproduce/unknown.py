"""Figures 5 and 6 of the paper, from the scores of unknown images that a run has kept."""

import pathlib
from collections.abc import Sequence

from llc_jax.evaluation import ood_baselines
from llc_jax.evaluation.ood_detection import Detected
from llc_jax.experiment.run_report import read_ood_scores
from llc_jax.experiment.workdir import StageDirectory, read_config

# What is compared: attributes of `ood_baselines.Comparison`.
KINDS = ("codes", "tuned", "fixed")


def read_f1(
    workdir: pathlib.Path, sets: Sequence[str], *, representative: bool
) -> dict[str, float | None]:
    """Compares the codes of a finished run with thresholds that are tuned on n unknown images.

    Args:
      workdir: of the run.
      sets: of unknown images, `<group>/<name>`.
      representative: as in `ood_baselines.compare_detected`: figure 6, or figure 5.

    Returns:
      The mean F1 over all repeats, `<set>/<kind>@<n>`; and `<set>/least`, the least n at which
      the tuned threshold is as good as the codes, None where it is at none.

    Raises:
      InputError: if the run has kept no such scores.
    """
    stages = [StageDirectory(workdir / name) for name in read_config(workdir).stages]
    found = read_ood_scores(stages) or Detected({}, {})
    figures: dict[str, float | None] = {}
    for name in sets:
        compared = ood_baselines.compare_detected(found, name, representative=representative)
        for kind in KINDS:
            means = ood_baselines.band(getattr(compared, kind)).mean.tolist()
            for count, mean in zip(compared.counts.tolist(), means, strict=True):
                figures[f"{name}/{kind}@{count}"] = mean
        figures[f"{name}/least"] = ood_baselines.samples_to_match(compared)
    return figures
