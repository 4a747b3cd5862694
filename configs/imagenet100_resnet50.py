r"""Retrieval in ImageNet-100 with a ResNet50: LLC, and as many real numbers as LLC has bits.

  python -m llc_jax.main --config=configs/imagenet100_resnet50.py:imagenet/ \
    --config.init_from=resnet50-0676ba61.pth --config.num_bits=64 --workdir=runs/resnet50_64

The argument is ImageNet, as for `imagenet_20bit.py`; the weights are torchvision's. Expected
corrected MAP@1000 (LLC, table 4), each length in a run of its own:

  LLC, bits             10 .6458             64 .6773
  real numbers  8 .5041 10 .6657             64 .7794

Unseen classes: with --config.data.held_out_classes=25 it trains on 75 of the classes.
"""

import common
import imagenet100_alexnet
from ml_collections import ConfigDict


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = imagenet100_alexnet.get_config(source).unlock()
    config.num_bits = 64
    config.model = common.model("resnet50", dtype="bfloat16")
    codebook, instance = config.stages.codebook, config.stages.instance
    codebook.optimizer.learning_rate = 0.1
    instance.optimizer.learning_rate = 0.01
    real = common.real(50, common.official_sgd(0.1))
    config.stages = ConfigDict(sort_keys=False)
    config.stages.codebook, config.stages.instance = codebook, instance
    config.stages.real = real
    return config.lock()
