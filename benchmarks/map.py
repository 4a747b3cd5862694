"""MAP@K of a retrieval protocol, beside sorting all distances as published scripts do.

  python benchmarks/map.py
  python benchmarks/map.py --queries 500 --database 20000 --bits 32

By default the size of ImageNet-100: 5,000 queries, a database of 128,503, 64 bits, 100
classes; random codes, those of a class alike, so that MAP is neither 0 nor 1. Ours gives all
three forms, with the worst and the best order of ties, precision, recall and curves. The
other way is a matrix product of the codes as +1 and -1 and an `argsort` of all of it, as
HashNet's script goes about it; it takes ties as they come, so its value must lie between
our worst and best, and with `--stable`, for a sort that keeps their order, equal ours. Each
is measured in a process of its own, for its peak of memory: what it holds, its libraries
included, beyond what it held with the codes loaded. Alternating rounds; the median counts.
Ours is timed in its second call: the first, which compiles, is told apart. The last line is
JSON.
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
    asked, asked_labels, held, held_labels, bits: int, k: int, kind: str | None = None
) -> dict[str, float]:
    """The mean average precision, corrected and reported, from all distances, sorted."""
    asked, held = (
        2 * np.unpackbits(codes.view(np.uint8), axis=1, count=bits, bitorder="little").astype("f4")
        - 1
        for codes in (asked, held)
    )
    ranking = np.argsort(-(held @ asked.T), axis=0, kind=kind)
    corrected, reported = [], []
    for query, label in enumerate(asked_labels):
        relevant = held_labels[ranking[:k, query]] == label
        positions = np.flatnonzero(relevant) + 1
        total = np.sum(np.arange(1, len(positions) + 1) / positions)
        corrected.append(total / min(k, max(1, np.sum(held_labels == label))))
        reported.append(total / max(1, len(positions)))
    return {f"cmap@{k}": float(np.mean(corrected)), f"rmap@{k}": float(np.mean(reported))}


by_stable_argsort = functools.partial(by_argsort, kind="stable")


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
    parser.add_argument("--stable", action="store_true")
    options = vars(parser.parse_args())
    k, rounds, stable = (options.pop(name) for name in ("cutoff", "rounds", "stable"))
    calls = {ours: 2, by_stable_argsort if stable else by_argsort: 1}
    found = {way: [] for way in calls}
    for _ in range(rounds):
        for way, count in calls.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[way].append(pool.apply(measured, (way, options, k, count)))
    figures, other = (found[way][0]["figures"] for way in calls)
    least, most = (figures[f"cmap_{which}@{k}"] for which in ("min", "max"))
    assert least - 1e-9 <= other[f"cmap@{k}"] <= most + 1e-9
    if stable:
        np.testing.assert_allclose([figures[name] for name in other], list(other.values()))
    seconds = [statistics.median(run["seconds"][-1] for run in found[way]) for way in calls]
    memory = [max(run["mebibytes"] for run in found[way]) for way in calls]
    first = statistics.median(run["seconds"][0] for run in found[ours])
    ratio = seconds[1] / seconds[0]
    print(f"{options['queries']:,} x {options['database']:,}, {options['bits']} bits")
    print(f"  ours      {seconds[0]:>8.2f} s {memory[0]:>10,.0f} MiB   (first call {first:.2f} s)")
    print(f"  argsort   {seconds[1]:>8.2f} s {memory[1]:>10,.0f} MiB")
    print(f"  ratio     {ratio:>8.1f} x {memory[1] / max(memory[0], 1):>10,.0f} x less memory")
    for name, value in figures.items():
        beside = f"   argsort {other[name]:.4f}" if name in other else ""
        print(f"  {name:<20} {value:.4f}{beside}")
    names = ("ours", "argsort")
    told = {"shape": options | {"cutoff": k}, "ratio": ratio, "figures": figures}
    told |= {"seconds": dict(zip(names, seconds, strict=True)), "first_call": first}
    print(json.dumps(told | {"mebibytes": dict(zip(names, memory, strict=True))}))


if __name__ == "__main__":
    main()
