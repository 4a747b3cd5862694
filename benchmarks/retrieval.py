"""Search beside FAISS's flat index, from packed codes to the nearest items.

  pip install faiss-cpu
  python benchmarks/retrieval.py
  python benchmarks/retrieval.py --items 10000000 --rounds 3
  python benchmarks/retrieval.py --large 100000000 --bits 32

For each number of items N, of bits k, and of items to find: `HammingIndex` and
`IndexBinaryFlat` with `use_heap` on and off, of which the faster counts, in alternating
rounds on all cores; the median counts. All must find the same distances. Codes are drawn
at random, which is the hardest case for buckets of equal codes; with `--clusters C` they
are C random ones with each bit flipped by a chance of 1 in 10, more like those of images.

`--large N` builds an index of N codes alone, a million at a time, and tells what it takes.
The last line is JSON.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import faiss
import numpy as np

import llc_jax

ITEMS = (128_503,)
BITS = (10, 16, 20, 32, 48, 64)
TOPS = (10, 100, 1000)
_BATCH = 1_000_000


def draw(rng: np.random.Generator, count: int, num_bits: int, clusters: int) -> np.ndarray:
    """Codes, uint32[count, W], all random or around random ones."""
    limit = 2**num_bits - 1
    codes = rng.integers(limit, size=clusters or count, dtype=np.uint64, endpoint=True)
    if clusters:
        codes = codes[np.random.default_rng(1).integers(clusters, size=count)]
        for bit in range(num_bits):
            codes ^= (rng.random(count, np.float32) < 0.1).astype(np.uint64) << np.uint64(bit)
    words = codes.astype("<u8").view("<u4").reshape(count, 2)
    return np.ascontiguousarray(words[:, : -(-num_bits // 32)])


def searches(codes: np.ndarray, num_bits: int) -> dict[str, Callable]:
    """Name -> a function of queries and how many to find, that returns distances and ids."""
    ours = llc_jax.HammingIndex(num_bits)
    ours.add(codes)
    flat = faiss.IndexBinaryFlat(32 * codes.shape[1])
    flat.add(codes.view(np.uint8))

    def search_flat(use_heap):
        def search(queries, top):
            flat.use_heap = use_heap
            return flat.search(queries.view(np.uint8), top)

        return search

    return {
        "ours": ours.search,
        "faiss flat, heap": search_flat(True),
        "faiss flat, counts": search_flat(False),
    }


def measure(peers: dict[str, Callable], queries: np.ndarray, top: int, rounds: int) -> dict:
    """Returns queries per second by name, the distances compared."""
    times = {name: [] for name in peers}
    distances = {name: np.sort(search(queries, top)[0], axis=1) for name, search in peers.items()}
    for name, found in distances.items():
        np.testing.assert_array_equal(found, distances["ours"], err_msg=name)
    for _ in range(rounds):
        for name, search in peers.items():
            start = time.perf_counter()
            search(queries, top)
            times[name].append(time.perf_counter() - start)
    return {name: len(queries) / statistics.median(some) for name, some in times.items()}


def compare(options: argparse.Namespace) -> list[dict]:
    """Measures every shape and prints a line each."""
    everything = []
    print(f"{'items':>11} {'k':>3} {'top':>5} {'ours':>12} {'faiss':>12}  queries/s, ratio")
    for items in options.items:
        number = int(np.clip(6.4e8 // items, 16, 5000))
        for num_bits in options.bits:
            rng = np.random.default_rng(0)
            drawn = draw(rng, items + number, num_bits, options.clusters)
            queries, codes = drawn[:number], drawn[number:]
            peers = searches(codes, num_bits)
            for top in options.tops:
                rates = measure(peers, queries, top, options.rounds)
                ours, best = rates["ours"], max(rates[name] for name in rates if name != "ours")
                print(
                    f"{items:>11,} {num_bits:>3} {top:>5} {ours:>12,.0f} {best:>12,.0f}  "
                    f"{ours / best:.2f}",
                    flush=True,
                )
                shape = {"items": items, "bits": num_bits, "top": top, "ratio": ours / best}
                everything.append(shape | {"queries_per_second": rates})
    return everything


def resident() -> float:
    """Returns the memory that the process takes, in bytes."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def build(items: int, num_bits: int, tops: list[int]) -> dict:
    """Builds, searches, saves and opens a large index; returns what that takes."""
    rng = np.random.default_rng(0)
    llc_jax.HammingIndex(num_bits).search(draw(rng, 1, num_bits, 0))  # Compiles.
    queries = draw(rng, 256, num_bits, 0)
    before, seconds = resident(), {}
    index = llc_jax.HammingIndex(num_bits)
    seconds["add"] = 0.0
    for _ in range(0, items, _BATCH):
        codes = draw(rng, min(_BATCH, items - len(index)), num_bits, 0)
        start = time.perf_counter()
        index.add(codes)
        seconds["add"] += time.perf_counter() - start
    start = time.perf_counter()
    index.search(queries[:1])
    seconds["first search"] = time.perf_counter() - start
    found = {"items": items, "bits": num_bits, "gigabytes/index": index.nbytes / 1e9}
    found["gigabytes/process"] = (resident() - before) / 1e9
    for top in tops:
        start = time.perf_counter()
        index.search(queries, top)
        found[f"queries_per_second/{top}"] = len(queries) / (time.perf_counter() - start)
    start = time.perf_counter()
    index.search(queries[:1])
    seconds["one query"] = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "large.index"
        for name, step in (
            ("save", lambda: index.save(path)),
            ("load", lambda: llc_jax.HammingIndex.load(path)),
            ("load without verifying", lambda: llc_jax.HammingIndex.load(path, verify=False)),
        ):
            start = time.perf_counter()
            step()
            seconds[name] = time.perf_counter() - start
    return found | {"seconds": seconds}


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, nargs="+", default=ITEMS)
    parser.add_argument("--bits", type=int, nargs="+", default=BITS)
    parser.add_argument("--tops", type=int, nargs="+", default=TOPS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clusters", type=int, default=0)
    parser.add_argument("--large", type=int)
    options = parser.parse_args()
    if options.large:
        everything = [build(options.large, num_bits, options.tops) for num_bits in options.bits]
    else:
        everything = compare(options)
    print(json.dumps(everything))


if __name__ == "__main__":
    main()
