"""What the configs share: every key with its usual value, and the shape of a stage.

`get_config` of a config file starts from `base` and adds its stages. Any value can
be overridden: --config.batch_size=512 --config.stages.linear.epochs=30.
"""

from ml_collections import ConfigDict, config_dict


def base() -> ConfigDict:
    """Returns a config without stages, and with no data named."""
    config = ConfigDict()
    config.seed = 0
    config.num_bits = 20
    config.prefixes = ()
    config.init_from = "scratch"
    config.drop_head = False
    config.codebook = "learnt"
    config.batch_size = 128
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
            "crop_fraction": 0.875,
            "exif_orientation": True,
            "in_memory": False,
            "augment": ConfigDict(),
            "workers": config_dict.placeholder(int),
            "on_error": "stop",
        }
    )
    config.stages = ConfigDict(sort_keys=False)  # They run in the order given.
    config.checkpoint = ConfigDict({"keep": 2, "steps": 0})
    config.eval_epochs = 0
    config.decoders = ()
    config.retrieval = ()
    return config


def bits(config: ConfigDict) -> config_dict.FieldReference:
    """Returns k for arithmetic; what is computed from it follows --config.num_bits."""
    return config.get_oneway_ref("num_bits").to_float()


def model(name: str, **more) -> ConfigDict:
    """Returns a backbone of the registry; `more` replaces or adds options.

    Options that are None are the backbone's own choice, or not for it.
    """
    return ConfigDict(
        {
            "name": name,
            "dtype": "float32",
            "normalization": "imagenet",
            "conv_init": config_dict.placeholder(str),
            "zero_init_residual": config_dict.placeholder(bool),
            **more,
        }
    )


def random_crop(scale: tuple[float, float]) -> ConfigDict:
    """Returns the augmentation of images that are not in memory, without RandAugment."""
    off = config_dict.placeholder(tuple)
    return ConfigDict({"scale": scale, "flip": True, "randaugment": off})


def linear(epochs: int, optimizer: ConfigDict, *, label_smoothing: float = 0.0) -> ConfigDict:
    """Returns the stage of the baseline: a linear classifier of the features."""
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
    """Returns phase 1; for the last three options see `llc_jax.models.heads`."""
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
) -> ConfigDict:
    """Returns phase 2, by default from the stage `codebook` and with the run's codebook."""
    more = {"num_bits": num_bits, "init_from": init_from, "codebook": codebook}
    return _stage({"name": "instance"}, {"name": "code"}, epochs, optimizer, **more)


def hashnet(epochs: int, optimizer: ConfigDict, **more) -> ConfigDict:
    """Returns the stage of HashNet; `more` is `num_bits` and `init_from`, here and below."""
    # The schedule of beta is that of 10,000 steps in the paper, over the stage's steps.
    objective = {"name": "hashnet", "scale": 10.0, "growth": 50.0, "power": 0.5, "stages": 50}
    return _stage(objective, {"name": "code"}, epochs, optimizer, **more)


def greedy_hash(epochs: int, optimizer: ConfigDict, **more) -> ConfigDict:
    """Returns the stage of Greedy Hash, with its penalty for ImageNet."""
    objective = {"name": "greedy_hash", "penalty": 1.0}
    head = {"name": "bottleneck", "binary": True}
    return _stage(objective, head, epochs, optimizer, **more)


def csq(epochs: int, optimizer: ConfigDict, **more) -> ConfigDict:
    """Returns the stage of CSQ, with the rows of a Hadamard matrix as centres."""
    objective = {"name": "csq", "penalty": 0.05}
    return _stage(objective, {"name": "code"}, epochs, optimizer, codebook="hadamard", **more)


def orthohash(epochs: int, optimizer: ConfigDict, **more) -> ConfigDict:
    """Returns the stage of OrthoHash, with orthogonal class codes where there are enough."""
    objective = {"name": "orthohash", "scale": 8.0, "margin": 0.2}
    head = {"name": "code", "batch_norm": True}
    return _stage(objective, head, epochs, optimizer, codebook="hadamard", **more)


def real(epochs: int, optimizer: ConfigDict, **more) -> ConfigDict:
    """Returns the stage of k real numbers, `num_bits` of them, and a classifier of those."""
    head = {"name": "bottleneck", "binary": False}
    return _stage({"name": "softmax", "label_smoothing": 0.0}, head, epochs, optimizer, **more)


def class_number(epochs: int, optimizer: ConfigDict, **more) -> ConfigDict:
    """Returns the stage of a classifier that encodes the number of the class it predicts."""
    head = {"name": "class_number"}
    return _stage({"name": "softmax", "label_smoothing": 0.0}, head, epochs, optimizer, **more)


def sgd(learning_rate: float, **more) -> ConfigDict:
    """Returns SGD with momentum and a cosine schedule; `more` replaces values."""
    return ConfigDict(
        {
            "learning_rate": learning_rate,
            "schedule": "cosine",
            "warmup_epochs": 0.0,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 5e-4,
            "codebook_rate": 1.0,
            **more,
        }
    )


def _stage(
    objective: dict,
    head: dict,
    epochs: int,
    optimizer: ConfigDict,
    *,
    num_bits: int | None = None,
    init_from: str = "",
    codebook: str = "",
) -> ConfigDict:
    stage = ConfigDict(
        {
            "objective": objective,
            "head": head,
            "epochs": epochs,
            "init_from": init_from,
            "codebook": codebook,
            "trainable_blocks": config_dict.placeholder(int),
            "optimizer": optimizer,
            "mixup": 0.0,
            "num_bits": config_dict.placeholder(int),
            "whole_dataset": False,
        }
    )
    stage.num_bits = num_bits
    return stage
