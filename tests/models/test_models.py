import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llc_jax.errors import InputError
from llc_jax.models import heads, network, registry
from llc_jax.models.inputs import ImageInput
from llc_jax.models.resnet import ResNet


def build(backbone="cnn", head=heads.CodebookHead, num_classes=10, num_bits=8, **options):
    def create(rngs):
        body = registry.BACKBONES[backbone].build(rngs=rngs, **options)
        top = head(body.num_features, num_classes=num_classes, num_bits=num_bits, rngs=rngs)
        return network.Network(body, top, ImageInput(8).preparation())

    return network.functionalize(create)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "parameters", "features"),
    [
        # torchvision's figures, less the classifier.
        ("resnet18", 11_689_512 - 513_000, 512),
        ("resnet34", 21_797_672 - 513_000, 512),
        ("resnet50", 25_557_032 - 2_049_000, 2048),
        ("alexnet", 61_100_840 - 4_097_000, 4096),
        # timm's figures, less the classifier.
        ("mobilenet_v1", 4_231_976 - 1_025_000, 1024),
        ("efficientnet_lite0", 4_652_008 - 1_281_000, 1280),
        ("efficientnet_lite1", 5_416_680 - 1_281_000, 1280),
        ("efficientnet_lite2", 6_092_072 - 1_281_000, 1280),
        ("efficientnet_lite3", 8_197_096 - 1_281_000, 1280),
        ("efficientnet_lite4", 13_006_568 - 1_281_000, 1280),
        ("vit_small_patch16", 22_050_664 - 385_000, 384),
        # A 3x3 stem in place of the 7x7 one.
        ("resnet18_small", 11_689_512 - 513_000 - 64 * 3 * (49 - 9), 512),
        # By hand: the stem, then convolutions, normalisations, projection of three stages.
        (
            "resnet20_small",
            464 + (13_824 + 192) + (50_688 + 384 + 576) + (202_752 + 768 + 2176),
            64,
        ),
    ],
)
def test_parameters_and_features(name, parameters, features):
    body = nnx.eval_shape(lambda: registry.BACKBONES[name].build(rngs=nnx.Rngs(0)))
    assert count(nnx.state(body, nnx.Param)) == parameters
    assert body.num_features == features
    size = registry.BACKBONES[name].input.size
    out = nnx.eval_shape(lambda m: m(jnp.zeros((2, size, size, 3))), body)
    assert out.shape == (2, features)
    assert out.dtype == jnp.float32


def test_residual_network_starts_shallow():
    # With the last gain of each block at zero, a block is its shortcut.
    net = ResNet(depths=(2,), width=4, small_images=True, rngs=nnx.Rngs(0))
    x = jnp.abs(jax.random.normal(jax.random.key(0), (2, 8, 8, 4)))
    np.testing.assert_array_equal(net.blocks[1](x), x)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    net = build("resnet8_small", dtype=jnp.bfloat16, width=4)
    params, stats = jax.jit(net.init)(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {jnp.dtype("float32")}
    images = jax.random.randint(jax.random.key(1), (8, 16, 16, 3), 0, 256).astype(jnp.uint8)
    output, new_stats = jax.jit(net.train)(params, stats, images, jax.random.key(2))
    assert output.class_logits.dtype == output.code_logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(new_stats)} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(net.evaluate)(params, stats, images))
    convolutions = [line for line in text.splitlines() if "conv_general_dilated" in line]
    assert convolutions
    assert all(":bf16[" in line for line in convolutions)


def test_the_width_of_a_mobilenet_is_a_multiple_of_8():
    quarter = registry.BACKBONES["mobilenet_v1"].build
    body = nnx.eval_shape(lambda: quarter(width=0.25, rngs=nnx.Rngs(0)))
    assert (body.stem.out_features, body.num_features) == (8, 256)
    body = nnx.eval_shape(lambda: quarter(width=0.35, rngs=nnx.Rngs(0)))
    assert (body.stem.out_features, body.num_features) == (16, 360)


@pytest.mark.parametrize(("name", "size"), [("alexnet", 62), ("vit_small_patch16", 192)])
def test_a_size_that_a_backbone_does_not_take(name, size):
    body = nnx.eval_shape(lambda: registry.BACKBONES[name].build(rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="of (at least 63|224) pixels|of images of 224"):
        nnx.eval_shape(lambda m: m(jnp.zeros((2, size, size, 3))), body)


class Dropping(nnx.Module):
    """A backbone that drops half of its features."""

    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(48, 64, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.num_features = 64

    def __call__(self, images):
        return self.dropout(self.blocks[0](images.reshape(len(images), -1)))


def test_what_training_drops_depends_on_the_key_alone():
    def create(rngs):
        body = Dropping(rngs)
        head = heads.CodeHead(64, num_classes=3, num_bits=64, rngs=rngs)
        return network.Network(body, head, ImageInput(8).preparation())

    net = network.functionalize(create)
    params, stats = net.init(jax.random.key(0))
    params["head"]["projection"]["kernel"] = jnp.eye(64)
    images = jax.random.randint(jax.random.key(1), (16, 4, 4, 3), 0, 256).astype(jnp.uint8)
    dropped = [net.train(params, stats, images, jax.random.key(seed))[0] for seed in (0, 0, 1)]
    first, again, other = (np.asarray(output.code_logits) for output in dropped)
    np.testing.assert_array_equal(first, again)
    assert 0.4 < (first == 0).mean() < 0.6
    assert ((first == 0) != (other == 0)).any()
    whole = np.asarray(net.evaluate(params, stats, images).code_logits)
    np.testing.assert_allclose(first[first != 0], 2 * whole[first != 0], rtol=1e-5)


def test_only_blocks_that_are_there_can_be_trained():
    with pytest.raises(InputError, match="trainable_blocks is from 0 to 13 .* not 14"):
        registry.build(
            {"name": "mobilenet_v1"},
            {"name": "code"},
            num_classes=3,
            num_bits=4,
            trainable_blocks=14,
        )


def test_the_last_normalisation_is_trained_with_the_last_block():
    def frozen(blocks):
        net = registry.build(
            {"name": "vit_tiny_patch16"},
            {"name": "code"},
            num_classes=3,
            num_bits=4,
            trainable_blocks=blocks,
        )
        return net.frozen["backbone"]

    some, none = frozen(2), frozen(0)
    assert all(jax.tree.leaves(none))
    assert [all(jax.tree.leaves(block)) for block in some["blocks"].values()] == [True] * 10 + [
        False
    ] * 2
    assert not any(jax.tree.leaves(some["final_norm"]))
    assert some["class_token"]


def test_a_backbone_has_its_usual_normalisation_unless_another_is_named():
    images = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    form = registry.BACKBONES["efficientnet_lite0"].input
    expected = (images.astype(np.float32) - 127) / 128
    np.testing.assert_array_equal(form.preparation()(images), expected)
    expected = (images.astype(np.float32) - 127.5) / 127.5
    np.testing.assert_array_equal(form.preparation("inception")(images), expected)
    usual = registry.BACKBONES["resnet18"].input.preparation()(images)
    named = ImageInput(224, "inception").preparation("imagenet")(images)
    np.testing.assert_array_equal(usual, named)


def test_codebook_head_computes_equation_2():
    head = heads.CodebookHead(5, num_classes=3, num_bits=4, logit_scale=0.5, rngs=nnx.Rngs(0))
    features = jax.random.normal(jax.random.key(0), (7, 5))
    f = np.asarray(features) @ np.asarray(head.projection.kernel[...])
    codes = np.where(np.asarray(head.latent[...]) >= 0, 1, -1)
    output = head(features)
    np.testing.assert_allclose(output.code_logits, f, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(output.class_logits, 0.5 * f @ codes.T, rtol=1e-5, atol=1e-6)


def test_other_heads():
    features = jnp.ones((7, 5))
    linear = heads.LinearHead(5, num_classes=3, num_bits=4, rngs=nnx.Rngs(0))(features)
    assert (linear.code_logits, linear.class_logits.shape) == (None, (7, 3))
    code = heads.CodeHead(5, num_classes=3, num_bits=4, rngs=nnx.Rngs(0))(features)
    assert (code.code_logits.shape, code.class_logits) == ((7, 4), None)


@pytest.mark.parametrize("binary", [False, True])
def test_bottleneck_head_classifies_its_numbers_or_their_signs(binary):
    head = heads.BottleneckHead(5, num_classes=3, num_bits=4, binary=binary, rngs=nnx.Rngs(0))
    features = jax.random.normal(jax.random.key(0), (7, 5))
    numbers = np.asarray(features) @ np.asarray(head.projection.kernel[...])
    output = head(features)
    np.testing.assert_allclose(output.code_logits, numbers, rtol=1e-5, atol=1e-6)
    given = np.where(numbers >= 0, 1, -1) if binary else numbers
    expected = given @ np.asarray(head.classifier.kernel[...])
    np.testing.assert_allclose(output.class_logits, expected, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda features: head(features).class_logits[:, 0].sum())(features)
    through = np.asarray(head.projection.kernel[...]) @ np.asarray(head.classifier.kernel[:, 0])
    np.testing.assert_allclose(gradient, np.tile(through, (7, 1)), rtol=1e-4, atol=1e-5)


def test_code_head_with_batch_norm_balances_the_bits():
    head = heads.CodeHead(5, num_classes=3, num_bits=4, batch_norm=True, rngs=nnx.Rngs(0))
    features = 3 + jax.random.normal(jax.random.key(0), (64, 5))
    code_logits = np.asarray(head(features).code_logits)
    np.testing.assert_allclose(code_logits.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(code_logits.std(0), 1, rtol=1e-3)


def test_class_number_head_writes_what_it_predicts():
    head = heads.ClassNumberHead(5, num_classes=6, num_bits=4, rngs=nnx.Rngs(0))
    output = head(jax.random.normal(jax.random.key(0), (7, 5)))
    for logits, code in zip(output.class_logits, output.code_logits, strict=True):
        digits = "".join("1" if value > 0 else "0" for value in code[::-1])
        assert int(digits, 2) == np.argmax(logits)
    np.testing.assert_array_equal(np.abs(output.code_logits), 1)
    assert heads.codes_of_predictions(jnp.eye(6), 40)[5].tolist() == [1, -1, 1] + [-1] * 37
    with pytest.raises(InputError, match="2 bits do not hold the numbers of 6 classes: 3 do"):
        heads.ClassNumberHead(5, num_classes=6, num_bits=2, rngs=nnx.Rngs(0))


def test_training_and_evaluation_differ_in_the_statistics():
    net = build()
    params, stats = jax.jit(net.init)(jax.random.key(0))
    images = jax.random.randint(jax.random.key(1), (16, 8, 8, 3), 0, 256).astype(jnp.uint8)
    output, after = jax.jit(net.train)(params, stats, images, jax.random.key(2))
    assert jax.tree.structure(after) == jax.tree.structure(stats)
    assert any(
        (a != b).any() for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(stats), strict=True)
    )
    evaluate = jax.jit(net.evaluate)
    alone = evaluate(params, stats, images[:1]).code_logits
    together = evaluate(params, stats, images).code_logits[:1]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert np.abs(output.code_logits[:1] - alone).max() > 1e-3


def test_images_must_be_uint8_rgb():
    net = build()
    params, stats = jax.eval_shape(net.init, jax.random.key(0))
    with pytest.raises(TypeError, match="Images are uint8"):
        net.evaluate(params, stats, jnp.zeros((2, 8, 8, 3)))
    with pytest.raises(TypeError, match="Images are uint8"):
        net.evaluate(params, stats, jnp.zeros((2, 8, 8, 1), jnp.uint8))
