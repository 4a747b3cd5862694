"""20-bit codes of CIFAR-100, with a ResNet-18 for small images: for a GPU.

python -m llc_jax.main --config=configs/cifar100_20bit_resnet18.py:cifar100.zip
"""

import cifar100_20bit
import common
from ml_collections import ConfigDict


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = cifar100_20bit.get_config(source).unlock()
    config.model = common.model("resnet18_small", dtype="bfloat16")
    config.eval_epochs = 5
    config.stages.linear.epochs = 60
    config.stages.codebook.epochs = 30
    config.stages.instance.epochs = 30
    return config.lock()
