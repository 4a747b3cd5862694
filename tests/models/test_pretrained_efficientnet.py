"""EfficientNet-Lite with its ImageNet weights, against the PyTorch package that has them."""

import functools
import io
import zipfile

import jax
import numpy as np
import pytest

from llc_jax.data.transforms import Crop
from llc_jax.errors import InputError
from llc_jax.experiment.network import abstract_weights
from llc_jax.models import registry
from llc_jax.weights import packages, pretrained
from tests.writing import SAMPLE

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install torch")
oracle = pytest.importorskip(
    "efficientnet_lite_pytorch",
    reason="the reference is a package: pip install --no-deps efficientnet-lite-pytorch",
)
Image = pytest.importorskip("PIL.Image", reason="pip install pillow")


@functools.cache
def both(name, size):
    """The package's network for images of a size, and ours, as functions to logits."""
    try:
        path = packages.find_weights(name)
    except InputError as error:
        pytest.skip(str(error))
    theirs = oracle.EfficientNet.from_name(name.replace("_", "-"), image_size=size).eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    network = registry.build({"name": name}, {"name": "linear"}, num_classes=1000, num_bits=1)
    state = pretrained.read_state_dict(path)
    abstract = abstract_weights(network)
    weights = pretrained.from_torch(state, abstract, name, drop_head=False, source=str(path))
    evaluate = jax.jit(network.evaluate)

    def our_logits(images):
        return evaluate(weights["params"], weights["batch_stats"], images).class_logits

    def their_logits(images):
        normalised = (images.astype(np.float32) - 127) / 128
        with torch.no_grad():
            return theirs(torch.from_numpy(normalised.transpose(0, 3, 1, 2))).numpy()

    return our_logits, their_logits


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("efficientnet_lite0", size) for size in (224, 75)),
        *(("efficientnet_lite1", 240), ("efficientnet_lite2", 260)),
    ],
)
def test_logits_are_equal(name, size):
    our_logits, their_logits = both(name, size)
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    np.testing.assert_allclose(our_logits(images), their_logits(images), rtol=0, atol=1e-4)


def bicubic_crop(content, _):
    """The usual way of evaluation: the shorter side to 256 pixels, then the middle 224."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize([max(256, int(side * scale)) for side in image.size], Image.BICUBIC)
    left, top = (round((side - 224) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


@pytest.mark.slow
@pytest.mark.parametrize(("prepare", "right"), [(bicubic_crop, 224), (Crop(224), 222)])
def test_photographs_are_recognised_as_often(prepare, right):
    if not SAMPLE.exists():
        pytest.skip(f"there are no photographs at {SAMPLE}")
    our_logits, their_logits = both("efficientnet_lite0", 224)
    with zipfile.ZipFile(SAMPLE) as archive:
        names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
        images = np.stack([prepare(archive.read(name), name) for name in names])
    wnids = sorted({name.split("/")[0] for name in names})
    labels = np.array([4 * wnids.index(name.split("/")[0]) for name in names])
    ours, theirs = (
        np.concatenate([logits(images[i : i + 50]) for i in range(0, len(images), 50)]).argmax(1)
        for logits in (our_logits, their_logits)
    )
    np.testing.assert_array_equal(ours, theirs)
    # Decoders and resizing differ by a little from version to version.
    assert abs(np.sum(ours == labels) - right) <= 3
