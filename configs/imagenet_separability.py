r"""What the ResNet50 of ImageNet's classifier and that of its codes separate: section 4.4.

  python -m llc_jax.main --config=configs/imagenet_separability.py:imagenet/

The argument is as for `imagenet_20bit.py`. After its stages there is a classifier, `linear`, and
then those of `cifar100_separability.py`, with the last block trained, of three convolutions.
Expected (LLC, section 4.4): probe 75.51%, where the classifier has 77%; ED of projection 21%, and
of last_1 68%.

The classifier may be that of torchvision:

  --config.stages.linear.init_from=resnet50-0676ba61.pth \
  --config.stages.linear.trainable_blocks=0 --config.stages.linear.epochs=1
"""

import common
import imagenet_20bit
from ml_collections import ConfigDict


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = imagenet_20bit.get_config(source).unlock()
    codebook, instance = config.stages.codebook, config.stages.instance
    config.stages.linear = common.linear(100, codebook.optimizer, label_smoothing=0.1)
    common.separability(config, 25, instance.optimizer, 1)
    return config.lock()
