r"""Unknown images beside ImageNet-1K: appendix E of the paper, with a ResNet50.

  python -m llc_jax.main --config=configs/imagenet_ood.py:data/

The argument is a folder with

  imagenet/            `train/<wnid>/` and `val/<wnid>/`, or the two original tars
  imagenet750/         a folder for each of the 750 classes that are not of ImageNet-1K (near)
  places365_val.txt    Places365's list of its validation images, `file class` a line (far)
  val_256/             these images

The known images are the 50,000 validation images of ImageNet-1K, and all images of ImageNet-750
and of Places365 are unknown. The codes are those of `imagenet_20bit`; the stage `linear` is the
classifier of the baselines, trained alike. `--config.stages.linear.init_from=resnet50.pth` starts
it from weights that are trained, and `--config.stages.linear.epochs=1` makes it short.

Figures 5 and 6 of the paper, as tables of three such runs; and drawn, of one that is finished:

  python -m llc_jax.reproduce figure5 figure6 --on=imagenet --data=data/
  python benchmarks/unknown_images.py runs/imagenet_ood --test 10000 --out figures

Expected (figure 5): a threshold of the maximum softmax probability needs at least 3,000 unknown
images to be as good as the codes' rule, which needs none. This config has not been run on its
data yet.
"""

import os

import common
import imagenet_20bit
from ml_collections import ConfigDict


def get_config(root: str = "") -> ConfigDict:
    """Returns the config."""
    config = imagenet_20bit.get_config(os.path.join(root, "imagenet")).unlock()
    places = os.path.join(root, "places365_val.txt")
    config.ood.near = (f"imagenet750={os.path.join(root, 'imagenet750')}",)
    config.ood.far = (f"places365={places}:{os.path.join(root, 'val_256')}",)
    codes, config.stages = config.stages, ConfigDict(sort_keys=False)
    config.stages.linear = common.linear(
        codes.codebook.epochs, codes.codebook.optimizer, label_smoothing=0.1
    )
    config.stages.codebook, config.stages.instance = codes.codebook, codes.instance
    return config.lock()
