"""Decoders beside FAISS and NumPy, from packed codes to the nearest class.

  pip install faiss-cpu
  python benchmarks/decoding.py

For each number of classes L and of bits k: queries near to class codes, a few bits
wrong. All that find the nearest class (`IndexBinaryFlat` with one neighbour, NumPy,
`mhd`, and `table` for k up to 24) must give the same distances; `IndexBinaryHash` and
`ed` find equal codes only. Alternating rounds, the median counts. All take and return
NumPy arrays. The seconds that a decoder of ours takes to be made are those until its
first answer, and count the compilation, which Numba does once for all processes.

Then `table` for calls of three sizes, beside `IndexBinaryFlat` and beside a loop over the
same table that Numba compiles and one thread runs, without any checks. The last line is
JSON.
"""

import argparse
import json
import statistics
import time

import faiss
import numba
import numpy as np

from llc_jax.codes.codebook import Codebook
from llc_jax.decoding import decoders

ROUNDS = 5
CALLS = (100_000, 500_000, 8_000_000)
CLASSES = (100, 1_000, 100_000, 1_000_000)
BITS = (20, 24, 32, 64)


def near_queries(codebook: Codebook, count: int, seed: int) -> np.ndarray:
    """Class codes with up to three bits flipped, uint32[count, W]."""
    rng = np.random.default_rng(seed)
    codes = codebook.packed[rng.integers(codebook.num_classes, size=count)].copy()
    for _ in range(3):
        bits = rng.integers(codebook.num_bits, size=count)
        codes[np.arange(count), bits // 32] ^= np.uint32(1) << (bits % 32).astype(np.uint32)
    return codes


def faiss_bytes(codes: np.ndarray, num_bits: int) -> np.ndarray:
    """Codes as FAISS takes them: as few bytes as hold them, 4 or 8 for its fast kernels."""
    width = 4 if num_bits <= 32 else 8
    return np.ascontiguousarray(codes).view(np.uint8)[:, :width].copy()


def faiss_flat(codebook: Codebook):
    """Exact nearest neighbour."""
    index = faiss.IndexBinaryFlat(32 if codebook.num_bits <= 32 else 64)
    index.add(faiss_bytes(codebook.packed, codebook.num_bits))
    return lambda queries: index.search(queries, 1)[0][:, 0]


def faiss_hash(codebook: Codebook):
    """Equal codes, by a hash of 24 bits or all."""
    width = 32 if codebook.num_bits <= 32 else 64
    index = faiss.IndexBinaryHash(width, min(24, codebook.num_bits))
    index.add(faiss_bytes(codebook.packed, codebook.num_bits))
    index.nflip = 0
    return lambda queries: index.search(queries, 1)[0][:, 0]


def numpy_nearest(codebook: Codebook):
    """XOR, count, minimum; some queries at a time."""
    codes, rows = codebook.packed, max(1, 2**24 // codebook.num_classes)

    def search(queries):
        nearest_distances = []
        for start in range(0, len(queries), rows):
            different = queries[start : start + rows, None] ^ codes[None]
            distances = np.bitwise_count(different).sum(axis=-1, dtype=np.uint16)
            nearest = distances.argmin(axis=1)
            nearest_distances.append(distances[np.arange(len(nearest)), nearest])
        return np.concatenate(nearest_distances)

    return search


def ours(name: str, codebook: Codebook):
    """A decoder: distances of queries; the labels are computed too."""
    decoder = decoders.make(name, codebook)
    return lambda queries: decoder(queries)[1]


def costs(codebook: Codebook) -> dict[str, dict[str, float]]:
    """What FAISS's flat index keeps, and each decoder of ours, and takes until its first answer."""
    flat = faiss_bytes(codebook.packed, codebook.num_bits)
    measured = {"faiss flat": {"megabytes": flat.nbytes / 1e6}}
    for name in ("mhd", "ed", *(("table",) if codebook.num_bits <= 24 else ())):
        start = time.perf_counter()
        decoder = decoders.make(name, codebook)
        decoder(codebook.packed[:1])
        seconds = time.perf_counter() - start
        measured[name] = {"seconds": seconds, "megabytes": decoder.nbytes / 1e6}
    return measured


def peers(codebook: Codebook, queries: np.ndarray) -> dict:
    """Name -> (search, queries in the form that it takes)."""
    queries_as_bytes = faiss_bytes(queries, codebook.num_bits)
    searches = {
        "faiss flat": (faiss_flat(codebook), queries_as_bytes),
        "mhd": (ours("mhd", codebook), queries),
        "faiss hash": (faiss_hash(codebook), queries_as_bytes),
        "ed": (ours("ed", codebook), queries),
        "numpy": (numpy_nearest(codebook), queries),
    }
    if codebook.num_bits <= 24:
        searches["table"] = (ours("table", codebook), queries)
    return searches


def measure(codebook: Codebook) -> dict[str, float]:
    """Measures all for one codebook; returns queries per second by name."""
    exact = near_queries(codebook, max(256, min(20_000, 2 * 10**8 // codebook.num_classes)), seed=0)
    many = near_queries(codebook, 2_000_000, seed=1)
    distances = {}
    slow, fast = peers(codebook, exact), peers(codebook, many)
    # The constant-time ones get enough queries to last.
    timed = {name: (fast if name in ("table", "ed", "faiss hash") else slow)[name] for name in slow}
    for name in ("faiss flat", "mhd", "numpy", "table"):
        if name in slow:
            search, queries = slow[name]
            distances[name] = np.asarray(search(queries))
    for name, values in distances.items():
        np.testing.assert_array_equal(values, distances["faiss flat"], err_msg=name)
    seconds = median_seconds(
        {name: (search, (queries,)) for name, (search, queries) in timed.items()}
    )
    return {name: len(queries) / seconds[name] for name, (_, queries) in timed.items()}


def median_seconds(calls: dict[str, tuple], rounds: int = ROUNDS) -> dict[str, float]:
    """Times functions in alternating rounds, after a first call each.

    Args:
      calls: name -> (function, arguments).
      rounds: of one call each.
    """
    times = {name: [] for name in calls}
    for function, arguments in calls.values():
        function(*arguments)
    for _ in range(rounds):
        for name, (function, arguments) in calls.items():
            start = time.perf_counter()
            function(*arguments)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


@numba.njit
def plain_loop(table, label_bits, codes):
    """Labels and distances from the table of keys; see `llc_jax.decoding.table`."""
    labels, distances = np.empty(len(codes), np.int32), np.empty(len(codes), np.int32)
    for i in range(len(codes)):
        key = table[codes[i, 0]]
        labels[i], distances[i] = key & ((1 << label_bits) - 1), key >> label_bits
    return labels, distances


def measure_calls(codebook: Codebook) -> dict[int, dict[str, float]]:
    """Measures `table` by the codes of a call: codes per second, and ratios of speeds."""
    decode, flat = decoders.make("table", codebook), faiss_flat(codebook)
    # The decoder's own: two tables would compete for the cache.
    key, label_bits = np.asarray(decode._arrays.key), int(decode._arrays.label_bits)
    flat_count = max(256, min(20_000, 2 * 10**8 // codebook.num_classes))
    flat_queries = faiss_bytes(near_queries(codebook, flat_count, seed=0), codebook.num_bits)
    measured = {}
    for count in CALLS:
        codes = near_queries(codebook, count, seed=2)
        table = {"table": (decode, (codes,))}
        plain = {"plain loop": (plain_loop, (key, label_bits, codes))}
        for result, expected in zip(decode(codes), plain_loop(key, label_bits, codes), strict=True):
            np.testing.assert_array_equal(result, expected)
        beside_plain = median_seconds(table | plain, rounds=21)
        beside_flat = median_seconds(table | {"faiss flat": (flat, (flat_queries,))})
        flat_seconds = beside_flat["faiss flat"] / flat_count * count
        measured[count] = {
            "codes_per_second": count / beside_plain["table"],
            "times_faiss_flat": flat_seconds / beside_flat["table"],
            "times_plain_loop": beside_plain["plain loop"] / beside_plain["table"],
        }
    return measured


def main() -> None:
    """Measures every shape and prints a line each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--bits", type=int, nargs="+", default=BITS)
    options = parser.parse_args()
    everything = []
    for num_bits in options.bits:
        for classes in options.classes:
            if classes > 2**num_bits:
                continue
            codebook = Codebook.random(classes, num_bits)
            kept = costs(codebook)
            rates = measure(codebook)
            base = rates["faiss flat"]
            print(f"L = {classes:,}, k = {num_bits}")
            for name, rate in rates.items():
                print(f"  {name:<12} {rate:>16,.0f} queries/s   {rate / base:>10,.2f} x faiss flat")
            for name, cost in kept.items():
                seconds = f"{cost['seconds']:.3f} s" if "seconds" in cost else ""
                print(f"  {name:<12} {seconds:>16} {cost['megabytes']:>10,.3f} MB")
            shape = {"classes": classes, "bits": num_bits}
            results = {"queries_per_second": rates, "decoders": kept}
            if num_bits <= 24:
                results["calls"] = measure_calls(codebook)
                for count, figures in results["calls"].items():
                    print(
                        f"  table, calls of {count:>9,} codes: "
                        f"{figures['codes_per_second']:>13,.0f} codes/s   "
                        f"{figures['times_faiss_flat']:>8,.1f} x faiss flat   "
                        f"{figures['times_plain_loop']:>5.2f} x plain loop"
                    )
            everything.append(shape | results)
    print(json.dumps(everything))


if __name__ == "__main__":
    main()
