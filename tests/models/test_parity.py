"""Every backbone against the same in PyTorch, with the same weights."""

import jax
import numpy as np
import pytest

from llc_jax.models import registry
from llc_jax.models.inputs import NORMALIZATIONS
from llc_jax.training import objectives
from llc_jax.weights import pretrained

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install torch")
from tests import torch_reference  # noqa: E402

CLASSES = 7

CASES = {
    "resnet18": (lambda: torch_reference.ResNet((2, 2, 2, 2), 64, False, CLASSES), 64, {}),
    "resnet50": (lambda: torch_reference.ResNet((3, 4, 6, 3), 64, True, CLASSES), 64, {}),
    "alexnet": (lambda: torch_reference.AlexNet(CLASSES), 100, {"dropout": 0.0}),
    # Its sides of 75, 38, 19, 10, 5 and 3 pixels need zeros on one side, or on both.
    "efficientnet_lite0": (lambda: torch_reference.EfficientNetLite(CLASSES), 75, {}),
    "mobilenet_v1": (lambda: torch_reference.MobileNetV1(CLASSES), 96, {}),
    "vit_small_patch16": (
        lambda: torch_reference.ViT(384, 12, 32, CLASSES),
        32,
        {"image_size": 32},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def both(request):
    """A reference with weights drawn at random, our network, and its weights."""
    create, size, options = CASES[request.param]
    torch.manual_seed(0)
    reference = create()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Far from the kink of ReLU, where rounding alone would switch gradients: with
            # PyTorch's own start, its float32 and float64 differ by 2% after 50 layers.
            torch.nn.init.uniform_(module.weight, 0.1, 0.2)
            torch.nn.init.uniform_(module.bias, 1, 2)
            module.bias.data *= 2 * torch.randint(2, module.bias.shape) - 1
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, size, size, 3), np.uint8)
    labels = rng.integers(CLASSES, size=4)
    for _ in range(10):  # Statistics such as a trained network has.
        logits_of(reference, images, request.param)
    model = {"name": request.param, **options}
    network = registry.build(model, {"name": "linear"}, num_classes=CLASSES, num_bits=1)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    abstract = dict(zip(("params", "batch_stats"), shapes, strict=True))
    backbone = request.param
    state = state_dict(reference)
    weights = pretrained.from_torch(state, abstract, backbone, drop_head=False, source="it")
    return reference, network, weights, backbone, images, labels


def state_dict(reference):
    return {
        key: value.detach().numpy().copy()
        for key, value in reference.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }


def logits_of(reference, images, backbone):
    mean, std = NORMALIZATIONS[registry.BACKBONES[backbone].input.normalization]
    normalised = (images.astype(np.float32) - np.float32(mean)) / np.float32(std)
    pixels = torch.from_numpy(normalised.transpose(0, 3, 1, 2))
    return torch_reference.classifier(reference)(reference.encode(pixels))


def assert_near(ours, theirs, what, scale=0.0):
    error = np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), scale)
    assert error < 1e-4, (what, error)


def test_evaluation_is_equal(both):
    reference, network, weights, backbone, images, _ = both
    ours = jax.jit(network.evaluate)(weights["params"], weights["batch_stats"], images)
    with torch.no_grad():
        theirs = logits_of(reference.eval(), images, backbone).numpy()
    assert_near(ours.class_logits, theirs, "logits")


def test_a_training_step_is_equal(both):
    reference, network, weights, backbone, images, labels = both

    @jax.jit
    def step(params, stats):
        def loss(params):
            key = jax.random.key(0)
            output, after = network.train(params, stats, images, key)
            losses = objectives.softmax(output, labels)["loss"]
            return losses.mean(), (output.class_logits, after)

        return jax.grad(loss, has_aux=True)(params)

    gradients, (ours, stats) = step(weights["params"], weights["batch_stats"])
    before = reference.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    theirs = logits_of(reference.train(), images, backbone)
    torch.nn.functional.cross_entropy(theirs, torch.from_numpy(labels)).backward()
    assert_near(ours, theirs.detach().numpy(), "logits")

    found = pretrained.to_torch({"params": gradients, "batch_stats": stats}, backbone)
    expected = state_dict(reference) | {
        key: parameter.grad.numpy() for key, parameter in reference.named_parameters()
    }
    assert found.keys() == expected.keys()
    largest = max(np.linalg.norm(value) for value in expected.values())
    first, *_, last, _ = (key for key, _ in reference.named_parameters())
    for key, value in expected.items():
        # What stands before a normalisation may have a gradient of little but rounding.
        scale = 0 if key in (first, last) else 0.01 * largest
        assert_near(found[key], value, key, scale)
    reference.load_state_dict(before)
    reference.zero_grad()


def test_the_way_back_is_exact(both):
    reference, _, weights, backbone, *_ = both
    found, expected = pretrained.to_torch(weights, backbone), state_dict(reference)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
    reference.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in found.items()})
