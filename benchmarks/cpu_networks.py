"""Measures networks on a CPU: images a second, beside JAX's usual forms and PyTorch.

  python benchmarks/cpu_networks.py [NAME[:BATCH] ...]

Inference is of normalised images; a train step is forwards, backwards and SGD with momentum.
Float32, PyTorch with channels last, two threads each. The candidates alternate in one
process, and it prints medians: `usual` are the forms that GPUs and TPUs have, compiled with
XLA's usual options, `ours` those of llc_jax/models/cpu.py.
"""

import functools
import pathlib
import sys

import jax
import numpy as np
import optax
import torch
import torch.nn.functional as F
from alternating import medians

from llc_jax.compiling import jit_network
from llc_jax.models import cpu, registry

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from tests import torch_reference as reference

CLASSES = 100
SECONDS = 12
# Our name: the batch, the side of the images, and the same in PyTorch.
NETWORKS = {
    "resnet20_small": (128, 32, lambda: reference.ResNet((3, 3, 3), 16, False, CLASSES, True)),
    "resnet18": (16, 224, lambda: reference.ResNet((2, 2, 2, 2), 64, False, CLASSES)),
    "resnet50": (16, 224, lambda: reference.ResNet((3, 4, 6, 3), 64, True, CLASSES)),
    "mobilenet_v1": (16, 224, lambda: reference.MobileNetV1(CLASSES)),
    "vit_tiny_patch16": (16, 224, lambda: reference.ViT(192, 12, 224, CLASSES)),
    "alexnet": (16, 224, lambda: reference.AlexNet(CLASSES)),
}


def in_jax(name, images, labels, usual):
    """Returns a call for inference and one for a train step, compiled; which forms is a choice."""
    default, cpu.is_default = cpu.is_default, lambda: not usual
    jit = jax.jit if usual else jit_network
    network = registry.build({"name": name}, {"name": "linear"}, num_classes=CLASSES, num_bits=8)
    sgd = optax.sgd(1e-3, momentum=0.9)
    params, stats = jax.jit(network.init)(jax.random.key(0))
    state = [params, stats, sgd.init(params)]

    def loss(params, stats):
        output, stats = network.train(params, stats, images, jax.random.key(1))
        losses = optax.softmax_cross_entropy_with_integer_labels(output.class_logits, labels)
        return losses.mean(), stats

    def step(params, stats, opt_state):
        gradients, stats = jax.grad(loss, has_aux=True)(params, stats)
        updates, opt_state = sgd.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    evaluate = jit(lambda params, stats, images: network.evaluate(params, stats, images))
    infer = evaluate.lower(params, stats, images).compile()
    train = jit(step).lower(*state).compile()
    cpu.is_default = default

    def take_step():
        state[:] = jax.block_until_ready(train(*state))

    return functools.partial(infer, params, stats, images), take_step


def in_torch(network, images, labels):
    """Returns a call for inference and one for a train step."""
    network = network.to(memory_format=torch.channels_last)
    classifier = reference.classifier(network)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(labels)
    sgd = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)

    def logits():
        normalised = ((pixels.float() - 120) / 58).to(memory_format=torch.channels_last)
        return classifier(network.encode(normalised))

    def infer():
        network.eval()
        with torch.inference_mode():
            return logits()

    def take_step():
        network.train()
        sgd.zero_grad()
        F.cross_entropy(logits(), labels).backward()
        sgd.step()

    return infer, take_step


def main(choices):
    """Prints a row for each network."""
    torch.set_num_threads(2)
    print("| network | batch | | PyTorch | usual | ours | ours / PyTorch | ours / usual |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for choice in choices or NETWORKS:
        name, _, batch = choice.partition(":")
        usual_batch, size, create = NETWORKS[name]
        batch = int(batch or usual_batch)
        images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
        labels = np.arange(batch) % CLASSES
        calls = {
            "PyTorch": in_torch(create(), images, labels),
            "usual": in_jax(name, images, labels, usual=True),
            "ours": in_jax(name, images, labels, usual=False),
        }
        for number, work in enumerate(("inference", "training")):
            candidates = {who: functools.partial(wait, both[number]) for who, both in calls.items()}
            times = medians(candidates, SECONDS)
            rates = [f"{1e3 * batch / times[who]:.1f}" for who in calls]
            ratios = [f"{times[who] / times['ours']:.2f}" for who in ("PyTorch", "usual")]
            print("|", " | ".join([name, str(batch), work, *rates, *ratios]), "|", flush=True)


def wait(call):
    """Calls, and waits for JAX's result."""
    jax.block_until_ready(call())


if __name__ == "__main__":
    main(sys.argv[1:])
