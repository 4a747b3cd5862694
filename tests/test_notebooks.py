"""The notebooks run from top to bottom, on small data, in the place of what they download."""

import json
import os
import pathlib
import sys

import cv2
import numpy as np
import pytest

from llc_jax.data.sources import load_digits

FOLDER = pathlib.Path(__file__).parent.parent / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_clean(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    assert tags[:2] == [["install"], ["parameters"]]
    assert "--constraint ../requirements.txt" in "".join(cells[0]["source"])


@pytest.fixture
def run_notebook(tmp_path, monkeypatch):
    """Runs a notebook with other parameters; returns what it prints."""
    nbclient = pytest.importorskip("nbclient", reason="runs notebooks: pip install nbclient")
    pytest.importorskip("ipykernel", reason="runs notebooks: pip install ipykernel")
    import nbformat

    program = pathlib.Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{program}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))

    def run(name, parameters):
        notebook = nbformat.read(FOLDER / name, as_version=4)
        for cell in notebook.cells:
            if "install" in cell.metadata.get("tags", []):
                cell.source = ""
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += "\n" + parameters
        client = nbclient.NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        return "".join(output.get("text", "") for output in outputs)

    return run


def write_photos(folder, per_class=12, size=32):
    """Writes digits as photos, in one directory per class."""
    digits = load_digits()
    for label in range(10):
        (folder / f"class{label}").mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.labels == label][:per_class]):
            large = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / f"class{label}" / f"{number}.png"), large)


@pytest.mark.slow
def test_quickstart(run_notebook, tmp_path):
    write_photos(tmp_path / "photos")
    overrides = "--config.model.name=resnet8_small --config.init_from=scratch"
    overrides += " --config.data.image_size=32 --config.min_steps=20 --config.frozen_backbone=False"
    printed = run_notebook("quickstart.ipynb", f"OVERRIDES = {overrides!r}\nBITS = 8")
    assert "120 photos of 10 classes" in printed
    assert "codes of 8 bits" in printed
    assert (tmp_path / "photos.index").exists()
    assert np.load(tmp_path / "codes.npy").shape == (120, 1)


@pytest.mark.slow
def test_embeddings(run_notebook, tmp_path):
    pytest.importorskip("faiss", reason="the notebook hands codes to FAISS: pip install faiss-cpu")
    small = 'SETTINGS = {"hidden": (64,), "dropout": 0.0, "epochs": (5, 5, 5)}'
    printed = run_notebook("embeddings.ipynb", small)
    assert float(printed.split("right: ")[1].split()[0]) > 0.9
    assert (tmp_path / "codes.sql").exists()
    assert (tmp_path / "runs" / "embeddings" / "config.json").exists()


@pytest.mark.slow
def test_official_weights(run_notebook, tmp_path):
    torch = pytest.importorskip("torch", reason="the checkpoint is PyTorch's: pip install torch")
    from tests.experiment.test_conversion import Official

    torch.manual_seed(0)
    official = Official().eval()
    torch.save(official.checkpoint(), tmp_path / "model_best.pth")
    np.save(tmp_path / "codebook.npy", official.fc.weight.detach().numpy()[:, :, 0, 0])
    write_photos(tmp_path / "photos", per_class=1, size=224)
    printed = run_notebook("official_weights.ipynb", "")
    assert "photos/class0/0.png" in printed
