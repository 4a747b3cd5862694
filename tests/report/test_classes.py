import numpy as np
import pytest
import rich.console

from llc_jax.errors import InputError
from llc_jax.report import classes
from llc_jax.report.classes import Confusion

CONFUSIONS = [
    Confusion("cat", "cat", 6),
    Confusion("cat", "dog", 3),
    Confusion("cat", "fox, red", 1),
    Confusion("dog", "cat", 1),
    Confusion("dog", "dog", 1),
    Confusion("fox, red", "fox, red", 2),
]


def test_pairs_of_classes_are_counted():
    labels = np.array([0] * 10 + [1, 1, 2, 2])
    predictions = np.array([0, 0, 1, 2, 1, 0, 0, 1, 0, 0, 0, 1, 2, 2])
    assert classes.count_confusions(labels, predictions, ("cat", "dog", "fox, red")) == CONFUSIONS


def test_a_csv_gives_back_what_was_written(tmp_path):
    strange = [*CONFUSIONS, Confusion("a\nb", "\udcff", 4)]
    classes.write_confusions(tmp_path / "confusion.csv", strange)
    assert classes.read_confusions(tmp_path / "confusion.csv") == strange
    first = (tmp_path / "confusion.csv").read_text(errors="replace").splitlines()[0]
    assert first == "class,predicted,images"


@pytest.mark.parametrize("content", ["", "class,predicted,images\na,b\n", "x\na,b,many\n"])
def test_a_damaged_csv_is_one_clear_error(tmp_path, content):
    (tmp_path / "confusion.csv").write_text(content)
    with pytest.raises(InputError, match=r"confusion.csv .*: remove it, and the run has no table"):
        classes.read_confusions(tmp_path / "confusion.csv")


def test_the_table_begins_with_the_class_that_is_recognised_least():
    console = rich.console.Console(width=80, record=True)
    console.print(classes.classes_table(CONFUSIONS, "instance/confusion.csv"))
    text = console.export_text()
    lines = [line for line in text.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines] == [
        ["dog", "2", "50.0%", "cat 50.0%"],
        ["cat", "10", "60.0%", "dog 30.0%, fox, red 10.0%"],
        ["fox, red", "2", "100.0%", ""],
    ]
    assert "all confusions: instance/confusion.csv" in text


def test_the_table_of_many_classes_is_short_and_takes_names_as_they_are():
    many = [Confusion(f"[red]{index}\n", f"[red]{index}\n", 1) for index in range(1000)]
    console = rich.console.Console(width=80, record=True)
    console.print(classes.classes_table(many, "x.csv"))
    text = console.export_text()
    assert "[red]0?" in text
    assert "990 more classes, and all confusions: x.csv" in text
    assert len(text.splitlines()) == 15
