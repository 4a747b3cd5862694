import base64
import html.parser
import json
import re
import shutil
import time

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from sklearn.metrics import pairwise_distances

from llc_jax.cli import main
from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.experiment.run_report import report_lines, write_report
from tests.made_runs import NASTY, make_ood_scores, make_run


class Page(html.parser.HTMLParser):
    """What a browser takes a page for: its elements, and the text of cells and scripts."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.cells, self.scripts, self._open = [], [], {}, None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self._open = (tag, attributes)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, text):
        tag, attributes = self._open or ("", {})
        if tag == "td":
            self.cells[-1] += text
        if tag == "script":
            name = attributes.get("type", "")
            self.scripts[name] = self.scripts.get(name, "") + text

    @property
    def figures(self):
        return json.loads(self.scripts["application/json"])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The report of a run of three classes whose names would do harm."""
    return write_report(make_run(tmp_path_factory.mktemp("small"), NASTY))


def test_names_are_text_wherever_they_are_shown(small):
    page = Page(small)
    assert page.figures["names"] == list(NASTY)
    assert set(NASTY) <= set(page.cells)
    kinds = [tag for tag, _ in page.elements]
    assert kinds.count("script") == 2
    assert "img" not in kinds


def test_the_page_loads_nothing(small):
    page = Page(small)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert attributes.get("href", "#").startswith("#")
    text = small.read_text(encoding="utf-8")
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}
    (policy,) = [a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_the_page_has_what_the_run_has(small):
    page = Page(small)
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == [
        *("results", "codes", "images", "distances", "confusions", "unknown", "training"),
        *("retrieval", "classes", "config"),
    ]
    assert {"phase 2: MHD, nearest class code", "87.50%", "40,000,000"} <= set(page.cells)
    figures = page.figures
    assert [stage["stage"] for stage in figures["training"]] == ["linear", "codebook", "instance"]
    losses = figures["training"][0]["metrics"]["loss"]
    assert losses[:3] == [3.0, None, 1.0]  # A loss that was no number is left out.
    titles = [(curve["title"], curve["by"]) for curve in figures["retrieval"]]
    assert titles == [("bits", "rank"), ("logits with first 4 bits", "rank"), ("bits", "radius")]
    assert figures["retrieval"][0]["at"][-1] == 1000
    assert [decoder["name"] for decoder in figures["decoders"]] == ["instance: mhd", "instance: ed"]
    assert figures["confusions"]["totals"] == [48, 48, 48]


def test_codes_and_their_neighbours_are_those_of_the_codebook(tmp_path):
    names = [f"class {index}" for index in range(40)]
    figures = Page(path := write_report(make_run(tmp_path, names, num_bits=33))).figures
    signs = Codebook.load(tmp_path / "codebook.npz").latent >= 0
    letters = np.array(list(figures["codes"])).reshape(40, 33)
    np.testing.assert_array_equal(letters == "1", signs)
    assert sorted(figures["order"]) == list(range(40))
    cells = Page(path).cells
    columns = 8
    rows = [cells[-columns * row - columns :][:columns] for row in range(40)]
    distances = pairwise_distances(signs, metric="hamming") * 33
    np.fill_diagonal(distances, np.inf)
    for name, *_, nearest, bits, code in rows:
        index = names.index(name)
        assert round(distances[index].min()) == int(bits)
        assert round(distances[index, names.index(nearest)]) == int(bits)
        assert code == "".join(letters[index])


def test_products_of_representations_are_those_of_the_classifier(tmp_path):
    figures = Page(write_report(make_run(tmp_path, [f"class {i}" for i in range(40)]))).figures
    weights = np.load(tmp_path / "linear" / "examples.npz")["class_weights"]
    products, found = weights @ weights.T, figures["representations"]
    low, high = found["ends"]
    # Row by row: of each class, the pairs with itself and those after it.
    values = iter(base64.b64decode(found["products"]))
    for a in range(40):
        for b in range(a, 40):
            expected = np.clip(products[a, b], low, high)
            assert low + (high - low) * next(values) / 255 == pytest.approx(
                expected, abs=(high - low) / 255
            )
    assert next(values, None) is None
    signs = Codebook.load(tmp_path / "codebook.npz").latent >= 0
    of_codes, correlations = signs @ (1.0 * signs.T) + ~signs @ (1.0 * ~signs.T), []
    for a in range(40):
        others = np.arange(40) != a
        correlation = scipy.stats.spearmanr(of_codes[a, others], products[a, others])
        correlations.append(correlation.statistic)
    assert found["spearman"] == pytest.approx(np.mean(correlations), abs=1e-4)


def test_without_images_there_are_no_such_parts(tmp_path):
    page = Page(write_report(make_run(tmp_path, ["a", "b", "c"], images=False)))
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert not {"images", "unknown"} & set(sections)
    assert page.figures["examples"] is page.figures["representations"] is None
    assert "representations-figure" not in [attributes.get("id") for _, attributes in page.elements]


def test_unknown_images_have_a_table(small):
    page = Page(small)
    row = page.cells.index("soft energy")
    assert page.cells[row - 1] == NASTY[0]
    scores = make_ood_scores()
    known, unknown = scores.known["soft_energy"], scores.unknown[NASTY[0]]["soft_energy"]
    labels = np.repeat([0, 1], [500, 300])
    auroc = sklearn.metrics.roc_auc_score(labels, np.concatenate([known, unknown]))
    assert page.cells[row + 1] == f"{auroc:.1%}"


def test_one_class_has_no_dendrogram(tmp_path):
    figures = Page(write_report(make_run(tmp_path, ["only"]))).figures
    assert (figures["order"], figures["links"]) == ([0], [])


def test_a_thousand_classes_make_a_small_page_in_seconds(tmp_path):
    make_run(tmp_path, [f"a rather long name of a class, number {i:04d}" for i in range(1000)], 64)
    start = time.process_time()
    path = write_report(tmp_path)
    assert time.process_time() - start < 20
    assert path.stat().st_size < 4e6
    assert len(Page(path).figures["links"]) == 999


def test_the_confusions_of_many_classes_are_bounded(tmp_path):
    names = [f"class {index}" for index in range(300)]
    make_run(tmp_path, names)
    rows = [f"{a},{b},{2 if a == b else 1}" for a in names for b in names]
    text = "\n".join(["class,predicted,images", *rows])
    (tmp_path / "instance" / "confusion.csv").write_text(text)
    figures = Page(write_report(tmp_path)).figures
    assert len(figures["confusions"]["pairs"]) == 300 + 20_000
    assert figures["confusions"]["most_left_out"] == 1
    assert set(figures["confusions"]["totals"]) == {301}


def test_names_that_are_no_text_are_shown_nevertheless(tmp_path):
    path = write_report(make_run(tmp_path, ["a\udcff", "b\nb", "c"]))
    assert Page(path).figures["names"] == ["a\udcff", "b\nb", "c"]
    assert "a?" in Page(path).cells


def test_an_unfinished_run_has_a_report_of_what_there_is(tmp_path):
    make_run(tmp_path, ["a", "b", "c"])
    (tmp_path / "results.json").unlink()
    (tmp_path / "codebook.npz").unlink()
    shutil.rmtree(tmp_path / "instance")
    page = Page(path := write_report(tmp_path))
    assert "This run is not finished" in path.read_text()
    assert page.figures["bits"] == 20  # Of the stage before.
    assert page.figures["confusions"]["stage"] == "codebook"
    for stage in ("linear", "codebook"):
        shutil.rmtree(tmp_path / stage)
    (tmp_path / "metrics.jsonl").unlink()
    page = Page(write_report(tmp_path))
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == ["config"]


def test_the_command_makes_the_report(tmp_path, capsys):
    make_run(tmp_path, ["a", "b", "c"])
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"Report: {tmp_path}/report.html\n"
    assert (tmp_path / "report.html").exists()


def test_where_there_is_no_run_or_a_damaged_one_a_sentence_says_so(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "is not the workdir of a run" in capsys.readouterr().err
    make_run(tmp_path, ["a", "b", "c"])
    for file in ("instance/pr_curve.npz", "instance/examples.npz", "instance/ood/scores.npz"):
        path, whole = tmp_path / file, (tmp_path / file).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=rf"{path.name} is damaged .*: remove it"):
            write_report(tmp_path)
        path.write_bytes(whole)


def test_a_failure_is_told_and_not_raised(tmp_path):
    make_run(tmp_path, ["a", "b", "c"])
    (tmp_path / "codebook.npz").write_bytes(b"damaged")
    (line,) = report_lines(tmp_path, anew=True)
    assert line.startswith("There is no report (")
    assert line.endswith(f"llc report {tmp_path} makes one.")
