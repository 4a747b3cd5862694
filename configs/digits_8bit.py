"""8-bit codes of scikit-learn's handwritten digits: the demo.

  python -m llc_jax.main --config=configs/digits_8bit.py

Expected with seed 0: linear 98.0%, MHD 98.7%, ED 94.0%, 10 unique codes. Training takes
half a minute on two CPU cores.
"""

import common
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    config = common.base()
    config.num_bits = 8
    config.batch_size = 64
    config.model = ConfigDict({"name": "cnn", "dtype": "float32", "width": 32})
    config.data.source = "digits"
    config.data.holdout = 0.25
    config.data.in_memory = True
    config.data.augment = ConfigDict({"pad": 1, "flip": False})
    config.stages.linear = common.linear(10, common.sgd(0.1, warmup_epochs=1.0))
    config.stages.codebook = common.codebook(
        10,
        common.sgd(0.1, warmup_epochs=1.0, codebook_rate=10.0),
        logit_scale=common.bits(config) ** -0.5,
        init_from="linear",
    )
    config.stages.instance = common.instance(30, common.sgd(0.1, warmup_epochs=1.0))
    return config.lock()
