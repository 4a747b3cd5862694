"""What hidden layers of embeddings separate, for classes and for codes: section 4.4, in minutes.

  python -m llc_jax.main --config=configs/embeddings_separability.py:features.npz

The argument is as for `embeddings_20bit.py`. The backbone has three hidden layers, which each
stage trains; the stages after `instance` are those of `cifar100_separability.py`, with one and
with two of the layers trained.
"""

import common
import embeddings_20bit
from ml_collections import ConfigDict


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = embeddings_20bit.get_config(source).unlock()
    options = {"width": 512, "depth": 3, "dropout": 0.3, "standardize": True}
    config.model = ConfigDict({"name": "mlp", **options})
    common.hidden_layers(config, dropout=0.0)
    config.stages.instance.teacher = ""
    common.separability(config, 10, config.stages.instance.optimizer, 1, 2)
    return config.lock()
