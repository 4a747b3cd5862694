"""20-bit codes of your own images, of any size, from networks that are trained from scratch.

  python -m llc_jax.main --config=configs/folder_scratch_20bit.py:photos/ --workdir=runs/photos

The argument is as in `folder_20bit`, which needs fewer images and minutes instead of hours,
because it begins with a network that knows photos already.

Images whose shorter side has up to 64 pixels keep their size, and a ResNet-20 is trained;
larger ones are cropped to 224 pixels for a ResNet-18. On a CPU, --config.data.image_size=64
shrinks large images for the small network.
"""

import common
from ml_collections import ConfigDict


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = common.base()
    common.by_image_size(config)
    config.data.source = source
    config.eval_epochs = 5
    config.stages.linear = common.linear(30, common.sgd(0.1, warmup_epochs=1.0))
    config.stages.codebook = common.codebook(
        15,
        common.sgd(0.1, warmup_epochs=0.2, codebook_rate=10.0),
        logit_scale=common.bits(config) ** -0.5,
        init_from="linear",
    )
    config.stages.instance = common.instance(15, common.sgd(0.1, warmup_epochs=0.2))
    return config.lock()
