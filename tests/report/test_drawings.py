import sys
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest

from llc_jax.experiment.run_report import write_report
from llc_jax.report import mosaics
from tests.made_runs import NASTY, make_run

NAMES = (*NASTY, "$x_{", "\u9f8d", "a\udcff", *(f"class {index}" for index in range(9)))
WHOLE = {
    *("codebook", "distances", "pairs_at_distances", "wrong_at_distances", "representations"),
    *("confusions", "training_linear", "training_codebook", "training_instance"),
    *("retrieval_instance", "decoders", "unknown_a_b", "bits", "found"),
}


@pytest.mark.parametrize(
    ("names", "images", "expected"),
    [(NAMES, True, WHOLE), (["only"], False, {"codebook", "confusions", "decoders"})],
)
def test_every_figure_is_a_png_and_an_svg(tmp_path, names, images, expected):
    pytest.importorskip("matplotlib", reason="pip install 'llc_jax[report]'")
    write_report(make_run(tmp_path, names, images=images))
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    drawn = {name.rpartition(".")[0] for name in files}
    assert files == {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    assert expected <= drawn
    for path in (tmp_path / "figures").iterdir():
        if path.suffix == ".svg":
            root = ElementTree.parse(path).getroot()
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert "script" not in {element.tag.rpartition("}")[2] for element in root.iter()}
        else:
            assert cv2.imread(str(path)).std() > 1


def test_where_matplotlib_is_missing_there_is_the_page_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert write_report(make_run(tmp_path, ["a", "b", "c"])).exists()
    assert not (tmp_path / "figures").exists()


def test_images_lie_in_their_places():
    pictures = [np.full((8, 8, 3), 20 * index, np.uint8) for index in range(6)]
    images = [["a", None], ["a", None], ["b", None], ["a", None], ["b", None], ["b", None]]
    examples = {
        "images": images,
        "bits": [{"balance": 0.5, "sides": [[[5, 0.9], [4, 0.8]], [[1, 0.7]]]}],
        "queries": [{"image": 3, "found": [[1, 0], [2, 1]]}],
    }
    mosaic = mosaics.found(examples, pictures)
    assert mosaic.labels == ["a"]
    row = mosaic.pixels[int(mosaic.rows[0])]
    # The query, then what it has found, right in green and wrong in red.
    colours = [tuple(colour) for colour in row.tolist()]
    places = [colours.index((20 * index,) * 3) for index in (3, 1, 2)]
    assert places == sorted(places)
    frames = [colours[place - 1] for place in places]
    assert frames == [mosaics._QUERY, mosaics._RIGHT, mosaics._WRONG]
    mosaic = mosaics.hyperplanes(examples, pictures)
    row = [tuple(colour) for colour in mosaic.pixels[int(mosaic.rows[0])].tolist()]
    places = [row.index((20 * index,) * 3) for index in (5, 4, 1)]
    assert places == sorted(places)
    assert mosaic.labels == ["bit 0, 50% +1"]
