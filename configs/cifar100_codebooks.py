"""Learnt, SVD, CCA, random and Hadamard codebooks of CIFAR-100, with equal budgets.

  python -m llc_jax.main --config=configs/cifar100_codebooks.py:cifar100.zip

The argument is a folder or a zip of `train/<class>/` and `test/<class>/`. This is a small
version of the paper's table 1. The learnt codebook has 15 epochs of phase 1, the others 15
epochs of the linear classifier; all have 4 epochs of phase 2. For table 2 (other code
lengths) run it with --config.num_bits=15, 25 and 30, each with a --workdir of its own.
"""

import cifar100_20bit
import common
from ml_collections import ConfigDict


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = cifar100_20bit.get_config(source).unlock()
    config.stages.codebook.init_from = "scratch"
    config.stages.codebook.epochs = 15
    config.stages.instance.epochs = 4
    for codebook in ("svd", "cca", "random", "hadamard"):
        config.stages[codebook] = common.instance(
            4, common.sgd(0.1, warmup_epochs=0.2), init_from="linear", codebook=codebook
        )
    config.decoders = ("ed", "mhd", "table", "soft")
    return config.lock()
