"""A run of all stages that takes seconds: 8-pixel digits, an eight-channel network."""

import common
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    config = common.base()
    config.num_bits = 8
    config.batch_size = 64
    config.model = ConfigDict({"name": "cnn", "dtype": "float32", "width": 8})
    config.data.source = "digits"
    config.data.holdout = 0.5
    config.data.in_memory = True
    config.data.augment = ConfigDict({"pad": 1, "flip": False})
    sgd = common.sgd(0.1, warmup_epochs=0.5)
    config.stages.linear = common.linear(2, sgd)
    config.stages.codebook = common.codebook(
        3,
        common.sgd(0.1, codebook_rate=10.0),
        logit_scale=common.bits(config) ** -0.5,
        init_from="linear",
    )
    config.stages.instance = common.instance(2, sgd)
    return config.lock()


def tree(**changes):
    """Returns the config's tree, with `a__b=value` for `a.b`."""
    config = get_config().to_dict()
    for path, value in changes.items():
        *parents, key = path.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[key] = value
    return config
