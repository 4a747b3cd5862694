"""From an official checkpoint to codes and back, against PyTorch's arithmetic."""

import json

import cv2
import jax
import numpy as np
import pytest

import llc_jax
from llc_jax import cli
from llc_jax.errors import InputError
from llc_jax.experiment import conversion
from llc_jax.weights import pretrained, torch_names

torch = pytest.importorskip("torch", reason="the checkpoints are PyTorch's: pip install torch")
from tests import torch_reference  # noqa: E402

CLASSES, BITS = 6, 20
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Official(torch.nn.Module):
    """A ResNet50 with the heads of the official code: 1x1 convolutions."""

    def __init__(self):
        super().__init__()
        self.backbone = torch_reference.ResNet((3, 4, 6, 3), 64, True, 1)
        self.fc_lr = torch.nn.Conv2d(2048, BITS, 1, bias=False)
        self.fc = torch.nn.Conv2d(BITS, CLASSES, 1, bias=False)

    def code_logits(self, images):
        normalised = (images.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
        features = self.backbone.encode(torch.from_numpy(normalised.transpose(0, 3, 1, 2)))
        return self.fc_lr(features[:, :, None, None])[:, :, 0, 0]

    def checkpoint(self):
        state = {key.removeprefix("backbone."): value for key, value in self.state_dict().items()}
        del state["fc.bias"]
        state |= {"fc.weight": self.fc.weight, "fc_lr.weight": self.fc_lr.weight}
        wrapped = {f"module.{key}": value for key, value in state.items()}
        return {"epoch": 25, "arch": "ResNet50", "state_dict": wrapped, "best_acc1": 75.5}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The model, its checkpoint, its codebook's file, and the run made of them."""
    folder = tmp_path_factory.mktemp("official")
    torch.manual_seed(0)
    model = Official().eval()
    torch.save(model.checkpoint(), folder / "model_best.pth")
    latent = model.fc.weight.detach().numpy()[:, :, 0, 0]
    np.save(folder / "codebook.npy", latent)
    np.save(folder / "short.npy", latent[:, :10])
    arguments = [str(folder / "model_best.pth"), str(folder / "run")]
    assert cli.main(["convert", *arguments, "--codebook", str(folder / "codebook.npy")]) == 0
    return model, folder, latent


def test_gives_the_same_answers(official):
    model, folder, latent = official
    images = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
    loaded = llc_jax.load(folder / "run")
    with torch.no_grad():
        logits = model.code_logits(images).numpy()
    found = loaded.code_logits(images)
    assert np.linalg.norm(found - logits) < 1e-4 * np.linalg.norm(logits)
    signs, codebook = np.where(logits >= 0, 1, -1), np.where(latent >= 0, 1, -1)
    np.testing.assert_array_equal(llc_jax.unpack(loaded.encode(images), BITS), signs)
    distances = (signs[:, None] != codebook[None]).sum(axis=2)
    labels, least = loaded.classify(images, "mhd")
    np.testing.assert_array_equal(labels, distances.argmin(axis=1))
    np.testing.assert_array_equal(least, distances.min(axis=1))
    labels, _ = loaded.classify(images, "ed")
    np.testing.assert_array_equal(labels, np.where(least == 0, distances.argmin(axis=1), -1))
    labels, _ = loaded.classify(images, "soft")
    np.testing.assert_array_equal(labels, (logits @ codebook.T).argmax(axis=1))


def test_goes_back(official, capsys):
    _, folder, _ = official
    out = folder / "back.safetensors"
    run = str(folder / "run")
    assert cli.main(["export", "--run", run, "--to", "torch", "--out", str(out)]) == 0
    assert "back.safetensors" in capsys.readouterr().out
    expected = pretrained.read_state_dict(folder / "model_best.pth")
    found = pretrained.read_state_dict(out)
    assert found.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    conversion.convert(out, folder / "again")  # The codebook is inside.
    np.testing.assert_array_equal(
        llc_jax.load(folder / "again").codebook.packed, llc_jax.load(run).codebook.packed
    )


@pytest.fixture(scope="module")
def damaged(official):
    """The folder of the checkpoint, with others in it from which something is missing."""
    _, folder, _ = official
    whole = (folder / "model_best.pth").read_bytes()
    (folder / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    state = pretrained.read_state_dict(folder / "model_best.pth")
    first = state.pop("conv1.weight")
    pretrained.write_state_dict(folder / "headless.pth", {"conv1.weight": first})
    pretrained.write_state_dict(folder / "incomplete.pth", state)
    return folder


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ("none.pth", {}, "There are no weights at"),
        ("truncated.pth", {}, "is not a whole file of torch.save"),
        ("headless.pth", {}, r"has no code projection .* --config.init_from="),
        ("model_best.pth", {"arch": "resnet18"}, "do not fit: .*layer1.0.conv3.weight is not"),
        ("model_best.pth", {"arch": "resnet51"}, "Did you mean 'resnet50'"),
        ("model_best.pth", {"codebook": "short.npy"}, "has 10 bits, the projection of .* has 20"),
        ("incomplete.pth", {}, "fit no backbone whole"),
        ("incomplete.pth", {"arch": "resnet50"}, "do not fit: conv1.weight is missing."),
    ],
)
def test_a_wrong_checkpoint_leaves_nothing(
    damaged, tmp_path, monkeypatch, weights, options, message
):
    monkeypatch.chdir(damaged)
    few = {name: torch_names.BACKBONES[name] for name in ("alexnet", "resnet18", "resnet50")}
    monkeypatch.setattr(torch_names, "BACKBONES", few)
    with pytest.raises(InputError, match=message):
        conversion.convert(weights, tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())


def test_does_not_overwrite(official):
    _, folder, _ = official
    with pytest.raises(InputError, match="exists already"):
        conversion.convert(folder / "model_best.pth", folder / "run")


def test_evaluates_without_training(official, tmp_path, monkeypatch):
    import imagenet_20bit

    from llc_jax.experiment.evaluate import evaluate

    model, folder, latent = official
    rng = np.random.default_rng(1)
    for split in ("train", "val"):
        for name in "abcdef":
            path = tmp_path / "images" / split / name / "0.png"
            path.parent.mkdir(parents=True)
            cv2.imwrite(str(path), rng.integers(0, 256, (224, 224, 3), np.uint8))
    config = imagenet_20bit.get_config(str(tmp_path / "images")).unlock()
    config.init_from = str(folder / "model_best.pth")
    config.codebook = str(folder / "codebook.npy")
    config.batch_size, config.data.workers, config.model.dtype = 8, 0, "float32"
    config.data.crop_fraction = 1.0
    found = evaluate(config.to_dict(), tmp_path / "run", jax.devices()[:1])
    paths = [tmp_path / "images" / "val" / name / "0.png" for name in "abcdef"]
    images = np.stack([cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths])
    with torch.no_grad():
        logits = model.code_logits(images).numpy()
    soft = (logits @ np.where(latent >= 0, 1, -1).T).argmax(axis=1)
    assert found["classification/soft"] == pytest.approx(np.mean(soft == np.arange(CLASSES)))
    assert found["codebook/unique"] == CLASSES
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == found
    assert not (tmp_path / "run" / "results.json").exists()
