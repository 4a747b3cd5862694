"""What the backbones of CIFAR-100's classifier and of its codes separate: section 4.4.

  python -m llc_jax.main --config=configs/cifar100_separability.py:cifar100.zip

The argument is a folder or a zip of `train/<class>/` and `test/<class>/`. After the stages of
`cifar100_20bit.py`:

  probe       a linear classifier of the frozen features of `instance`
  projection  20 bits of the frozen features of `linear`, with the codebook that was learnt
  last_1      the same, with the last block of the backbone trained: 2 of its 19 convolutions
  last_3      the last three blocks: 6 convolutions
"""

import cifar100_20bit
import common
from ml_collections import ConfigDict


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = cifar100_20bit.get_config(source).unlock()
    common.separability(config, 5, common.sgd(0.1), 1, 3)
    return config.lock()
