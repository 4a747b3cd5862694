"""Measures the time of a train step: both phases of LLC, the linear baseline and PyTorch.

  python benchmarks/train_step.py                                # a GPU or TPU
  python benchmarks/train_step.py --batch=4 --size=64 --rounds=3   # a CPU

A ResNet50 trains on synthetic images that are already on the device, in bfloat16 with
float32 weights, statistics and losses. On an NVIDIA GPU with torch and torchvision installed,
phase 1 is measured in PyTorch too: torchvision's network, channels last, autocast to
bfloat16, torch.compile, fused SGD. Rounds of steps alternate, and it prints the medians. The
utilisation is the model's FLOPs per second over the peak in the device's data sheet. The
last line is JSON.
"""

import argparse
import json
import os
import statistics
import time

# Leaves memory for PyTorch in the same process.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
import optax

from llc_jax.codes.codebook import Codebook
from llc_jax.mesh import batch_sharding, make_mesh, replicated_sharding
from llc_jax.models import registry
from llc_jax.training import objectives, optimizer
from llc_jax.training import state as states
from llc_jax.training import step as steps

CLASSES, BITS = 1000, 20
# Peak TFLOP/s of dense bfloat16, by a substring of the device's name.
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "TPU v4": 275, "TPU v5p": 459, "TPU v5e": 197}
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
OBJECTIVES = {"linear": "softmax", "phase 1": "codebook", "phase 2": "instance"}


class Ours:
    """A train step of one objective, with its state."""

    def __init__(self, objective: str, model: str, images: np.ndarray, labels: np.ndarray):
        mesh, spec = make_mesh(), objectives.OBJECTIVES[objective]
        replicated, batched = replicated_sharding(mesh), batch_sharding(mesh)
        network = registry.build(
            {"name": model, "dtype": "bfloat16"},
            {"name": spec.heads[0]},
            num_classes=CLASSES,
            num_bits=BITS,
        )
        sgd = optimizer.sgd(
            optax.constant_schedule(0.1),
            momentum=0.875,
            nesterov=False,
            weight_decay=2.0**-15,
            codebook_rate=1.0,
        )
        self.state = states.create_on(
            replicated, lambda: states.create(network, sgd, spec.metrics, jax.random.key(0))
        )
        batch = {"input": images, "label": labels, "mask": np.ones(len(labels), bool)}
        codes = Codebook.random(CLASSES, BITS).packed if spec.fixed_codebook else None
        self.inputs = (
            jax.device_put(batch, batched),
            None if codes is None else jax.device_put(codes, replicated),
        )
        step = steps.make_step(network, spec.function, sgd, lambda key, images: images)
        lowered = steps.compile_step(step, mesh).lower(self.state, *self.inputs)
        self.flops = (lowered.cost_analysis() or {}).get("flops", 0)
        self.step = lowered.compile()

    def run(self, count: int) -> None:
        """Takes `count` steps and waits until they are done."""
        for _ in range(count):
            self.state, _ = self.step(self.state, *self.inputs)
        jax.block_until_ready(self.state)


class PyTorch:
    """Phase 1 in PyTorch."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        import torch
        import torchvision

        self.torch = torch
        network = torchvision.models.resnet50(num_classes=1)
        network.fc = torch.nn.Linear(2048, BITS, bias=False)
        network = network.cuda().to(memory_format=torch.channels_last)
        latent = torch.nn.Parameter(torch.randn(CLASSES, BITS, device="cuda"))
        self.optimizer = torch.optim.SGD(
            [*network.parameters(), latent],
            lr=0.1,
            momentum=0.875,
            weight_decay=2.0**-15,
            fused=True,
        )
        mean, std = (torch.tensor(v, device="cuda").view(1, 3, 1, 1) for v in (MEAN, STD))
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2)).cuda()
        self.labels = torch.from_numpy(labels).long().cuda()

        def loss(images, labels):
            pixels = ((images.float() - mean) / std).to(memory_format=torch.channels_last)
            with torch.autocast("cuda", torch.bfloat16):
                code_logits = network(pixels)
            signs = torch.where(latent >= 0, 1.0, -1.0)
            signs = latent + (signs - latent).detach()
            return torch.nn.functional.cross_entropy(code_logits.float() @ signs.T, labels)

        self.loss = torch.compile(loss)

    def run(self, count: int) -> None:
        """Takes `count` steps and waits until they are done."""
        for _ in range(count):
            self.loss(self.images, self.labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.torch.cuda.synchronize()


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measures all variants; returns the figures of each by its name."""
    rng = np.random.default_rng(0)
    shape = (options.batch, options.size, options.size, 3)
    images = rng.integers(0, 256, shape, np.uint8)
    labels = rng.integers(CLASSES, size=options.batch).astype(np.int32)
    runners = {
        name: Ours(objective, options.model, images, labels)
        for name, objective in OBJECTIVES.items()
    }
    if options.torch:
        runners["PyTorch, phase 1"] = PyTorch(images, labels)
    for runner in runners.values():
        runner.run(options.steps)
    times = {name: [] for name in runners}
    for _ in range(options.rounds):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.run(options.steps)
            times[name].append((time.perf_counter() - start) / options.steps)
    return {
        name: _figures(runner, statistics.median(times[name]), options.batch)
        for name, runner in runners.items()
    }


def _figures(runner, seconds: float, batch: int) -> dict[str, float]:
    figures = {"images_per_second": batch / seconds, "milliseconds": 1000 * seconds}
    if isinstance(runner, PyTorch):
        figures["peak_gigabytes"] = runner.torch.cuda.max_memory_allocated() / 1e9
        return figures
    memory = runner.step.memory_analysis()
    if memory is not None:
        parts = (memory.argument_size_in_bytes, memory.temp_size_in_bytes)
        figures["peak_gigabytes"] = sum(parts) / 1e9
    kind = jax.devices()[0].device_kind
    peak = next((value for name, value in PEAKS.items() if name in kind), None)
    if peak:
        rate = runner.flops / seconds / jax.device_count()
        figures["utilisation"] = rate / (peak * 1e12)
    return figures


def _can_use_torch() -> bool:
    try:
        import torch
        import torchvision  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.is_available()


def main() -> None:
    """Measures all variants and prints a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=10, help="in a round")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    options.torch = options.model == "resnet50" and _can_use_torch()
    results = measure(options)
    print(f"{jax.devices()[0].device_kind}, batch {options.batch}, {options.size} pixels")
    base = results["linear"]["milliseconds"]
    for name, figures in results.items():
        line = f"{name:<18} {figures['images_per_second']:>10,.1f} images/s"
        line += (
            f" {figures['milliseconds']:>9.2f} ms {figures['milliseconds'] / base:>7.3f} x linear"
        )
        for key, unit in (("peak_gigabytes", "GB"), ("utilisation", "of peak")):
            line += f" {figures[key]:>8.3f} {unit}" if key in figures else ""
        print(line)
    if options.torch:
        ratio = results["phase 1"]["images_per_second"]
        ratio /= results["PyTorch, phase 1"]["images_per_second"]
        print(f"phase 1 runs at {ratio:.3f} x PyTorch's images/s")
    else:
        print("PyTorch was not measured: it needs an NVIDIA GPU, torch and torchvision.")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
