"""Measures how fast images are encoded, beside the network alone on the same device.

  python benchmarks/encode_images.py                                        # a GPU or TPU
  python benchmarks/encode_images.py --model=resnet18_small --size=32 --images=512   # a CPU

`Model.encode` takes pixels in the host's memory, crops them, sends them to the device and packs
the codes; the network alone has its images on the device. The weights are random, in bfloat16.
Rounds alternate, and it prints medians. The last line is JSON.
"""

import argparse
import json

import jax
import numpy as np
from alternating import medians

from llc_jax.codes.codebook import Codebook
from llc_jax.compiling import jit_network
from llc_jax.data.transforms import Crop
from llc_jax.inference import ImageReader, Model
from llc_jax.models import registry

CLASSES, BITS = 1000, 20


def main() -> None:
    """Measures both and prints a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    network = registry.build(
        {"name": options.model, "dtype": "bfloat16"},
        {"name": "code"},
        num_classes=CLASSES,
        num_bits=BITS,
    )
    params, batch_stats = jax.jit(network.init)(jax.random.key(0))
    weights = {"params": params, "batch_stats": batch_stats}
    reader = ImageReader(Crop(options.size, crop_fraction=1.0), options.batch)
    model = Model(Codebook.random(CLASSES, BITS), network, weights, reader)
    shape = (options.images, options.size, options.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    batch = jax.device_put(images[: options.batch])
    evaluate = jit_network(lambda weights, batch: network.evaluate(*weights.values(), batch))

    def network_alone():
        for _ in range(0, options.images, options.batch):
            output = evaluate(weights, batch)
        jax.block_until_ready(output)

    calls = {"network alone": network_alone, "Model.encode": lambda: model.encode(images)}
    times = medians(calls, options.seconds)
    print(f"{jax.devices()[0].device_kind}, {options.model}, {options.size} pixels")
    rates = {name: 1e3 * options.images / milliseconds for name, milliseconds in times.items()}
    for name, rate in rates.items():
        print(f"{name:<14} {rate:>10,.0f} images/s")
    print(
        f"Model.encode runs at {rates['Model.encode'] / rates['network alone']:.3f} x the network"
    )
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
