r"""20-bit codes of ImageNet-1K, with a ResNet50: the official LLC recipe.

  python -m llc_jax.main --config=configs/imagenet_20bit.py:imagenet/

The argument is a folder of `train/<wnid>/` and `val/<wnid>/`, or of the two original
tars. Expected (LLC, table 1 and section 3.1): 1000 unique codes, ED 68.82%, MHD 74.57%, and
72.5% in phase 1.

The official model, evaluated without training, should give soft 75.5%, MHD 74.5% and
ED 68.9%:

  python -m llc_jax.main --config=configs/imagenet_20bit.py:imagenet/ --mode=eval \
    --config.init_from=model_best.pth --config.codebook=codebook.npy

Unlike in the official code, activations are bfloat16; --config.model.dtype=float32 gives
the official code's arithmetic.
"""

import common
from ml_collections import ConfigDict


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = common.base()
    config.batch_size = 256
    config.model = common.model(
        "resnet50", dtype="bfloat16", conv_init="fan_in", zero_init_residual=False
    )
    config.data.source = source
    config.data.exif_orientation = False
    config.data.augment = common.random_crop((0.08, 1.0))
    config.eval_epochs = 5
    config.stages.codebook = common.codebook(
        100,
        common.official_sgd(0.1),
        label_smoothing=0.1,
        # As in the official code: the logits are B(C) f; C and P are Kaiming normal (fan in).
        logit_scale=1.0,
        latent_std=(2.0 / common.bits(config)) ** 0.5,
        projection_gain=2.0,
    )
    config.stages.instance = common.instance(25, common.official_sgd(0.01))
    return config.lock()
