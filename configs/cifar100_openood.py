r"""OpenOOD v1.5's benchmark of CIFAR-100: a ResNet-18 for small images, and 20-bit codes.

  python -m llc_jax.main --config=configs/cifar100_openood.py:data/

The argument is OpenOOD's folder `data/`, with `benchmark_imglist/` and `images_classic/`. A set
that is not there is left out by naming the others:

  --config.ood.near="('cifar10=data/benchmark_imglist/cifar100/test_cifar10.txt:data/images_classic',)"

Known images are the 9,000 test images of its list. The 1,000 of its validation list are not used:
no score here has a setting to be tuned. The stage `linear` is trained as OpenOOD trains (SGD with
Nesterov momentum, batches of 128, 100 epochs, a cosine schedule by steps, crops and flips). What
differs: OpenOOD takes the epoch that is best on the validation images, and this is the last one;
it tunes GEN and ViM on them and on unknown images; the channels are normalised as ImageNet's.

Expected of `linear`: the published means of three seeds, an accuracy of 77.25%, and an AUROC, in
per cent, near and far, of

  softmax_probability (MSP)    80.27  77.76      neighbor_distance (KNN)     80.18  82.40
  max_logit (MLS)              81.05  79.67      virtual_logit (ViM)         74.98  81.70
  energy (EBO)                 80.91  79.77      generalized_entropy (GEN)   81.31  79.68

This config has not been run on its data yet.

References:
  Zhang et al., "OpenOOD v1.5: enhanced benchmark for out-of-distribution detection", 2023.
"""

import os

import common
from ml_collections import ConfigDict

_NEAR = ("cifar10", "tin")
_FAR = ("mnist", "svhn", "texture", "places365")


def get_config(root: str = "") -> ConfigDict:
    """Returns the config."""
    config = common.base()
    config.model = common.model("resnet18_small", zero_init_residual=False)
    config.data.source = _image_list(root, "train_cifar100")
    config.data.eval_source = _image_list(root, "test_cifar100")
    config.data.crop_fraction = 1.0
    config.data.in_memory = True
    config.data.augment = ConfigDict({"pad": 4, "flip": True})
    config.ood.near = _sets(root, _NEAR)
    config.ood.far = _sets(root, _FAR)
    sgd = common.sgd(0.1, nesterov=True)
    config.stages.linear = common.linear(100, sgd)
    config.stages.codebook = common.codebook(
        30,
        common.sgd(0.1, nesterov=True, codebook_rate=10.0),
        logit_scale=common.bits(config) ** -0.5,
        init_from="linear",
    )
    config.stages.instance = common.instance(30, sgd)
    return config.lock()


def _image_list(root: str, name: str) -> str:
    """Returns the name of a list of OpenOOD, with the folder of its images."""
    path = os.path.join(root, "benchmark_imglist", "cifar100", f"{name}.txt")
    return f"{path}:{os.path.join(root, 'images_classic')}"


def _sets(root: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}={_image_list(root, f'test_{name}')}" for name in names)
