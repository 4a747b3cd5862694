"""MAP@K of a retrieval protocol, beside sorting all distances as published scripts do.

  python benchmarks/map.py
  python benchmarks/map.py --queries 500 --database 20000 --bits 32

By default the size of ImageNet-100: 5,000 queries, a database of 128,503, 64 bits, 100
classes; random codes, similar within a class, so that MAP is neither 0 nor 1. Ours gives all
three forms, with the worst and the best order of ties, precision, recall and curves.
`argsort` is a matrix product of the codes as +1 and -1 and an argsort of its columns, as in
HashNet's script; `argsort rows` is the same with the products of a query side by side in
memory, which is the fastest that NumPy can do. Both order ties arbitrarily, so their MAP must
lie between our worst and best. Each method runs in a process of its own, for its peak memory:
the most that it holds, libraries included, beyond what it held with the codes loaded. Rounds
alternate; the median counts. Ours is timed in its second call; the first call, which
compiles, is printed apart. The last line is JSON.
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


def random_codes(queries: int, database: int, bits: int, classes: int, seed: int = 0):
    """Returns codes, uint32[., W], and labels, int32[.], of the queries and of the database."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(2, size=(classes, bits), dtype=np.uint8)
    arrays = []
    for count in (queries, database):
        labels = rng.integers(classes, size=count, dtype=np.int32)
        signs = centres[labels] ^ (rng.random((count, bits), np.float32) < FLIPPED)
        padded = np.pad(signs, ((0, 0), (0, -bits % 32)))
        arrays += [np.packbits(padded, axis=1, bitorder="little").view("<u4"), labels]
    return arrays


def ours(queries, query_labels, database, database_labels, bits: int, k: int) -> dict[str, float]:
    """All figures of `evaluation.retrieval`."""
    from llc_jax.evaluation.rankings import HammingRanker
    from llc_jax.evaluation.retrieval import evaluate_ranker

    ranker = HammingRanker(database, database_labels, bits)
    no_exclusions = np.full(len(queries), -1)
    return evaluate_ranker(ranker, queries, query_labels, no_exclusions, (k,)).figures


def by_argsort(
    queries, query_labels, database, database_labels, bits: int, k: int, axis: int = 0
) -> dict[str, float]:
    """The mean average precision, corrected and reported, from all distances, sorted."""
    queries, database = (
        2 * np.unpackbits(codes.view(np.uint8), axis=1, count=bits, bitorder="little").astype("f4")
        - 1
        for codes in (queries, database)
    )
    if axis:
        ranking = np.argsort(-(queries @ database.T), axis=1).T
    else:
        ranking = np.argsort(-(database @ queries.T), axis=0)
    corrected, reported = [], []
    for query, label in enumerate(query_labels):
        relevant = database_labels[ranking[:k, query]] == label
        positions = np.flatnonzero(relevant) + 1
        precision_sum = np.sum(np.arange(1, len(positions) + 1) / positions)
        total_relevant = np.sum(database_labels == label)
        corrected.append(precision_sum / min(k, max(1, total_relevant)))
        reported.append(precision_sum / max(1, len(positions)))
    return {f"cmap@{k}": float(np.mean(corrected)), f"rmap@{k}": float(np.mean(reported))}


# Each method and how often it is called in a process.
METHODS = {
    "ours": (ours, 2),
    "argsort": (by_argsort, 1),
    "argsort rows": (functools.partial(by_argsort, axis=1), 1),
}


def peak_memory() -> float:
    """Returns the most memory that this process has held, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(method, shape: dict, k: int, calls: int) -> dict:
    """Runs in a process of its own: the figures, the seconds of each call, the memory."""
    inputs = random_codes(**shape)
    memory_before, seconds = peak_memory(), []
    for _ in range(calls):
        start = time.perf_counter()
        figures = method(*inputs, bits=shape["bits"], k=k)
        seconds.append(time.perf_counter() - start)
    return {"figures": figures, "seconds": seconds, "mebibytes": peak_memory() - memory_before}


def main() -> None:
    """Measures all methods and prints their ratios to ours."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--database", type=int, default=128_503)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--cutoff", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=1)
    options = vars(parser.parse_args())
    k, rounds = options.pop("cutoff"), options.pop("rounds")
    measurements = {name: [] for name in METHODS}
    for _ in range(rounds):
        for name, (method, calls) in METHODS.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                measurements[name].append(pool.apply(measure, (method, options, k, calls)))
    figures = {name: runs[0]["figures"] for name, runs in measurements.items()}
    least, most = (figures["ours"][f"cmap_{bound}@{k}"] for bound in ("min", "max"))
    for name in METHODS:
        assert least - 1e-9 <= figures[name][f"cmap@{k}"] <= most + 1e-9
    report = {"shape": options | {"cutoff": k}, "figures": figures["ours"], "ways": {}}
    print(f"{options['queries']:,} x {options['database']:,}, {options['bits']} bits")
    for name, runs in measurements.items():
        seconds = statistics.median(run["seconds"][-1] for run in runs)
        first_call = statistics.median(run["seconds"][0] for run in runs)
        memory = max(run["mebibytes"] for run in runs)
        report["ways"][name] = {
            "seconds": seconds,
            "first_call": first_call,
            "mebibytes": memory,
        }
        ratio = seconds / report["ways"]["ours"]["seconds"]
        print(
            f"  {name:<12} {seconds:>8.2f} s {ratio:>7.1f} x {memory:>8,.0f} MiB   "
            f"cmap {figures[name][f'cmap@{k}']:.4f}   (first call {first_call:.2f} s)"
        )
    for name, value in figures["ours"].items():
        print(f"  {name:<20} {value:.4f}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
