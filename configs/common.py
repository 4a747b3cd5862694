"""What the configs share: every key with its usual value, in one place.

`get_config` of a config file starts from `base` and adds its stages. Any value can
be overridden: --config.batch_size=512 --config.stages.linear.epochs=30.
"""

from ml_collections import ConfigDict, config_dict


def base() -> ConfigDict:
    """Returns a config without data and stages."""
    config = ConfigDict()
    config.seed = 0
    config.num_bits = 20
    config.batch_size = 128
    config.model = ConfigDict({"name": "resnet50", "dtype": "float32"})
    config.data = ConfigDict(
        {
            "source": "",
            "eval_source": "",
            "holdout": 0.1,
            "image_size": config_dict.placeholder(int),
            "crop_fraction": 0.875,
            "exif_orientation": True,
            "in_memory": False,
            "augment": ConfigDict(),
            "workers": 0,
        }
    )
    # In the order in which they run.
    config.stages = ConfigDict(sort_keys=False)
    config.checkpoint = ConfigDict({"keep": 2, "steps": 0})
    config.eval_epochs = 0
    return config


def stage(objective: dict, head: dict, epochs: int, optimizer: ConfigDict, **more) -> ConfigDict:
    """Returns a stage.

    Args:
      objective, head: `name`, and options.
      epochs: passes over the training images.
      optimizer: see `sgd`.
      **more: `init_from` (an earlier stage) and `codebook` ("learnt", or a file).
    """
    return ConfigDict(
        {
            "objective": objective,
            "head": head,
            "epochs": epochs,
            "init_from": more.pop("init_from", "scratch"),
            "codebook": more.pop("codebook", ""),
            "optimizer": optimizer,
            **more,
        }
    )


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
