import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llc_jax.codes import packing
from llc_jax.data.augment import pad_crop_flip
from llc_jax.mesh import batch_sharding, make_mesh, replicated_sharding
from llc_jax.models import cpu, registry
from llc_jax.training import objectives, optimizer
from llc_jax.training import state as states
from llc_jax.training import step as steps

HEADS = {
    "softmax": {"name": "linear"},
    "codebook": {"name": "codebook"},
    "instance": {"name": "code"},
    "hashnet": {"name": "code"},
    "orthohash": {"name": "code", "batch_norm": True},
}
STEPS = 20


def descend(frozen):
    return optimizer.sgd(
        optax.constant_schedule(0.1),
        momentum=0.9,
        nesterov=False,
        weight_decay=5e-4,
        codebook_rate=10.0,
        frozen=frozen,
    )


@functools.cache
def build(objective="codebook", model="cnn", trainable_blocks=None, mixup_alpha=0.0):
    network = registry.build(
        {"name": model, "dtype": "float32", "width": 2},
        HEADS[objective],
        num_classes=10,
        num_bits=8,
        trainable_blocks=trainable_blocks,
    )
    sgd = descend(network.frozen)
    spec = objectives.OBJECTIVES[objective]
    create = functools.partial(states.create, network, sgd, spec.metrics)

    def initial(seed=0, devices=1):
        mesh = make_mesh(jax.devices()[:devices])
        key = jax.random.key(seed)
        return states.create_on(replicated_sharding(mesh), functools.partial(create, key))

    augment = functools.partial(pad_crop_flip, pad=2, flip=True)
    more = {"needs": spec.needs, "num_steps": STEPS}
    return initial, steps.make_step(network, spec.function, sgd, augment, mixup_alpha, **more)


def batches(count, size=16):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {
            "input": rng.integers(0, 256, (size, 8, 8, 3), np.uint8),
            "label": rng.integers(10, size=size).astype(np.int32),
            "mask": np.ones(size, bool),
        }


def train(objective, devices, count=STEPS, mixup_alpha=0.0):
    mesh = make_mesh(jax.devices()[:devices])
    initial, step = build(objective, mixup_alpha=mixup_alpha)
    compiled, state = steps.compile_step(step, mesh), initial(devices=devices)
    codes = None
    if objective == "instance":
        signs = np.random.default_rng(1).choice([-1, 1], size=(10, 8))
        codes = jax.device_put(packing.pack(signs), replicated_sharding(mesh))
    losses = []
    for batch in batches(count):
        batch = jax.device_put(batch, batch_sharding(mesh))
        state, figures = compiled(state, batch, codes)
        losses.append(float(figures["loss"]))
    return jax.device_get(state), losses


@pytest.mark.parametrize("mixup_alpha", [0.0, 0.5])
def test_one_device_and_eight_agree(mixup_alpha):
    pairwise = () if mixup_alpha else ("hashnet",)
    for objective in ("codebook", "instance", *pairwise):
        one, losses_of_one = train(objective, 1, mixup_alpha=mixup_alpha)
        eight, losses_of_eight = train(objective, 8, mixup_alpha=mixup_alpha)
        np.testing.assert_allclose(losses_of_eight, losses_of_one, rtol=1e-5, atol=1e-5)
        for name in ("params", "batch_stats"):
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
                eight[name],
                one[name],
            )


def test_the_state_is_a_plain_tree_under_named_keys():
    state, _ = train("codebook", 8, count=3)
    assert set(state) == {"params", "batch_stats", "opt_state", "step", "rng", "epoch"}
    assert state["step"] == state["epoch"]["steps"] == 3
    assert set(state["epoch"]["sums"]) == {"loss", "accuracy", "logit_scale"}
    assert state["epoch"]["codes"].dtype == np.uint32
    floats = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype.kind == "f"]
    assert {leaf.dtype for leaf in floats} == {np.dtype("float32")}


def test_epoch_sums_are_the_losses_and_start_anew():
    state, losses = train("codebook", 1, count=5)
    np.testing.assert_allclose(state["epoch"]["sums"]["loss"], sum(losses), rtol=1e-6)
    fresh = states.begin_epoch(state)
    assert fresh["epoch"]["steps"] == 0
    assert fresh["epoch"]["sums"]["loss"] == 0
    latent = state["params"]["head"]["latent"]
    np.testing.assert_array_equal(fresh["epoch"]["codes"], packing.pack(latent))


def test_augmentation_depends_on_the_step_alone():
    initial, step = build()
    step, state, batch = jax.jit(step), initial(), next(batches(1))
    first = step(state, batch, None)[1]["loss"]
    assert first == step(state, batch, None)[1]["loss"]
    assert first != step(state | {"step": jnp.int32(1)}, batch, None)[1]["loss"]


def test_an_objective_is_given_the_progress_of_the_stage():
    initial, step = build("hashnet")
    step, state, batch = jax.jit(step), initial(), next(batches(1))
    for taken, beta in [(0, 1), (STEPS // 2, 26**0.5), (STEPS - 1, 48**0.5)]:
        figures = step(state | {"step": jnp.int32(taken)}, batch, None)[1]
        assert figures["beta"] == pytest.approx(beta, rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "mixup_alpha"), [("softmax", 0.0), ("softmax", 0.5), ("hashnet", 0.0)]
)
def test_masked_examples_do_not_count(objective, mixup_alpha):
    initial, step = build(objective, mixup_alpha=mixup_alpha)
    step, state, batch = jax.jit(step), initial(), next(batches(1))
    batch["mask"][8:] = batch["mask"][3] = False
    changed = batch | {"label": np.where(batch["mask"], batch["label"], 0).astype(np.int32)}
    assert (changed["label"] != batch["label"]).any()
    assert step(state, batch, None)[1] == step(state, changed, None)[1]


@pytest.mark.parametrize(("trainable_blocks", "frozen"), [(0, {0, 1, 2}), (1, {0, 1}), (3, set())])
def test_frozen_blocks_stay_as_they_are(trainable_blocks, frozen):
    initial, step = build("softmax", trainable_blocks=trainable_blocks)
    step, state = jax.jit(step), initial()
    before = state
    for batch in batches(2):
        state, _ = step(state, batch, None)
    for part in ("params", "batch_stats"):
        for number in range(3):
            mine, other = (tree[part]["backbone"]["blocks"][number] for tree in (state, before))
            same = jax.tree.map(lambda a, b: (a == b).all(), mine, other)
            assert {bool(leaf) for leaf in jax.tree.leaves(same)} == {number in frozen}
    assert (
        state["params"]["head"]["classifier"]["kernel"]
        != before["params"]["head"]["classifier"]["kernel"]
    ).any()


PLAIN = {"name": "identity", "standardize": False}


def divided_step(model, objective, num_microbatches, mixup_alpha=0.0):
    """A state and a step of gradient descent; the network has no random streams."""
    network = registry.build(
        model,
        HEADS[objective],
        num_classes=10,
        num_bits=8,
        num_inputs=5 if model is PLAIN else None,
    )
    spec, sgd = objectives.OBJECTIVES[objective], optax.sgd(0.1)
    step = steps.make_step(
        *(network, spec.function, sgd, lambda key, inputs: inputs, mixup_alpha),
        num_microbatches=num_microbatches,
    )
    create = functools.partial(states.create, network, sgd, spec.metrics, jax.random.key(0))
    return jax.jit(create)(), step


@pytest.mark.parametrize("mixup_alpha", [0.0, 0.5])
@pytest.mark.parametrize("objective", ["softmax", "codebook", "instance"])
def test_microbatches_end_as_one_batch(objective, mixup_alpha):
    rng = np.random.default_rng(0)
    batch = {
        "input": rng.normal(size=(64, 5)).astype(np.float32),
        "label": rng.integers(10, size=64).astype(np.int32),
        "mask": rng.random(64) < 0.7,
    }
    codes = packing.pack(rng.choice([-1, 1], size=(10, 8))) if objective == "instance" else None
    mesh = make_mesh()
    ends = []
    for num_microbatches in (1, 8):
        state, step = divided_step(PLAIN, objective, num_microbatches, mixup_alpha)
        compiled = steps.compile_step(step, mesh)
        ends.append(jax.device_get(compiled(state, batch, codes)))
    assert ends[0][1]["loss"] > 0
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *ends)


def test_batch_normalisation_takes_the_statistics_of_a_microbatch():
    model, batch = {"name": "cnn", "dtype": "float32", "width": 2}, next(batches(1))
    state, divided = divided_step(model, "softmax", 2)
    _, whole = divided_step(model, "softmax", 1)
    end, figures = jax.jit(divided)(state, batch, None)
    whole, ends, losses = jax.jit(whole), [], []
    stats = state["batch_stats"]
    for part in range(2):
        rows = {name: values[part::2] for name, values in batch.items()}
        half, of_half = whole(state | {"batch_stats": stats}, rows, None)
        stats = half["batch_stats"]
        ends.append(half["params"])
        losses.append(of_half["loss"])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda mine, a, b: close(mine, (a + b) / 2), end["params"], *ends)
    jax.tree.map(close, end["batch_stats"], stats)
    close(figures["loss"], np.mean(losses))


def test_no_image_of_a_microbatch_moves_to_another_device():
    mesh, batch = make_mesh(), next(batches(1, size=64))
    state, step = divided_step({"name": "cnn", "dtype": "float32", "width": 2}, "softmax", 4)
    compiled = steps.compile_step(step, mesh).lower(state, batch, None).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    for moving in ("all-gather", "all-to-all", "collective-permute"):
        assert moving not in text


def test_a_large_step_has_no_float32_convolution_and_no_transposed_image(monkeypatch):
    monkeypatch.setattr(cpu, "is_default", lambda: False)  # As it is on a GPU or TPU.
    model = {"name": "resnet50", "dtype": "bfloat16"}
    network = registry.build(model, {"name": "codebook"}, num_classes=1000, num_bits=20)
    sgd = descend(network.frozen)
    spec = objectives.OBJECTIVES["codebook"]
    state = jax.eval_shape(lambda: states.create(network, sgd, spec.metrics, jax.random.key(0)))
    step = steps.make_step(network, spec.function, sgd, lambda key, images: images)
    batch = {
        "input": jax.ShapeDtypeStruct((8, 224, 224, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((8,), np.int32),
        "mask": jax.ShapeDtypeStruct((8,), bool),
    }
    mesh = make_mesh(jax.devices()[:1])
    text = steps.compile_step(step, mesh).lower(state, batch, None).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(convolutions) == 53 + 2 * 53 - 1  # Forwards; backwards, but not to the pixels.
    for line in convolutions:
        assert line.split(" : ")[-1].count("xbf16>") == 3, line
    transposes = [line for line in text.splitlines() if "stablehlo.transpose" in line]
    assert all("dims = [1, 0]" in line for line in transposes)
    assert text.count("tf.aliasing_output") == len(jax.tree.leaves(state))


def test_the_state_is_donated():
    mesh = make_mesh(jax.devices()[:1])
    initial, step = build()
    state = initial()
    steps.compile_step(step, mesh)(state, next(batches(1)), None)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state["params"]))


def test_the_codebook_learns():
    state, losses = train("codebook", 1, count=40)
    assert losses[-1] < losses[0]
    before = build()[0]()["params"]["head"]["latent"]
    assert ((state["params"]["head"]["latent"] >= 0) != (np.asarray(before) >= 0)).any()
