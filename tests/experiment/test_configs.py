import importlib.util
import json
import pathlib

import jax
import pytest

from llc_jax.errors import InputError
from llc_jax.estimator import LLC
from llc_jax.experiment import image_size
from llc_jax.experiment.config import OptimizerConfig, bits_of, parse
from llc_jax.experiment.network import build_network
from llc_jax.training.objectives import OBJECTIVES

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def load(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_*.py")), ids=lambda path: path.stem)
def test_a_config_can_be_run(path):
    config = load(path.stem)
    assert config.is_locked
    assert f"--config=configs/{path.name}" in path.read_text()
    config.data.image_size, config.data.embedding_size = 224, 16
    config.data.crop_fraction = 0.875
    parsed = image_size.complete(parse(config.to_dict()), CONFIGS)
    heads = {}
    for stage in parsed.stages.values():
        assert stage.head["name"] in OBJECTIVES[stage.objective["name"]].heads
        # Stages that differ in the number of bits alone have one network in kind.
        heads[json.dumps(stage.head | {"logit_scale": None})] = stage
    for stage in heads.values():
        network = build_network(parsed, stage, num_classes=3)
        jax.eval_shape(network.init, jax.random.key(0))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_*.py")), ids=lambda path: path.stem)
def test_only_the_folder_config_leaves_a_choice_to_the_images(path):
    parsed = parse(load(path.stem).to_dict())
    if path.stem.startswith("folder_"):
        with pytest.raises(InputError, match="The config names no data"):
            image_size.complete(parsed, CONFIGS)
    else:
        completed = image_size.complete(parsed, CONFIGS)
        usual = "efficientnet_lite" if "efficientnet" in parsed.model["name"] else "imagenet"
        assert completed.model.pop("normalization", usual) == usual
        assert parsed.model.pop("normalization", None) is None
        assert completed == parsed


@pytest.mark.parametrize(
    "name",
    [
        "cifar100_20bit",
        "cifar100_20bit_resnet18",
        "cifar100_retrieval",
        "cifar100_separability",
        "folder_20bit",
        "folder_scratch_20bit",
        "imagenet100_alexnet",
        "imagenet100_resnet50",
        "imagenet_20bit",
        "imagenet_separability",
    ],
)
def test_the_argument_is_the_data(name):
    assert load(name, "/data/images").data.source == "/data/images"


def test_what_depends_on_the_bits_follows_them():
    for name, key, expected in [
        ("cifar100_20bit", "logit_scale", 32**-0.5),
        ("imagenet_20bit", "latent_std", (2 / 32) ** 0.5),
        ("imagenet_ood", "latent_std", (2 / 32) ** 0.5),
        ("cifar100_openood", "logit_scale", 32**-0.5),
        ("imagenet100_resnet50", "latent_std", (2 / 32) ** 0.5),
        ("embeddings_20bit", "logit_scale", 32**-0.5),
    ]:
        config = load(name)
        config.num_bits = 32
        head = parse(config.to_dict()).stages["codebook"].head
        assert head[key] == pytest.approx(expected)


def test_stages_do_not_share_their_options():
    config = load("embeddings_20bit").unlock()
    config.stages.instance.optimizer.learning_rate = 5.0
    config.stages.instance.head.dropout = 0.9
    assert config.stages.codebook.optimizer.learning_rate == 2e-3
    assert config.stages.codebook.head.dropout == 0.3


def test_imagenet_is_the_official_recipe():
    config = parse(load("imagenet_20bit").to_dict())
    assert (config.num_bits, config.batch_size, config.model["name"]) == (20, 256, "resnet50")
    assert list(config.stages) == ["codebook", "instance"]
    phase_1, phase_2 = config.stages.values()
    assert phase_1.objective == {"name": "codebook", "label_smoothing": 0.1}
    assert (phase_1.epochs, phase_1.optimizer.learning_rate, phase_1.init_from) == (
        100,
        0.1,
        "scratch",
    )
    assert phase_1.head["logit_scale"] == 1.0
    assert (phase_2.epochs, phase_2.optimizer.learning_rate) == (25, 0.01)
    assert (phase_2.init_from, config.codebook) == ("codebook", "learnt")
    for stage in (phase_1, phase_2):
        assert stage.optimizer.momentum == 0.875
        assert stage.optimizer.weight_decay == 2**-15
        assert (stage.optimizer.schedule, stage.optimizer.warmup_epochs) == ("cosine", 0)
        assert (stage.optimizer.codebook_rate, stage.optimizer.nesterov) == (1, False)
    assert (config.data.crop_fraction, config.data.exif_orientation) == (0.875, False)


def test_retrieval_has_the_papers_learning_rates():
    for name, rates in [
        ("imagenet100_alexnet", (0.01, 0.005)),
        ("imagenet100_resnet50", (0.1, 0.01)),
    ]:
        config = parse(load(name).to_dict())
        assert config.data.protocol["name"] == "imagenet100"
        phases = (config.stages["codebook"], config.stages["instance"])
        assert tuple(phase.optimizer.learning_rate for phase in phases) == rates
        assert config.drop_head


def test_cifar100_retrieval_trains_every_method_at_every_length():
    config = parse(load("cifar100_retrieval").to_dict())
    assert bits_of(config, config.stages["llc_10"]) == 10
    for method in ("llc", "hashnet", "greedy_hash", "csq", "orthohash", "real"):
        for bits in (16, 32, 64):
            stage = config.stages[f"{method}_{bits}"]
            assert bits_of(config, stage) == bits
            assert stage.init_from == (f"codebook_{bits}" if method == "llc" else "backbone")
    assert [name for name, stage in config.stages.items() if stage.whole_dataset] == ["backbone"]


def test_openoods_benchmark_is_trained_as_there():
    config = parse(load("cifar100_openood", "data").to_dict())
    assert (config.batch_size, config.model["name"]) == (128, "resnet18_small")
    linear = config.stages["linear"]
    assert (linear.epochs, linear.init_from, linear.mixup) == (100, "scratch", 0.0)
    assert linear.objective == {"name": "softmax", "label_smoothing": 0.0}
    assert linear.optimizer == OptimizerConfig(
        learning_rate=0.1,
        schedule="cosine",
        warmup_epochs=0.0,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        codebook_rate=1.0,
    )
    assert config.data.augment == {"pad": 4, "flip": True}
    folder = "data/benchmark_imglist/cifar100"
    assert config.data.source == f"{folder}/train_cifar100.txt:data/images_classic"
    assert config.data.eval_source == f"{folder}/test_cifar100.txt:data/images_classic"
    names = {"near": ("cifar10", "tin"), "far": ("mnist", "svhn", "texture", "places365")}
    assert config.ood.sources() == {
        f"{group}/{name}": f"{folder}/test_{name}.txt:data/images_classic"
        for group, sets in names.items()
        for name in sets
    }


def test_imagenet_with_unknown_images_is_the_official_recipe_after_a_linear_classifier():
    config, official = (
        parse(load(name, "data").to_dict()) for name in ("imagenet_ood", "imagenet_20bit")
    )
    assert list(config.stages) == ["linear", "codebook", "instance"]
    for name, stage in official.stages.items():
        assert config.stages[name] == stage
    linear, codebook = config.stages["linear"], official.stages["codebook"]
    assert (linear.epochs, linear.optimizer) == (codebook.epochs, codebook.optimizer)
    assert linear.objective == {"name": "softmax", "label_smoothing": 0.1}
    assert config.data.source == "data/imagenet"
    assert config.ood.sources() == {
        "near/imagenet750": "data/imagenet750",
        "far/places365": "data/places365_val.txt:data/val_256",
    }


def test_the_argument_may_be_a_file_of_embeddings():
    for name in ("a.npz", "embeddings:a.npz"):
        assert load("embeddings_20bit", name).data.source == "embeddings:a.npz"


def test_the_estimator_trains_as_the_config_of_embeddings_does():
    of_file = parse(load("embeddings_20bit").to_dict())
    of_estimator = LLC()._config(16)
    for key in ("num_bits", "batch_size", "min_steps", "model", "codebook"):
        assert getattr(of_estimator, key) == getattr(of_file, key), key
    assert list(of_estimator.stages) == list(of_file.stages)
    for stage, other in zip(of_estimator.stages.values(), of_file.stages.values(), strict=True):
        for key in ("epochs", "init_from", "optimizer", "trainable_blocks", "mixup"):
            assert getattr(stage, key) == getattr(other, key), key
        # The file names some options too whose values are the defaults.
        assert stage.objective.items() <= other.objective.items()
        assert stage.head.items() <= other.head.items()
