"""Retrieval in 20 classes of CIFAR-100, at three lengths: LLC and its rivals.

  python -m llc_jax.main --config=configs/cifar100_retrieval.py:cifar100.zip

The argument is a folder or a zip of `train/<class>/` and `test/<class>/`. It is the protocol
of ImageNet-100 in the small: the backbone is trained on all of CIFAR-100, and each method
starts from there with 50 images of each of the 20 classes. Their 2,000 test images query a
database of their 10,000 training images.

Each method has 40 epochs in all, the same optimizer, and the constants of its own paper.
`real` are as many real numbers as the others have bits; `class_number` encodes what a
classifier predicts, in 5 bits. Other seeds: --config.seed=1, with a --workdir of its own.
One core of a CPU takes two and a half hours, one of them for the backbone.

Unseen classes: --config.data.held_out_classes=5 trains, the backbone too, without 5 of the 20.
"""

import common
from ml_collections import ConfigDict

LENGTHS = (16, 32, 64)
RIVALS = {
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
    for name, rival in RIVALS.items():
        for bits in LENGTHS:
            stage = rival(40, _sgd(), num_bits=bits, init_from="backbone")
            config.stages[f"{name}_{bits}"] = stage
    class_number = common.class_number(40, _sgd(), num_bits=5, init_from="backbone")
    config.stages.class_number = class_number
    return config.lock()


def _sgd(**more) -> ConfigDict:
    return common.sgd(0.03, warmup_epochs=1.0, **more)
