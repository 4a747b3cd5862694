"""Corpora of small images in tars, and their codes."""

import cv2
import numpy as np

from llc_jax.corpus import encoding, inputs
from llc_jax.data.sources import load_digits
from llc_jax.search import code_shards
from tests.made_runs import make_encoder
from tests.writing import tar_bytes

COUNTS = (30, 7, 0, 41)


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def write_tars(folder, images):
    """Writes WebDataset, a tar for each list of images; returns its folder."""
    folder.mkdir()
    for s, of_shard in enumerate(images):
        files = {}
        for i, image in enumerate(of_shard):
            files |= {f"{i:04}.png": png(image), f"{i:04}.cls": b"3", f"{i:04}.json": b"{}"}
        (folder / f"d-{s}.tar").write_bytes(tar_bytes(files))
    return folder


def write_digits(folder, shards, items, damaged=None):
    """Writes a run, and so many tars of digits; of each tar, one image may be damaged."""
    make_encoder(folder / "run")
    images = [png(image) for image in load_digits().images]
    for shard in range(shards):
        files = {f"{i:05}.png": images[(shard + i) % len(images)] for i in range(items)}
        if damaged is not None:
            files[f"{damaged:05}.png"] = b"broken"
        (folder / f"{shard:02}.tar").write_bytes(tar_bytes(files))
    return folder


def encode(model, source, out, numbers=None, **options):
    """Encodes the shards of some numbers, or all, that are not there."""
    corpus = encoding.Encoding(model, inputs.find([str(source)], model.kind), out, **options)
    numbers = range(corpus.num_shards) if numbers is None else numbers
    return corpus.encode(corpus.missing(numbers))


def keys_and_codes(out):
    shards = list(code_shards.read_all(out, "key"))
    return [key for shard in shards for key in shard.keys], np.concatenate(
        [shard.codes for shard in shards]
    )
