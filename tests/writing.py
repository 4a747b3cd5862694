"""Datasets that tests write: tars, JPEGs, and datasets of TFDS."""

import io
import pathlib
import tarfile
import zipfile

import cv2
import numpy as np

SAMPLE = pathlib.Path(__file__).parents[2] / "shared/data/imagenet_sample.zip"


def jpegs(count):
    """Photographs of ImageNet where `shared/data` has them, else generated images."""
    if SAMPLE.exists():
        with zipfile.ZipFile(SAMPLE) as archive:
            names = [name for name in archive.namelist() if name.endswith(".JPEG")]
            return [archive.read(name) for name in names[:count]]
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 9, 12, 3), np.uint8)
    images = [cv2.resize(image, (120 + 7 * n, 90)) for n, image in enumerate(coarse)]
    return [cv2.imencode(".jpg", image)[1].tobytes() for image in images]


def tar_bytes(files):
    """The bytes of a tar; `files` maps names to contents."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def tfds_builder(name, features, files, splits):
    """A builder class of TFDS whose splits are folders `<split>/<class>/` of `files`."""
    import tensorflow_datasets as tfds

    def info(self):
        keys = ("image", "label") if "label" in features else None
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), supervised_keys=keys
        )

    def generate(self, split):
        for path in sorted(files.glob(f"{split}/*/*"), reverse=True):
            example = {"image": path, "label": path.parent.name, "file_name": path.name}
            yield path.name, {key: value for key, value in example.items() if key in features}

    def split_generators(self, _):
        return {split: self._generate_examples(split) for split in splits}

    methods = {"_info": info, "_generate_examples": generate, "_split_generators": split_generators}
    body = {"VERSION": tfds.core.Version("1.0.0"), "__module__": __name__, **methods}
    return type(name, (tfds.core.GeneratorBasedBuilder,), body)
