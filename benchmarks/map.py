"""MAP@K of a retrieval protocol, beside sorting all distances as published scripts do.

  python benchmarks/map.py
  python benchmarks/map.py --queries 500 --database 20000 --bits 32

By default the size of ImageNet-100: 5,000 queries, a database of 128,503, 64 bits, 100
classes; random codes, those of a class alike, so that MAP is neither 0 nor 1. Ours gives all
three forms, with the worst and the best order of ties, precision, recall and curves.
`argsort` is a matrix product of the codes as +1 and -1 and an argsort of all of it down its
columns, as HashNet's script goes about it; `argsort rows` the same with a query's numbers
side by side, which is the best that NumPy can do with it. Both take ties as they come, so
their MAP must lie between our worst and best. Each way is measured in a process of its own,
for its peak of memory: what it holds, its libraries included, beyond what it held with the
codes loaded. Alternating rounds; the median counts. Ours is timed in its second call: the
first, which compiles, is told apart. The last line is JSON.
"""

import argparse
import functools
import json
import multiprocessing
import resource
import statistics
import sys
import time

import numpy as np

FLIPPED = 0.3


def problem(queries: int, database: int, bits: int, classes: int, seed: int = 0):
    """Codes of both sides, uint32[., W], and labels, int32[.]."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(2, size=(classes, bits), dtype=np.uint8)
    sides = []
    for count in (queries, database):
        labels = rng.integers(classes, size=count, dtype=np.int32)
        signs = centres[labels] ^ (rng.random((count, bits), np.float32) < FLIPPED)
        padded = np.pad(signs, ((0, 0), (0, -bits % 32)))
        sides += [np.packbits(padded, axis=1, bitorder="little").view("<u4"), labels]
    return sides


def ours(asked, asked_labels, held, held_labels, bits: int, k: int) -> dict[str, float]:
    """All figures of `evaluation.retrieval`."""
    from llc_jax.evaluation.retrieval import measure
    from llc_jax.evaluation.search import HammingSearch

    search = HammingSearch(held, held_labels, bits)
    return measure(search, asked, asked_labels, np.full(len(asked), -1), (k,)).figures


def by_argsort(
    asked, asked_labels, held, held_labels, bits: int, k: int, axis: int = 0
) -> dict[str, float]:
    """The mean average precision, corrected and reported, from all distances, sorted."""
    asked, held = (
        2 * np.unpackbits(codes.view(np.uint8), axis=1, count=bits, bitorder="little").astype("f4")
        - 1
        for codes in (asked, held)
    )
    if axis:
        ranking = np.argsort(-(asked @ held.T), axis=1).T
    else:
        ranking = np.argsort(-(held @ asked.T), axis=0)
    corrected, reported = [], []
    for query, label in enumerate(asked_labels):
        relevant = held_labels[ranking[:k, query]] == label
        positions = np.flatnonzero(relevant) + 1
        total = np.sum(np.arange(1, len(positions) + 1) / positions)
        corrected.append(total / min(k, max(1, np.sum(held_labels == label))))
        reported.append(total / max(1, len(positions)))
    return {f"cmap@{k}": float(np.mean(corrected)), f"rmap@{k}": float(np.mean(reported))}


WAYS = {
    "ours": (ours, 2),
    "argsort": (by_argsort, 1),
    "argsort rows": (functools.partial(by_argsort, axis=1), 1),
}


def peak() -> float:
    """The most memory that this process has held, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measured(way, shape: dict, k: int, calls: int) -> dict:
    """Runs in a process of its own: the figures, the seconds of each call, the memory."""
    given = problem(**shape)
    before, seconds = peak(), []
    for _ in range(calls):
        start = time.perf_counter()
        figures = way(*given, bits=shape["bits"], k=k)
        seconds.append(time.perf_counter() - start)
    return {"figures": figures, "seconds": seconds, "mebibytes": peak() - before}


def main() -> None:
    """Measures both ways and prints the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--database", type=int, default=128_503)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--cutoff", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=1)
    options = vars(parser.parse_args())
    k, rounds = options.pop("cutoff"), options.pop("rounds")
    found = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, (way, calls) in WAYS.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[name].append(pool.apply(measured, (way, options, k, calls)))
    figures = {name: runs[0]["figures"] for name, runs in found.items()}
    least, most = (figures["ours"][f"cmap_{which}@{k}"] for which in ("min", "max"))
    assert all(least - 1e-9 <= those[f"cmap@{k}"] <= most + 1e-9 for those in figures.values())
    told = {"shape": options | {"cutoff": k}, "figures": figures["ours"], "ways": {}}
    print(f"{options['queries']:,} x {options['database']:,}, {options['bits']} bits")
    for name, runs in found.items():
        seconds = statistics.median(run["seconds"][-1] for run in runs)
        first = statistics.median(run["seconds"][0] for run in runs)
        memory = max(run["mebibytes"] for run in runs)
        told["ways"][name] = {"seconds": seconds, "first_call": first, "mebibytes": memory}
        ratio = seconds / told["ways"]["ours"]["seconds"]
        print(
            f"  {name:<12} {seconds:>8.2f} s {ratio:>7.1f} x {memory:>8,.0f} MiB   "
            f"cmap {figures[name][f'cmap@{k}']:.4f}   (first call {first:.2f} s)"
        )
    for name, value in figures["ours"].items():
        print(f"  {name:<20} {value:.4f}")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
