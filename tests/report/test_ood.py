import csv

import numpy as np
import rich.console
from sklearn.metrics import average_precision_score, roc_auc_score

from llc_jax.evaluation.ood_detection import Detected
from llc_jax.report.ood import ood_table, write_ood_tables


def draw(table):
    console = rich.console.Console(width=80, record=True)
    console.print(table)
    return console.export_text()


def test_tables_have_openoods_form(tmp_path):
    rng = np.random.default_rng(0)
    known = rng.normal(size=500)
    unknown = {"near/cifar10": rng.normal(1, 1, 300), "near/tin": rng.normal(2, 1, 200)}
    unknown["far/svhn"] = rng.normal(3, 1, 100)
    scores = {name: {"energy": values} for name, values in unknown.items()}
    write_ood_tables(tmp_path / "ood", Detected({"energy": known}, scores).measure(), 0.7725)
    (file,) = (tmp_path / "ood").iterdir()
    assert file.name == "energy.csv"
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["dataset"] for row in rows] == ["cifar10", "tin", "nearood", "svhn", "farood"]
    assert list(rows[0])[1:] == ["FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"]
    assert {row["ACC"] for row in rows} == {"77.25"}
    labels = np.repeat([0, 1], [500, 300])
    values = np.concatenate([known, unknown["near/cifar10"]])
    assert rows[0]["AUROC"] == f"{100 * roc_auc_score(labels, values):.2f}"
    assert rows[0]["AUPR_OUT"] == f"{100 * average_precision_score(labels, values):.2f}"
    assert rows[0]["AUPR_IN"] == f"{100 * average_precision_score(1 - labels, -values):.2f}"
    areas = [float(row["AUROC"]) for row in rows]
    assert abs(areas[2] - (areas[0] + areas[1]) / 2) < 0.011
    assert rows[3] | {"dataset": "farood"} == rows[4]


def test_the_console_shows_the_means_of_each_group_in_a_narrow_terminal():
    results = {"classification/mhd": 0.5, "ood/near/images": 3}
    for stage in ("", "codebook/"):
        for row, auroc in (("near", 0.8), ("near/cifar10", 0.1), ("far/svhn", 0.2), ("far", 0.9)):
            for score in ("weighted_distance", "outside_radius"):
                figures = {"auroc": auroc, "fpr95": 1.0, "fpr95_min": 0.65}
                results |= {f"ood/{stage}{row}/{score}/{k}": v for k, v in figures.items()}
    text = draw(ood_table(results))
    lines = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line] for line in lines]
    numbers = ["80.00", "65.0-100.0", "90.00", "65.0-100.0"]
    assert cells == [
        ["weighted distance", *numbers],
        ["outside radius", *numbers],
        ["codebook: weighted distance", *numbers],
        ["codebook: outside radius", *numbers],
    ]
    near = {key: value for key, value in results.items() if "/far/" not in key}
    assert "far" not in draw(ood_table(near))
    assert ood_table({"classification/mhd": 0.5}) is None
