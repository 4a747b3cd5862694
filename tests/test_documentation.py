"""README, docs and docstrings: links lead somewhere, commands are understood, code runs."""

import ast
import doctest
import importlib
import pathlib
import re
import shlex
import shutil

import cv2
import jax
import numpy as np
import pytest
import sklearn.datasets
from absl import flags
from ml_collections import config_flags

import llc_jax
from llc_jax import cli, main
from llc_jax.data.sources import load_digits
from llc_jax.experiment.run import run
from llc_jax.reproduce import __main__ as reproduce
from llc_jax.reproduce import features
from tests.tiny import tree
from tests.writing import tar_bytes

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Packages that are not installed with llc_jax, not even for the tests; jax.export needs one.
FOREIGN = ("fiftyone", "fastapi", "psycopg", "export")


def blocks(page):
    """Yields (language, text) of each fenced block of a page."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands():
    """Returns (page, words) of each command line in the pages."""
    found = []
    for page in PAGES:
        for language, text in blocks(page):
            for line in text.replace("\\\n", " ").splitlines() if language in ("", "bash") else ():
                if re.match(r"(llc|python|launch/\S+|benchmarks/\S+) ", f"{line} "):
                    found.append((page.name, shlex.split(line, comments=True)))
    return found


def check_llc(words):
    options, overrides = cli._parser().parse_known_args(words)
    assert all(word.startswith("--config.") for word in overrides), overrides
    return options


def check_main(arguments):
    """Reads the config, with what overrides it, as llc_jax.main does."""
    arguments = [word for word in arguments if word != "--config=..."]
    ours = [word for word in arguments if word.startswith("--config")]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    if ours:
        located = main._with_config_file(["llc", *ours])
        assert values(located, known_only=True) == ["llc"], "a key that the config does not have"
    for word in set(arguments) - set(ours):
        assert word.removeprefix("--").split("=")[0] in flags.FLAGS, word


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # Of ml_collections.
@pytest.mark.parametrize(
    ("page", "words"), commands(), ids=[" ".join(words)[:60] for _, words in commands()]
)
def test_commands_are_understood(page, words, monkeypatch):
    program, *arguments = words
    if program == "llc":
        check_llc(arguments)
    elif arguments[:2] == ["-m", "llc_jax.reproduce"]:
        assert reproduce.main([*arguments[2:], "--dry-run"]) == 0
    elif arguments[:2] == ["-m", "llc_jax.reproduce.features"]:
        features._parser().parse_args(arguments[2:])
    elif arguments[:2] == ["-m", "llc_jax.main"]:
        monkeypatch.setattr("sys.argv", ["llc", *arguments[2:]])  # Where ml_collections looks.
        check_main(arguments[2:])
    else:
        script = arguments[0] if program == "python" else program
        assert (ROOT / script).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    named = re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|sh|yaml|sbatch|yml))`", page.read_text())
    assert [
        name for name in named if not any((ROOT / r / name).exists() for r in ("", "llc_jax"))
    ] == []


def test_each_question_of_a_newcomer_is_answered_by_one_name_in_one_file():
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.split("\n## Where is it?\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+\?) \| `([\w/]+\.py)` \| `(\w+)` \|$", table, re.MULTILINE)
    assert len(rows) == table.count("?") >= 10
    missing = []
    for question, file, name in rows:
        tree = ast.parse((ROOT / "llc_jax" / file).read_text())
        targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
        defined = {getattr(node, "name", getattr(node, "id", "")) for node in tree.body + targets}
        missing += [] if name in defined else [f"{question} {name} is not in {file}"]
    assert missing == []


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A directory with a run, and the names that the pages use without saying what they are."""
    directory = tmp_path_factory.mktemp("documentation")
    run(tree(), directory / "runs" / "photos")
    digits, generator = load_digits(), np.random.default_rng(0)
    paths = [str(directory / f"query{number}.png") for number in range(2)]
    for path, image in zip(paths, digits.images, strict=False):
        cv2.imwrite(path, image)
    representations = generator.normal(size=(10, 16))
    names = llc_jax.load(directory / "runs" / "photos").codebook.class_names
    superclasses = [f"{name},{number % 3}\n" for number, name in enumerate(names)]
    (directory / "superclasses.csv").write_text("".join(superclasses))
    photos = {f"{n}.png": pathlib.Path(path).read_bytes() for n, path in enumerate(paths)}
    (directory / "photos-0000.tar").write_bytes(tar_bytes(photos))
    relevance = generator.random((3, 1000)) < 0.1
    images = digits.images[:200]
    noise = generator.integers(0, 256, size=(20_000, 8, 8, 3), dtype=np.uint8)
    return directory, {
        "llc_jax": llc_jax,
        "images": images,
        "labels": digits.labels[:200],
        "queries": paths,
        "known_images": noise[:10_000],
        "unknown_images": noise[10_000:],
        "representations": representations,
        "distances": np.sort(generator.integers(0, 20, size=(3, 1000))),
        "relevance": relevance,
        "total": np.sum(relevance, axis=1),
        "X": digits.images[..., 0].reshape(len(digits), -1).astype(np.float32),
        "y": digits.labels,
    }


def pages_with_code():
    """Yields the pages with Python code; slow, where something is fitted in full."""
    for page in PAGES:
        code = [text for language, text in blocks(page) if language == "python"]
        marks = [pytest.mark.slow] if any("LLC(" in text for text in code) else []
        if code:
            yield pytest.param(page, marks=marks, id=page.name)


@pytest.mark.parametrize("page", list(pages_with_code()))
def test_code_runs(page, world, tmp_path, monkeypatch):
    directory, names = world
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    model = llc_jax.load("runs/photos")
    names = names | {"model": model, "codes": model.encode(names["images"])}
    for language, text in blocks(page):
        if language == "python" and not re.search(rf"import ({'|'.join(FOREIGN)})", text):
            exec(compile(text, page.name, "exec"), names)


def modules_with_examples():
    """Yields the modules whose docstrings have examples, and how many lines these type in."""
    for path in sorted((ROOT / "llc_jax").rglob("*.py")):
        lines = re.findall(r"^ *>>> .*", path.read_text(), re.MULTILINE)
        if lines:
            marks = [pytest.mark.slow] if any("LLC(" in line for line in lines) else []
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield pytest.param(module, len(lines), marks=marks, id=module)


@pytest.mark.parametrize(("module", "prompts"), list(modules_with_examples()))
def test_examples_in_docstrings_run(module, prompts, world, monkeypatch):
    directory, names = world
    monkeypatch.chdir(directory)
    given = {"np": np, "jax": jax, "sklearn": sklearn, **names}
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder().find(importlib.import_module(module), extraglobs=given):
        runner.run(example)
    assert runner.summarize() == doctest.TestResults(0, prompts)
