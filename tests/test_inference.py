import json
import pathlib
import shutil

import cv2
import numpy as np
import pytest

import llc_jax
from llc_jax import cli
from llc_jax.codes import packing
from llc_jax.data.sources import load_digits
from llc_jax.data.splits import split_at_random
from llc_jax.errors import InputError
from llc_jax.experiment.run import run
from tests.tiny import tree


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("run")
    run(tree(), workdir)
    return workdir


@pytest.fixture(scope="module")
def model(workdir):
    """The model of that run."""
    return llc_jax.load(workdir)


@pytest.fixture(scope="module")
def evaluation():
    """The evaluation images of that run."""
    return split_at_random(load_digits(), 0.5, seed=0).evaluation


@pytest.fixture
def folder(tmp_path, evaluation):
    """A folder with three of those images as files."""
    for index in range(3):
        image = np.ascontiguousarray(evaluation.images[index][..., ::-1])
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_classifies_as_the_run_was_evaluated(workdir, model, evaluation):
    results = json.loads((workdir / "results.json").read_text())
    labels, distances = model.classify(evaluation.images)
    assert labels.dtype == distances.dtype == np.int32
    accuracy = np.mean(labels == evaluation.labels)
    assert accuracy == pytest.approx(results["classification/mhd_first"], abs=1e-6)
    exact, distances_again = model.classify(evaluation.images, decoder="ed")
    np.testing.assert_array_equal(distances_again, np.where(distances > 0, -1, 0))
    np.testing.assert_array_equal(exact == -1, distances > 0)
    # Where codes collide, the first class answers for all of them.
    accuracy = np.mean(exact == evaluation.labels)
    assert accuracy <= results["classification/ed_official"] + 1e-6


def test_unknown_is_what_is_farther_than_the_radius_from_all_class_codes(model, evaluation):
    bits = np.asarray(packing.unpack(model.encode(evaluation.images), model.num_bits))
    class_bits = np.asarray(packing.unpack(model.codebook.packed, model.num_bits))
    distances = np.sum(bits[:, None] != class_bits, axis=2).min(axis=1)
    for radius in (0, 1, 3, 100):
        unknown = model.detect_ood(evaluation.images, radius)
        assert unknown.dtype == bool
        np.testing.assert_array_equal(unknown, distances > radius)
    unknown = model.detect_ood(evaluation.images)
    assert 0 < unknown.sum() < len(evaluation)
    exact, _ = model.classify(evaluation.images, decoder="ed")
    np.testing.assert_array_equal(unknown, exact == -1)
    assert model.detect_ood(evaluation.images[:0]).shape == (0,)
    for radius in (-1, 0.5, None):
        with pytest.raises(InputError, match=f"at least 0 bits, not {radius}"):
            model.detect_ood(evaluation.images, radius)


def test_codes_are_the_signs_of_the_logits(model, evaluation):
    codes = model.encode(evaluation.images)
    assert codes.dtype == np.uint32
    assert codes.shape == (len(evaluation), 1)
    logits = model.code_logits(evaluation.images)
    np.testing.assert_array_equal(
        packing.unpack(codes, model.num_bits), np.where(logits < 0, -1, 1)
    )


def test_one_image_at_a_time_gives_the_same_codes(model, evaluation):
    together = model.encode(evaluation.images[:5])
    alone = np.concatenate([model.encode(evaluation.images[i : i + 1]) for i in range(5)])
    np.testing.assert_array_equal(together, alone)
    assert model.encode(evaluation.images[:0]).shape == (0, 1)


def test_paths_give_the_codes_of_their_pixels(model, folder, evaluation):
    paths = sorted(folder.glob("*.png"))
    np.testing.assert_array_equal(model.encode(paths), model.encode(evaluation.images[:3]))


def test_images_of_another_size_are_resized(model, evaluation):
    large = np.repeat(np.repeat(evaluation.images[:20], 4, axis=1), 4, axis=2)
    assert model.encode(large).shape == (20, 1)


def test_a_stage_can_be_loaded_alone(workdir):
    codebook = llc_jax.load(workdir / "codebook")
    assert codebook.num_bits == 8
    assert codebook.codebook.class_names == tuple("0123456789")


def test_bad_input_is_one_clear_error(workdir, model, folder, tmp_path):
    for images, message in [
        (np.zeros((2, 8, 8), np.uint8), r"uint8\[N, H, W, 3\] or paths, not uint8\[2, 8, 8\]"),
        (np.zeros((2, 8, 8, 3)), "not float64"),
        ([folder / "gone.png"], "Cannot read the image .*gone.png: No such file"),
        ([folder / "notes.txt"], "notes.txt .* is not an image"),
        (folder / "0.png", "Give a list of paths"),
    ]:
        with pytest.raises(InputError, match=message):
            model.encode(images)
    with pytest.raises(InputError, match="no decoder 'best'"):
        model.classify([folder / "0.png"], decoder="best")
    with pytest.raises(InputError, match="There is no run at"):
        llc_jax.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not the workdir of a run"):
        llc_jax.load(folder)
    with pytest.raises(InputError, match="num_bits is 8 for .*, not 4: only .* config.prefixes"):
        llc_jax.load(workdir, num_bits=4)
    with pytest.raises(InputError, match="is a linear classifier: it has no codes"):
        llc_jax.load(workdir / "linear")


def test_an_unfinished_run_says_so(workdir, tmp_path):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(InputError, match=r"stage 'instance' of .* is not finished"):
        llc_jax.load(tmp_path)


def test_llc_classify(workdir, model, folder, capsys):
    paths = sorted(map(str, folder.glob("*.png")))
    labels, distances = model.classify(paths)
    assert cli.main(["classify", str(folder), "--run", str(workdir), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    names = [model.codebook.class_names[label] for label in labels]
    assert rows == [
        {"image": path, "label": int(label), "class": name, "distance": int(distance)}
        for path, label, name, distance in zip(paths, labels, names, distances, strict=True)
    ]
    assert cli.main(["classify", paths[0], "--run", str(workdir)]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "distance", "class"]
    assert row.split() == [paths[0], str(distances[0]), names[0]]


def test_llc_detect(workdir, model, folder, evaluation, capsys):
    # One image whose code is that of a class, and one whose code is not.
    unknown = model.detect_ood(evaluation.images)
    for name, image in [("0.png", np.argmin(unknown)), ("1.png", np.argmax(unknown))]:
        pixels = np.ascontiguousarray(evaluation.images[image][..., ::-1])
        cv2.imwrite(str(folder / name), pixels)
    paths, options = sorted(map(str, folder.glob("*.png"))), ["--run", str(workdir)]
    labels, distances = model.classify(paths)
    for radius in (0, int(distances[1])):
        command = ["detect", str(folder), *options, f"--radius={radius}"]
        assert cli.main([*command, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["unknown"] for row in rows] == model.detect_ood(paths, radius).tolist()
        assert [row["unknown"] for row in rows[:2]] == [False, radius == 0]
        assert [list(row) for row in rows] == [
            ["image", "unknown", "label", "class", "distance"]
        ] * 3
        found = [(row["image"], row["label"], row["distance"]) for row in rows]
        assert found == list(zip(paths, labels, distances, strict=True))
    assert cli.main(["detect", *paths[:2], *options]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "distance", "nearest", "class"]
    names = [model.codebook.class_names[label] for label in labels]
    assert lines[0].split() == [paths[0], "0", "known", names[0]]
    assert lines[1].split() == [paths[1], str(distances[1]), "unknown", names[1]]
    for line, name in zip(lines, names, strict=False):
        assert line[header.index("nearest") :] == name


def test_llc_classify_prints_a_line_for_each_image(workdir, folder, capsys):
    for name in ("two\nlines.png", "not\udcffutf-8.png", "é 字.png"):
        shutil.copy(folder / "0.png", folder / name)
    assert cli.main(["classify", str(folder), "--run", str(workdir)]) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 6
    for name in (r"two\nlines.png", r"not\udcffutf-8.png", "é 字.png"):
        assert sum(name in row for row in rows) == 1


def test_llc_encode(workdir, model, folder, capsys):
    out = folder / "codes.npz"
    assert cli.main(["encode", str(folder), "--run", str(workdir), "--out", str(out)]) == 0
    assert "3 codes of 8 bits" in capsys.readouterr().out
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["codes"].dtype == np.dtype("<u4")
        assert arrays["num_bits"] == 8
        np.testing.assert_array_equal(arrays["codes"], model.encode(list(arrays["paths"])))


def test_llc_export_tells_the_classes_of_images(workdir, model, folder, capsys):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    name = model.codebook.class_names[3]
    (folder / name).mkdir()
    shutil.move(folder / "0.png", folder / name / "0.png")
    codes, out, run_option = folder / "codes.npz", folder / "codes.parquet", f"--run={workdir}"
    assert cli.main(["encode", str(folder), run_option, f"--out={codes}", "--logits"]) == 0
    with np.load(codes, allow_pickle=False) as arrays:
        paths, logits = list(arrays["paths"]), arrays["code_logits"]
    np.testing.assert_array_equal(logits, model.code_logits(paths))
    arguments = ["export", "--to=parquet", f"--codes={codes}", f"--out={out}"]
    assert cli.main([*arguments, run_option]) == 0
    table = parquet.read_table(out).to_pydict()
    labels, _ = model.classify(paths)
    assert table["predicted"] == [model.codebook.class_names[label] for label in labels]
    assert table["path"] == paths
    known = [name if pathlib.Path(path).parent.name == name else None for path in paths]
    assert table["label"] == known
    np.testing.assert_allclose(np.mean(table["x"]), 0, atol=1e-5)
    assert len(set(table["x"])) > 1
    assert cli.main([*arguments, f"--run={workdir}/linear"]) == 2
    assert "has no class codes" in capsys.readouterr().err


@pytest.fixture
def damaged(folder):
    """That folder with a damaged image among the others."""
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:30])
    return folder


def test_images_that_cannot_be_read_can_be_skipped(model, damaged):
    paths = [damaged / name for name in ("0.png", "1.png", "2.png", "gone.png")]
    skipped = {}
    logits = model.code_logits(paths, skip=skipped.__setitem__)
    np.testing.assert_array_equal(logits[[0, 2]], model.code_logits([paths[0], paths[2]]))
    assert np.isnan(logits[[1, 3]]).all()
    assert "1.png (30 bytes) is not an image" in str(skipped.pop(1))
    assert "Cannot read the image" in str(skipped.pop(3))
    assert not skipped


def test_llc_stops_at_a_damaged_image_and_says_what_it_can_do(workdir, damaged, capsys):
    out = str(damaged / "codes.npz")
    for command in (["classify"], ["detect"], ["encode", "--out", out]):
        assert cli.main([*command, str(damaged), "--run", str(workdir)]) == 2
        message = capsys.readouterr().err
        assert "1.png" in message
        assert "With --on-error skip it is left out." in message
        assert "config" not in message
    assert not (damaged / "codes.npz").exists()


def test_llc_skips_damaged_images_and_names_them(workdir, model, damaged, capsys):
    good = [str(damaged / name) for name in ("0.png", "2.png")]
    options = [str(damaged), "--run", str(workdir), "--on-error", "skip"]
    assert cli.main(["classify", *options, "--json"]) == 0
    out, err = capsys.readouterr()
    labels, distances = model.classify(good)
    found = [(row["image"], row["label"], row["distance"]) for row in json.loads(out)]
    assert found == list(zip(good, labels, distances, strict=True))
    assert cli.main(["detect", *options, "--json"]) == 0
    detected = json.loads(capsys.readouterr().out)
    assert [(row["image"], row["label"], row["distance"]) for row in detected] == found
    assert f"skipped: {damaged}/1.png (30 bytes)" in err
    assert "skipped 1 of 3 images" in err
    assert cli.main(["encode", *options, "--out", str(damaged / "codes.npz")]) == 0
    with np.load(damaged / "codes.npz", allow_pickle=False) as arrays:
        assert list(arrays["paths"]) == good
        np.testing.assert_array_equal(arrays["codes"], model.encode(good))
    capsys.readouterr()
    assert cli.main(["classify", str(damaged / "1.png"), *options[1:]]) == 2
    assert "None of the images can be read" in capsys.readouterr().err


def test_llc_search(workdir, model, folder, capsys):
    codes, index = f"--codes={folder}/codes.npz", f"--index={folder}/photos.index"
    paths, run_option = sorted(map(str, folder.glob("*.png"))), f"--run={workdir}"
    assert cli.main(["encode", str(folder), run_option, f"--out={folder}/codes.npz"]) == 0
    assert cli.main(["index", codes, f"--out={folder}/photos.index"]) == 0
    capsys.readouterr()
    assert cli.main(["search", *paths, run_option, index, codes, "--top=2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    loaded = llc_jax.HammingIndex.load(folder / "photos.index")
    distances, ids = loaded.search(model.encode(paths), 2)
    assert [row["distance"] for row in rows] == distances.ravel().tolist()
    assert [row["path"] for row in rows] == [paths[item_id] for item_id in ids.ravel()]
    assert [row["image"] for row in rows] == [path for path in paths for _ in range(2)]
    assert cli.main(["search", paths[0], run_option, index]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "distance", "found"]
    assert len(rows) == 3  # There are no more.
    assert rows[0].split()[1:] == [str(distances[0, 0]), str(ids[0, 0])]
    other = llc_jax.HammingIndex(20)
    other.add(np.zeros((9, 1), np.uint32))
    other.save(folder / "photos.index")
    for options, message in [
        ([index], "has codes of 20 bits, the run"),
        ([index, codes], "was not made of"),
        ([f"--index={folder}/gone.index"], "Cannot read the index"),
    ]:
        assert cli.main(["search", paths[0], run_option, *options]) == 2
        assert message in capsys.readouterr().err


def test_llc_search_with_rescoring(workdir, model, folder, capsys):
    codes, index = f"--codes={folder}/codes.npz", f"--index={folder}/photos.index"
    paths, run_option = sorted(map(str, folder.glob("*.png"))), f"--run={workdir}"
    assert cli.main(["encode", str(folder), run_option, f"--out={folder}/codes.npz"]) == 0
    assert cli.main(["index", codes, f"--out={folder}/photos.index"]) == 0
    capsys.readouterr()
    search = ["search", *paths, run_option, index]
    assert cli.main([*search, codes, "--top=2", "--rescore", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    logits = model.code_logits(paths)
    products = logits @ np.where(logits >= 0, 1, -1).T
    scores = -np.sort(-products, axis=1)[:, :2]
    np.testing.assert_allclose([row["score"] for row in rows], scores.ravel(), rtol=1e-5)
    for row in rows:
        assert list(row) == ["image", "distance", "id", "score", "path"]
        product = products[paths.index(row["image"]), row["id"]]
        assert row["score"] == pytest.approx(product, rel=1e-5)
        assert row["path"] == paths[row["id"]]
    # With a shortlist of one there is nothing to order.
    assert cli.main([*search, "--top=1", "--rescore", "--oversample=1"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "distance", "score", "found"]
    for path, row, best in zip(paths, rows, products.max(axis=1), strict=True):
        name, distance, score, found = row.split()
        assert (name, distance) == (path, "0")
        assert float(score) == pytest.approx(best, abs=1e-3)
        assert row[header.index("found") :] == found
        assert row[: header.index("score") + len("score")].endswith(score)
    for options, message in [
        (["--oversample=2"], "--oversample is for --rescore"),
        (["--rescore", "--oversample=0"], "oversample is a whole number of at least 1, not 0"),
    ]:
        assert cli.main([*search, *options]) == 2
        assert message in capsys.readouterr().err


def test_llc_says_what_is_wrong(workdir, folder, capsys):
    run_option = ["--run", str(workdir)]
    empty = folder / "empty"
    empty.mkdir()
    for arguments, message in [
        (["classify", str(folder / "gone.png"), *run_option], "There is no image"),
        (["classify", str(empty), *run_option], "no images in the folder"),
        (["classify", str(folder), "--run", str(empty)], "is not the workdir of a run"),
        (["classify", str(folder), "--decoder", "x", *run_option], "There is no decoder 'x'"),
        (["detect", str(folder), "--radius=-1", *run_option], "at least 0 bits, not -1"),
        (["detect", str(folder / "gone.png"), *run_option], "There is no image"),
        (["encode", str(folder), "--out", "codes.txt", *run_option], "--out is an .npz file"),
    ]:
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["encod"], "encode"),
        (["prepare", "imagnet"], "imagenet"),
        (["export", "--to", "fais"], "faiss"),
    ],
)
def test_llc_suggests_what_was_meant(capsys, arguments, nearest):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert capsys.readouterr().err.endswith(f"). Did you mean {nearest!r}?\n")


def test_the_public_names_are_there():
    for name in llc_jax.__all__:
        assert getattr(llc_jax, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        llc_jax.nothing  # noqa: B018
    assert pathlib.Path(llc_jax.__file__).name == "__init__.py"
