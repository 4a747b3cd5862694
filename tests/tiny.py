"""A run of all stages that takes seconds: 8-pixel digits, two-channel network."""

import common
from ml_collections import ConfigDict


def get_config(batch_size: int = 64) -> ConfigDict:
    """Returns the config."""
    config = common.base()
    config.num_bits = 8
    config.batch_size = batch_size
    config.model = ConfigDict({"name": "cnn", "dtype": "float32", "width": 8})
    config.data.source = "digits"
    config.data.holdout = 0.5
    config.data.in_memory = True
    config.data.augment = ConfigDict({"pad": 1, "flip": False})
    sgd = common.sgd(0.1, warmup_epochs=0.5)
    config.stages.linear = common.stage({"name": "softmax"}, {"name": "linear"}, 2, sgd)
    head = {"name": "codebook", "logit_scale": config.num_bits**-0.5}
    config.stages.codebook = common.stage(
        {"name": "codebook"}, head, 3, common.sgd(0.1, codebook_rate=10.0), init_from="linear"
    )
    config.stages.instance = common.stage(
        {"name": "instance"}, {"name": "code"}, 2, sgd, init_from="codebook", codebook="learnt"
    )
    return config.lock()
