"""Retrieval in 20 classes of CIFAR-100, at three code lengths: LLC and the baselines.

  python -m llc_jax.main --config=configs/cifar100_retrieval.py:cifar100.zip

The argument is a folder or a zip of `train/<class>/` and `test/<class>/`. This is a small
version of the ImageNet-100 protocol. The backbone is trained on all of CIFAR-100. Each method
starts from this backbone and trains on 50 images of each of the 20 classes. The 2,000 test
images of these classes query a database of their 10,000 training images.

Every method has 40 epochs in total and the same optimizer, and the constants of its paper.
`real` has as many real numbers as the other methods have bits. `class_number` encodes the
class that a classifier predicts, in 5 bits. For other seeds: --config.seed=1, with a --workdir
of its own. Training takes two and a half hours on one CPU core, one hour of it for the backbone.

Unseen classes: with --config.data.held_out_classes=5 all stages, also the backbone, are
trained without 5 of the 20 classes.
"""

import common
from ml_collections import ConfigDict

LENGTHS = (16, 32, 64)
BASELINES = {
    "hashnet": common.hashnet,
    "greedy_hash": common.greedy_hash,
    "csq": common.csq,
    "orthohash": common.orthohash,
    "real": common.real,
}


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = common.base()
    config.num_bits = LENGTHS[0]
    config.retrieval = (1000,)
    config.batch_size = 64
    config.model = common.model("resnet20_small", width=16)
    config.data.source = source
    config.data.in_memory = True
    config.data.augment = ConfigDict({"pad": 4, "flip": True})
    config.data.protocol.update({"name": "seeded", "classes": 20, "per_class": 50, "seed": 0})
    config.stages.backbone = common.linear(15, common.sgd(0.05, warmup_epochs=1.0))
    config.stages.backbone.whole_dataset = True
    for bits in (10, *LENGTHS):
        config.stages[f"codebook_{bits}"] = common.codebook(
            20,
            _sgd(codebook_rate=10.0),
            num_bits=bits,
            init_from="backbone",
            logit_scale=bits**-0.5,
        )
        config.stages[f"llc_{bits}"] = common.instance(
            20, _sgd(), num_bits=bits, init_from=f"codebook_{bits}"
        )
    for name, baseline in BASELINES.items():
        for bits in LENGTHS:
            stage = baseline(40, _sgd(), num_bits=bits, init_from="backbone")
            config.stages[f"{name}_{bits}"] = stage
    class_number = common.class_number(40, _sgd(), num_bits=5, init_from="backbone")
    config.stages.class_number = class_number
    return config.lock()


def _sgd(**options) -> ConfigDict:
    return common.sgd(0.03, warmup_epochs=1.0, **options)
