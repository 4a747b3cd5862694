"""Learnt, SVD, CCA and random codebooks of ImageNet-1K, with a ResNet50.

  python -m llc_jax.main --config=configs/imagenet_codebooks.py:imagenet/

The argument is ImageNet, as for `imagenet_20bit.py`, whose stages these are; a linear classifier
of as many epochs as phase 1 is the base of SVD and CCA. Expected (LLC, table 1), as unique codes,
ED and MHD: LLC 1000, 68.82, 74.57; SVD 969, 65.12, 69.18; CCA 813, 55.17, 57.03; random 1000,
64.07, 66.91; linear 77. For table 2 run it with --config.num_bits=15, 25 and 30.
"""

import common
import imagenet_20bit
from ml_collections import ConfigDict


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = imagenet_20bit.get_config(source).unlock()
    stages, config.stages = config.stages, ConfigDict(sort_keys=False)
    config.stages.linear = common.linear(100, stages.codebook.optimizer, label_smoothing=0.1)
    config.stages.codebook, config.stages.instance = stages.codebook, stages.instance
    for codebook in ("svd", "cca", "random"):
        config.stages[codebook] = common.instance(
            25, stages.instance.optimizer, init_from="linear", codebook=codebook
        )
    return config.lock()
