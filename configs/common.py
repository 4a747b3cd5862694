"""Building blocks of the configs: all keys with their default values, and the stages.

`get_config` of a config file starts from `base` and adds its stages. Any value can be
overridden: --config.batch_size=512 --config.stages.linear.epochs=30.
"""

from ml_collections import ConfigDict, config_dict


def base() -> ConfigDict:
    """Returns a config without stages and without a data source."""
    config = ConfigDict()
    config.seed = 0
    config.num_bits = 20
    config.prefixes = ()
    config.init_from = "scratch"
    config.drop_head = False
    config.codebook = "learnt"
    config.batch_size = 128
    config.num_microbatches = 1
    config.model = model("resnet50")
    config.data = ConfigDict(
        {
            "source": "",
            "eval_source": "",
            "holdout": 0.1,
            "protocol": ConfigDict(
                {
                    "name": "",
                    "classes": config_dict.placeholder(int),
                    "per_class": config_dict.placeholder(int),
                    "seed": config_dict.placeholder(int),
                }
            ),
            "held_out_classes": 0,
            "image_size": config_dict.placeholder(int),
            "embedding_size": config_dict.placeholder(int),
            "crop_fraction": 0.875,
            "exif_orientation": True,
            "in_memory": False,
            "augment": ConfigDict(),
            "workers": config_dict.placeholder(int),
            "on_error": "stop",
        }
    )
    config.stages = ConfigDict(sort_keys=False)  # The stages run in this order.
    config.checkpoint = ConfigDict({"keep": 2, "steps": 0, "min_steps": 0})
    config.eval_epochs = 0
    config.decoders = ()
    config.retrieval = ()
    config.ood = ConfigDict({"near": (), "far": ()})
    config.min_steps = 0
    config.frozen_backbone = False
    config.views = 1
    config.remarks = ()
    config.report = True
    return config


def bits(config: ConfigDict) -> config_dict.FieldReference:
    """Returns a reference to k; values computed from it follow --config.num_bits."""
    return config.get_oneway_ref("num_bits").to_float()


def model(name: str, **options) -> ConfigDict:
    """Returns a backbone of the registry; `options` are added to the defaults or replace them.

    For an option that is None, the backbone has its own default, or has no such option.
    """
    return ConfigDict(
        {
            "name": name,
            "dtype": "float32",
            "normalization": config_dict.placeholder(str),
            "conv_init": config_dict.placeholder(str),
            "zero_init_residual": config_dict.placeholder(bool),
            **options,
        }
    )


def random_crop(scale: tuple[float, float]) -> ConfigDict:
    """Returns the augmentation of images that are not in memory, without RandAugment."""
    no_randaugment = config_dict.placeholder(tuple)
    return ConfigDict({"scale": scale, "flip": True, "randaugment": no_randaugment})


def by_image_size(config: ConfigDict) -> None:
    """Leaves the network, and how images are read and augmented, to the size of the images.

    `llc_jax.experiment.image_size` has the choice; each value can be set by itself.
    """
    config.model = model("auto", dtype=config_dict.placeholder(str))
    config.data.crop_fraction = config_dict.placeholder(float)
    config.data.in_memory = config_dict.placeholder(bool)
    config.data.augment = ConfigDict(
        {
            "pad": config_dict.placeholder(int),
            "scale": config_dict.placeholder(tuple),
            "flip": config_dict.placeholder(bool),
            "randaugment": config_dict.placeholder(tuple),
        }
    )


def on_features(config: ConfigDict) -> None:
    """Adds the stages of a network that learns codes of features: embeddings, or a backbone's."""
    config.batch_size = 256
    config.min_steps = 300
    config.checkpoint.min_steps = 100  # Epochs of few embeddings take less time than a checkpoint.
    optimizer = adamw(2e-3, warmup_epochs=1.0, codebook_rate=10.0)
    config.stages.linear = linear(10, optimizer)
    config.stages.codebook = codebook(
        10, optimizer, logit_scale=bits(config) ** -0.5, init_from="linear"
    )
    config.stages.instance = instance(20, optimizer, teacher="linear")
    hidden_layers(config, 512, 512, 512, dropout=0.3)


def hidden_layers(config: ConfigDict, *widths: int, dropout: float) -> None:
    """Puts hidden layers between the features and the rest of every stage's head."""
    for stage in config.stages.values():
        stage.head.hidden, stage.head.dropout = widths, dropout


def separability(config: ConfigDict, epochs: int, optimizer: ConfigDict, *last_blocks: int) -> None:
    """Adds the stages that tell what a backbone separates, linearly or by Hamming distances.

    `probe` is a linear classifier of the frozen features of `instance`; `projection` learns the
    codes of the classes on those of `linear`; `last_<n>` does too, and trains the last n blocks.
    On features, epochs take seconds, so there are many.

    Args:
      config: whose stages are `linear`, `codebook` and `instance`.
      epochs: of the stages that train blocks.
      optimizer: of these.
      last_blocks: their numbers n.
    """
    on_features = {"epochs": 20, "optimizer": adamw(1e-2, weight_decay=0.0)}
    config.stages.probe = linear(**on_features)
    config.stages.probe.init_from = "instance"
    config.stages.projection = instance(**on_features, init_from="linear")
    for stage in (config.stages.probe, config.stages.projection):
        stage.trainable_blocks = 0
    for count in last_blocks:
        stage = instance(epochs, optimizer, init_from="linear")
        stage.trainable_blocks = count
        config.stages[f"last_{count}"] = stage


def linear(epochs: int, optimizer: ConfigDict, *, label_smoothing: float = 0.0) -> ConfigDict:
    """Returns the linear baseline: a linear classifier of the features."""
    objective = {"name": "softmax", "label_smoothing": label_smoothing}
    return _stage(objective, {"name": "linear"}, epochs, optimizer)


def codebook(
    epochs: int,
    optimizer: ConfigDict,
    *,
    num_bits: int | None = None,
    init_from: str = "",
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    latent_std: float = 1.0,
    projection_gain: float = 1.0,
) -> ConfigDict:
    """Returns phase 1; `llc_jax.models.heads` explains the last three options."""
    objective = {"name": "codebook", "label_smoothing": label_smoothing}
    head = {
        "name": "codebook",
        "logit_scale": logit_scale,
        "latent_std": latent_std,
        "projection_gain": projection_gain,
    }
    return _stage(objective, head, epochs, optimizer, num_bits=num_bits, init_from=init_from)


def instance(
    epochs: int,
    optimizer: ConfigDict,
    *,
    num_bits: int | None = None,
    init_from: str = "codebook",
    codebook: str = "",
    teacher: str = "",
) -> ConfigDict:
    """Returns phase 2, by default from the stage `codebook` and with the run's codebook.

    With a `teacher`, half of the targets of the bits are of that linear stage's probabilities.
    """
    options = {"num_bits": num_bits, "init_from": init_from, "codebook": codebook}
    options["teacher"] = teacher
    objective = {"name": "instance", **({"label_share": 0.5} if teacher else {})}
    return _stage(objective, {"name": "code"}, epochs, optimizer, **options)


def hashnet(epochs: int, optimizer: ConfigDict, **options) -> ConfigDict:
    """Returns HashNet; here and below, `options` are `num_bits` and `init_from`."""
    # The paper's schedule of beta over 10,000 steps, scaled to the stage's number of steps.
    objective = {"name": "hashnet", "scale": 10.0, "growth": 50.0, "power": 0.5, "stages": 50}
    return _stage(objective, {"name": "code"}, epochs, optimizer, **options)


def greedy_hash(epochs: int, optimizer: ConfigDict, **options) -> ConfigDict:
    """Returns Greedy Hash, with its penalty for ImageNet."""
    objective = {"name": "greedy_hash", "penalty": 1.0}
    head = {"name": "bottleneck", "binary": True}
    return _stage(objective, head, epochs, optimizer, **options)


def csq(epochs: int, optimizer: ConfigDict, **options) -> ConfigDict:
    """Returns CSQ, with the rows of a Hadamard matrix as hash centres."""
    objective = {"name": "csq", "penalty": 0.05}
    return _stage(objective, {"name": "code"}, epochs, optimizer, codebook="hadamard", **options)


def orthohash(epochs: int, optimizer: ConfigDict, **options) -> ConfigDict:
    """Returns OrthoHash, with orthogonal class codes where there are enough."""
    objective = {"name": "orthohash", "scale": 8.0, "margin": 0.2}
    head = {"name": "code", "batch_norm": True}
    return _stage(objective, head, epochs, optimizer, codebook="hadamard", **options)


def real(epochs: int, optimizer: ConfigDict, **options) -> ConfigDict:
    """Returns a real-valued bottleneck: a classifier of `num_bits` real numbers."""
    head = {"name": "bottleneck", "binary": False}
    return _stage({"name": "softmax", "label_smoothing": 0.0}, head, epochs, optimizer, **options)


def class_number(epochs: int, optimizer: ConfigDict, **options) -> ConfigDict:
    """Returns a classifier whose codes are the numbers of the classes that it predicts."""
    head = {"name": "class_number"}
    return _stage({"name": "softmax", "label_smoothing": 0.0}, head, epochs, optimizer, **options)


def sgd(learning_rate: float, **options) -> ConfigDict:
    """Returns SGD with momentum and a cosine schedule; `options` replace these values."""
    return ConfigDict(
        {
            "name": "sgd",
            "learning_rate": learning_rate,
            "schedule": "cosine",
            "warmup_epochs": 0.0,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 5e-4,
            "codebook_rate": 1.0,
            **options,
        }
    )


def official_sgd(learning_rate: float) -> ConfigDict:
    """Returns the optimizer of LLC's official code for ImageNet."""
    return sgd(learning_rate, momentum=0.875, weight_decay=2.0**-15)


def adamw(learning_rate: float, **options) -> ConfigDict:
    """Returns AdamW and a cosine schedule; `options` replace these values."""
    return sgd(learning_rate, **{"name": "adamw", "weight_decay": 1e-2, **options})


def _stage(
    objective: dict,
    head: dict,
    epochs: int,
    optimizer: ConfigDict,
    *,
    num_bits: int | None = None,
    init_from: str = "",
    codebook: str = "",
    teacher: str = "",
) -> ConfigDict:
    stage = ConfigDict(
        {
            "objective": objective,
            "head": head,
            "epochs": epochs,
            "init_from": init_from,
            "codebook": codebook,
            "trainable_blocks": config_dict.placeholder(int),
            # A copy, so that an override of one stage's is none of another's.
            "optimizer": ConfigDict(optimizer.to_dict(preserve_field_references=True)),
            "mixup": 0.0,
            "num_bits": config_dict.placeholder(int),
            "whole_dataset": False,
            "teacher": teacher,
        }
    )
    stage.num_bits = num_bits
    return stage
