import importlib.util
import pathlib
import re
import types

import cv2
import numpy as np
import pytest
from jax import export

import llc_jax
from llc_jax import cli, serving
from llc_jax.data.sources import load_digits
from llc_jax.data.splits import split_at_random
from llc_jax.errors import InputError
from llc_jax.experiment.run import run
from tests import postgresql
from tests.tiny import tree

pytest.importorskip("flatbuffers", reason="pip install flatbuffers")
PAGE = pathlib.Path(__file__).parent.parent / "docs" / "serving.md"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("run")
    run(tree(), workdir)
    return workdir


@pytest.fixture(scope="module")
def served(trained, tmp_path_factory):
    """The file of its model."""
    path = tmp_path_factory.mktemp("served") / "model.npz"
    command = ["export", "--to=stablehlo", f"--run={trained}", f"--out={path}"]
    assert cli.main(command) == 0
    return path


@pytest.fixture(scope="module")
def images():
    """The evaluation images of that run."""
    return split_at_random(load_digits(), 0.5, seed=0).evaluation.images


def read(path, kind="cpu"):
    """The arrays of a file, the function of a kind, and its weights; by JAX and NumPy alone."""
    arrays = dict(np.load(path, allow_pickle=False))
    function = export.deserialize(arrays[f"stablehlo_{kind}"].tobytes())
    weights = [arrays[f"weight_{n}"] for n in range(len(function.in_avals) - 1)]
    return arrays, function, weights


def assert_same(model, path, inputs):
    arrays, function, weights = read(path)
    assert tuple(arrays["class_names"]) == model.codebook.class_names
    assert arrays["num_bits"] == model.num_bits
    labels, distances = model.classify(inputs)
    for count in (1, 7, len(inputs)):
        output = function.call(weights, inputs[:count])
        np.testing.assert_array_equal(output["codes"], model.encode(inputs)[:count])
        np.testing.assert_array_equal(output["labels"], labels[:count])
        np.testing.assert_array_equal(output["distances"], distances[:count])
        logits = model.code_logits(inputs)[:count]
        np.testing.assert_allclose(output["code_logits"], logits, atol=1e-4)
    return arrays


def test_images_have_the_codes_and_the_labels_of_the_model(trained, served, images):
    arrays = assert_same(llc_jax.load(trained), served, images[:64])
    assert arrays["image_size"] == 8
    assert arrays["crop_fraction"] == 0.875
    assert arrays["exif_orientation"]


def test_the_snippet_of_the_page_encodes(trained, served, images, monkeypatch):
    snippet = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    monkeypatch.chdir(served.parent)
    names = {"images": images[:3]}
    exec(snippet, names)
    codes = llc_jax.load(trained).encode(images[:3])
    np.testing.assert_array_equal(names["output"]["codes"], codes)


def test_embeddings_have_the_codes_and_the_labels_of_the_model(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=200)
    x = (3 * rng.normal(size=(4, 6))[y] + rng.normal(size=(200, 6))).astype(np.float32)
    llc_jax.LLC(num_bits=33, random_state=0).fit(x, y).save(tmp_path / "run")
    serving.export(tmp_path / "run", tmp_path / "model.npz")
    arrays = assert_same(llc_jax.load(tmp_path / "run"), tmp_path / "model.npz", x[:50])
    assert "image_size" not in arrays


def test_accelerators_get_networks_in_the_usual_forms(served):
    for kind, platforms in {"cpu": ("cpu",), "accelerator": ("cuda", "tpu")}.items():
        _, function, _ = read(served, kind)
        assert function.platforms == platforms
        assert function.in_avals[-1].shape[1:] == (8, 8, 3)
        assert not isinstance(function.in_avals[-1].shape[0], int)


def test_what_cannot_be_exported_is_one_error(trained, tmp_path, capsys, monkeypatch):
    command = ["export", "--to=stablehlo", f"--run={trained}"]
    for more, message in [
        (["--out=model.bin"], "A model as StableHLO is an .npz file, not model.bin"),
        (["--out=model.npz", "--bit-order=big"], "--to stablehlo writes weights: --bit-order is"),
        (["--out=model.npz", "--codes=x"], "writes what --run names: leave --codes out"),
    ]:
        assert cli.main([*command, *more]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["export", "--to=stablehlo", "--out=model.npz", "--codes=x"]) == 2
    assert "--to stablehlo needs --run" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="StableHLO needs flatbuffers: pip install"):
        serving.export(trained, tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())


def test_the_example_of_the_page_finds_images(trained, served, images, tmp_path, monkeypatch):
    testclient = pytest.importorskip("fastapi.testclient", reason="pip install fastapi httpx")
    pytest.importorskip("psycopg", reason="pip install psycopg[binary]")
    for number in range(20):
        cv2.imwrite(str(tmp_path / f"{number:02}.png"), images[number])
    encode = ["encode", f"--run={trained}", str(tmp_path), f"--out={tmp_path}/codes.npz"]
    assert cli.main(encode) == 0
    codes = ["--codes", f"{tmp_path}/codes.npz", "--out", f"{tmp_path}/codes.sql"]
    assert cli.main(["export", "--to=pgvector", *codes]) == 0
    example = re.search(r"`server.py`:\n\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    model, index = llc_jax.load(trained), llc_jax.HammingIndex(8)
    index.add(model.encode(images[:20]))
    with postgresql.started() as database:
        database.psql("--file=codes.sql", cwd=tmp_path)
        monkeypatch.setenv("MODEL", str(served))
        monkeypatch.setenv("DATABASE", f"host={database.home} user=tester dbname=postgres")
        server = types.ModuleType("server")
        exec(example, server.__dict__)
        with testclient.TestClient(server.app) as client:
            header = {"Content-Type": "application/octet-stream"}
            for number in range(3):
                content = (tmp_path / f"{number:02}.png").read_bytes()
                response = client.post("/search?top=5", content=content, headers=header)
                assert response.status_code == 200, response.text
                distances, ids = index.search(model.encode(images[[number]]), 5)
                found = response.json()["found"]
                assert [row["id"] for row in found] == ids[0].tolist()
                assert [row["distance"] for row in found] == distances[0].tolist()
                assert found[0]["path"] == str(tmp_path / f"{ids[0, 0]:02}.png")
                label = model.classify(images[[number]])[0][0]
                assert response.json()["class"] == model.codebook.class_names[label]
            response = client.post("/search", content=b"no image", headers=header)
            assert response.status_code == 400
            assert "is not an image that can be decoded" in response.json()["detail"]
