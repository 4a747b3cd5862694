"""Search beside FAISS's flat index, from packed codes to the nearest items.

  pip install faiss-cpu
  python benchmarks/retrieval.py
  python benchmarks/retrieval.py --items 10000000 --rounds 3
  python benchmarks/retrieval.py --large 100000000 --bits 32

For each number of items N, of bits k, and of items to find: `HammingIndex` and
`IndexBinaryFlat` with `use_heap` on and off, of which the faster counts, in alternating
rounds on all cores; the median counts. All must find the same distances. Codes are drawn
at random, which is the hardest case for buckets of equal codes; with `--clusters C` they
are copies of C random ones with each bit flipped with probability 0.1, more like those of
images.

`--large N` only builds an index of N codes, a million at a time, and reports its time and
memory. The last line is JSON.
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
    """Returns codes, uint32[count, W]: uniformly random, or in clusters."""
    largest = 2**num_bits - 1
    codes = rng.integers(largest, size=clusters or count, dtype=np.uint64, endpoint=True)
    if clusters:
        codes = codes[np.random.default_rng(1).integers(clusters, size=count)]
        for bit in range(num_bits):
            codes ^= (rng.random(count, np.float32) < 0.1).astype(np.uint64) << np.uint64(bit)
    words = codes.astype("<u8").view("<u4").reshape(count, 2)
    return np.ascontiguousarray(words[:, : -(-num_bits // 32)])


def search_functions(codes: np.ndarray, num_bits: int) -> dict[str, Callable]:
    """Returns by name functions (queries, top) -> (distances, ids)."""
    index = llc_jax.HammingIndex(num_bits)
    index.add(codes)
    flat = faiss.IndexBinaryFlat(32 * codes.shape[1])
    flat.add(codes.view(np.uint8))

    def search_flat(use_heap):
        def search(queries, top):
            flat.use_heap = use_heap
            return flat.search(queries.view(np.uint8), top)

        return search

    return {
        "ours": index.search,
        "faiss flat, heap": search_flat(True),
        "faiss flat, counts": search_flat(False),
    }


def measure(functions: dict[str, Callable], queries: np.ndarray, top: int, rounds: int) -> dict:
    """Returns queries per second by name; all must find the same distances."""
    times = {name: [] for name in functions}
    distances = {name: np.sort(search(queries, top)[0], 1) for name, search in functions.items()}
    for name in functions:
        np.testing.assert_array_equal(distances[name], distances["ours"], err_msg=name)
    for _ in range(rounds):
        for name, search in functions.items():
            start = time.perf_counter()
            search(queries, top)
            times[name].append(time.perf_counter() - start)
    return {name: len(queries) / statistics.median(seconds) for name, seconds in times.items()}


def compare(options: argparse.Namespace) -> list[dict]:
    """Measures every combination and prints a line for each."""
    results = []
    print(f"{'items':>11} {'k':>3} {'top':>5} {'ours':>12} {'faiss':>12}  queries/s, ratio")
    for items in options.items:
        num_queries = int(np.clip(6.4e8 // items, 16, 5000))
        for num_bits in options.bits:
            rng = np.random.default_rng(0)
            codes = draw(rng, items + num_queries, num_bits, options.clusters)
            queries, codes = codes[:num_queries], codes[num_queries:]
            functions = search_functions(codes, num_bits)
            for top in options.tops:
                rates = measure(functions, queries, top, options.rounds)
                ours, best = rates["ours"], max(rates[name] for name in rates if name != "ours")
                print(
                    f"{items:>11,} {num_bits:>3} {top:>5} {ours:>12,.0f} {best:>12,.0f}  "
                    f"{ours / best:.2f}",
                    flush=True,
                )
                result = {"items": items, "bits": num_bits, "top": top, "ratio": ours / best}
                results.append(result | {"queries_per_second": rates})
    return results


def resident_memory() -> float:
    """Returns the resident memory of the process, in bytes."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def build(items: int, num_bits: int, tops: list[int]) -> dict:
    """Builds, searches, saves and opens a large index; returns times and memory."""
    rng = np.random.default_rng(0)
    llc_jax.HammingIndex(num_bits).search(draw(rng, 1, num_bits, 0))  # Compiles.
    queries = draw(rng, 256, num_bits, 0)
    memory_before, seconds = resident_memory(), {}
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
    result = {"items": items, "bits": num_bits, "gigabytes/index": index.nbytes / 1e9}
    result["gigabytes/process"] = (resident_memory() - memory_before) / 1e9
    for top in tops:
        start = time.perf_counter()
        index.search(queries, top)
        result[f"queries_per_second/{top}"] = len(queries) / (time.perf_counter() - start)
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
    return result | {"seconds": seconds}


def main() -> None:
    """Runs the measurement that the options choose."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, nargs="+", default=ITEMS)
    parser.add_argument("--bits", type=int, nargs="+", default=BITS)
    parser.add_argument("--tops", type=int, nargs="+", default=TOPS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clusters", type=int, default=0)
    parser.add_argument("--large", type=int)
    options = parser.parse_args()
    if options.large:
        results = [build(options.large, num_bits, options.tops) for num_bits in options.bits]
    else:
        results = compare(options)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
