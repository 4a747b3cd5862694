r"""Retrieval in ImageNet-100 with an AlexNet: LLC and the baselines.

  python -m llc_jax.main --config=configs/imagenet100_alexnet.py:imagenet/ \
    --config.init_from=alexnet-owt-7be5be79.pth --config.num_bits=32 --workdir=runs/alexnet_32

The argument is ImageNet, as for `imagenet_20bit.py`; the weights are torchvision's. Expected
corrected MAP@1000 (LLC, table 3) with 10, 16, 32, 48 and 64 bits, each in a run of its own:

  HashNet      .1995 .2815 .4300 .5270 .5124
  Greedy Hash  .2860 .4247 .5412 .5720 .5895
  LLC          .3086 .4305 .5565 .5749 .6000

With 64 bits, the protocol is that of a table of CISiP-FIRe, whose figure is our `rmap@1000`:
cross-entropy .434, HashNet .588, Greedy Hash .667, CSQ .686, OrthoHash .701.

LLC has the paper's learning rates and the official recipe (appendix C). The baselines have the
losses of their papers, LLC's optimizer and as many epochs as LLC's two phases together.

Unseen classes: with --config.data.held_out_classes=25 it trains on 75 of the classes.
"""

import common
from ml_collections import ConfigDict


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = common.base()
    config.num_bits = 32
    config.retrieval = (1000,)
    config.batch_size = 256
    config.model = common.model("alexnet", dtype="bfloat16")
    config.drop_head = True
    config.data.source = source
    config.data.protocol.name = "imagenet100"
    config.data.exif_orientation = False
    config.data.augment = common.random_crop((0.08, 1.0))
    config.stages.codebook = common.codebook(
        25,
        common.official_sgd(0.01),
        label_smoothing=0.1,
        latent_std=(2.0 / common.bits(config)) ** 0.5,
        projection_gain=2.0,
    )
    config.stages.instance = common.instance(25, common.official_sgd(0.005))
    config.stages.hashnet = common.hashnet(50, common.official_sgd(0.01))
    config.stages.greedy_hash = common.greedy_hash(50, common.official_sgd(0.01))
    config.stages.csq = common.csq(50, common.official_sgd(0.01))
    config.stages.orthohash = common.orthohash(50, common.official_sgd(0.01))
    # 7 bits are enough for the numbers of 100 classes.
    config.stages.class_number = common.class_number(50, common.official_sgd(0.01), num_bits=7)
    return config.lock()
