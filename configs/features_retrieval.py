"""Retrieval in 20 classes of CIFAR-100, on the features of a pretrained network.

  python -m llc_jax.main --config=configs/features_retrieval.py:cifar100.zip

The argument is a folder or a zip of `train/<class>/` and `test/<class>/`. This is a small
version of the paper's tables 3, 4 and 5: LLC, HashNet and Greedy Hash at five code lengths, and
real numbers at three, all with the same budget. The protocol is that of `cifar100_retrieval.py`,
the network that of `features_codebooks.py`.
"""

import common
import features_codebooks
from ml_collections import ConfigDict

LENGTHS = (10, 16, 32, 48, 64)
REAL_LENGTHS = (8, 10, 64)


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = features_codebooks.pretrained(source)
    config.batch_size = 64
    config.retrieval = (1000,)
    config.data.protocol.update({"name": "seeded", "classes": 20, "per_class": 50, "seed": 0})
    optimizer = common.adamw(2e-3, warmup_epochs=0.5, codebook_rate=10.0)
    for bits in LENGTHS:
        config.stages[f"codebook_{bits}"] = common.codebook(
            10, optimizer, num_bits=bits, logit_scale=bits**-0.5
        )
        config.stages[f"llc_{bits}"] = common.instance(
            10, optimizer, num_bits=bits, init_from=f"codebook_{bits}"
        )
        for name, method in (("hashnet", common.hashnet), ("greedy_hash", common.greedy_hash)):
            config.stages[f"{name}_{bits}"] = method(20, optimizer, num_bits=bits)
    for size in REAL_LENGTHS:
        config.stages[f"real_{size}"] = common.real(20, optimizer, num_bits=size)
    features_codebooks.on_frozen_features(config)
    return config.lock()
