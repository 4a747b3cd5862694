"""How fast a corpus is encoded in shards by several tasks, beside the network alone.

  python benchmarks/encode_shards.py                   # 1,000,000 images, a gigabyte of tars
  python benchmarks/encode_shards.py --images 20000

It makes WebDataset shards of handwritten digits of 32 pixels, and starts `llc encode --shards` in
several tasks that share the cores. One is killed half-way and started again. The network, a
ResNet-20 with random weights, is first measured alone, in one process with all cores, on pixels in
memory, in the same batches. The tasks begin with tens of seconds of imports and compilation, so
the rate of images is also given from the first file of codes on. The memory of a task is its peak
so far: when it has written its first file, and at its end. The last line is JSON.
"""

import argparse
import importlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time

import cv2
import jax
import numpy as np

import llc_jax
from llc_jax.codes.codebook import Codebook
from llc_jax.data.sources import load_digits
from llc_jax.experiment.config import parse
from llc_jax.experiment.finished_run import write_run
from llc_jax.experiment.network import build_network
from llc_jax.search import code_shards

SIDE = 32
ENCODE = "import sys; from llc_jax.cli import main; sys.exit(main())"


def make_run(workdir: pathlib.Path) -> None:
    """Writes a run of a ResNet-20 with random weights."""
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "configs"))
    config = parse(importlib.import_module("cifar100_20bit").get_config("unused").to_dict())
    codebook = Codebook.random(100, config.num_bits, seed=0)
    network = build_network(config, list(config.stages.values())[-1], codebook.num_classes)
    weights = dict(zip(("params", "batch_stats"), network.init(jax.random.key(0)), strict=True))
    write_run(workdir, config, weights, codebook)


def make_shards(folder: pathlib.Path, num_images: int, shard_size: int) -> np.ndarray:
    """Writes the shards; returns the pixels of their different images, uint8[M, 32, 32, 3]."""
    digits = load_digits().images
    pixels = np.stack([cv2.resize(image, (SIDE, SIDE)) for image in digits])
    files = [cv2.imencode(".jpg", image)[1].tobytes() for image in pixels]
    folder.mkdir()
    for number, start in enumerate(range(0, num_images, shard_size)):
        with tarfile.open(folder / f"{number:05}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for image in range(start, min(start + shard_size, num_images)):
                content = files[image % len(files)]
                info = tarfile.TarInfo(f"{image:09}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return pixels


def network_rate(model: llc_jax.Model, pixels: np.ndarray, seconds: float) -> float:
    """Returns the images a second of the network alone."""
    model.code_logits(pixels)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        model.code_logits(pixels)
        count += len(pixels)
    return count / (time.perf_counter() - start)


class Tasks:
    """The processes that encode a corpus, with what was seen of their memory.

    Attributes:
      first, last: MiB, the peak of each task after its first file, and at its end.
    """

    def __init__(self, folder: pathlib.Path, count: int):
        self.first, self.last = {}, {}
        self._out, self._count = folder / "codes", count
        self._command = [sys.executable, "-c", ENCODE, "encode", f"--run={folder}/run"]
        self._command += [f"--out={self._out}", "--shards", f"{folder}/shards/*.tar"]
        self.processes = {index: self._start(index) for index in range(count)}

    def _start(self, index: int) -> subprocess.Popen:
        command = [*self._command, f"--task={index}/{self._count}"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def kill_and_start_again(self, index: int) -> None:
        """Kills a task, as a machine that fails would, and starts it again."""
        self.processes[index].kill()
        self.processes[index].wait()
        self.processes[index] = self._start(index)

    def look(self) -> bool:
        """Notes the memory of each task; returns whether one is still running."""
        numbers = {int(path.stem) % self._count for path in self._out.glob("[0-9]*.parquet")}
        for index, process in self.processes.items():
            status = pathlib.Path(f"/proc/{process.pid}/status")
            if process.poll() is not None or "VmHWM" not in (text := status.read_text()):
                continue
            line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
            self.last[index] = int(line.split()[1]) // 1024
            if index in numbers:
                self.first.setdefault(index, self.last[index])
        return any(process.poll() is None for process in self.processes.values())


def encode(folder: pathlib.Path, num_shards: int, count: int) -> dict:
    """Encodes the corpus, and kills a task half-way; returns seconds and memory."""
    out, start = folder / "codes", time.perf_counter()
    tasks, first, killed = Tasks(folder, count), None, False
    while tasks.look():
        there = len(list(out.glob("[0-9]*.parquet")))
        if there and first is None:
            first = (there, time.perf_counter())
        if not killed and there >= num_shards / 2:
            tasks.kill_and_start_again(1 % count)
            killed = True
        time.sleep(0.1)
    end = time.perf_counter()
    assert all(process.returncode == 0 for process in tasks.processes.values())
    return {
        "seconds": end - start,
        "seconds_to_first_file": first[1] - start,
        "shards_a_second": (num_shards - first[0]) / max(1e-9, end - first[1]),
        "mib_after_first_file": tasks.first,
        "mib_at_the_end": tasks.last,
    }


def main() -> None:
    """Makes a corpus, encodes it and prints the rates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--shard-size", type=int, default=5000)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the network alone")
    parser.add_argument("--folder", help="where the corpus is made; removed at the end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        folder = pathlib.Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        make_run(folder / "run")
        start = time.perf_counter()
        pixels = make_shards(folder / "shards", options.images, options.shard_size)
        print(f"{options.images:,} images made in {time.perf_counter() - start:.0f} s", flush=True)
        alone = network_rate(llc_jax.load(folder / "run"), pixels, options.seconds)
        print(f"network alone: {alone:,.0f} images/s", flush=True)
        num_shards = -(-options.images // options.shard_size)
        results = encode(folder, num_shards, options.tasks)
        codes = sum(len(shard.ids) for shard in code_shards.read_all(folder / "codes"))
        assert codes == options.images, codes
    whole = options.images / results["seconds"]
    steady = results["shards_a_second"] * options.shard_size
    for name, rate in (("with the start-up", whole), ("from the first file on", steady)):
        print(f"{options.tasks} tasks, {name}: {rate:,.0f} images/s, {rate / alone:.0%} of it")
    for index, first in results["mib_after_first_file"].items():
        last = results["mib_at_the_end"][index]
        print(f"task {index}: {first:,} MiB after its first file, {last:,} MiB at the end")
    rates = {"alone": alone, "whole": whole, "steady": steady}
    print(json.dumps(vars(options) | {"images_per_second": rates} | results))


if __name__ == "__main__":
    main()
