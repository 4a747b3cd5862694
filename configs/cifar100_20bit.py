"""20-bit codes of CIFAR-100, with a ResNet-20 of width 16.

  python -m llc_jax.main --config=configs/cifar100_20bit.py:cifar100.zip

The argument is a folder or a zip of `train/<class>/` and `test/<class>/`.
"""

import common
from ml_collections import ConfigDict


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = common.base()
    config.model = ConfigDict({"name": "resnet20_small", "dtype": "float32", "width": 16})
    config.data.source = source
    config.data.in_memory = True
    config.data.augment = ConfigDict({"pad": 4, "flip": True})
    # Phase 1 with logits of the scale of one code logit, and a codebook that moves.
    head = {"logit_scale": config.num_bits**-0.5}
    config.stages.linear = common.linear(15, common.sgd(0.1, warmup_epochs=1.0))
    config.stages.codebook = common.codebook(
        9,
        common.sgd(0.1, warmup_epochs=0.2, codebook_rate=10.0),
        head=head,
        init_from="linear",
    )
    config.stages.instance = common.instance(10, common.sgd(0.1, warmup_epochs=0.2))
    return config.lock()
