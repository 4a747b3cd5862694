"""Decoders beside FAISS and NumPy, from packed codes to the nearest class.

  pip install faiss-cpu
  python benchmarks/decoding.py

For each number of classes L and of bits k: queries near to class codes, a few bits
wrong. All that find the nearest class (`IndexBinaryFlat` with one neighbour, NumPy,
`mhd`, and `table` for k up to 24) must give the same distances; `IndexBinaryHash` and
`ed` find equal codes only. Alternating rounds, the median counts. Times include
handing the codes over, as NumPy arrays for FAISS and NumPy and as JAX arrays for ours.
The seconds that a decoder of ours takes to be made are those until its first answer, and
count the compilation. The last line is JSON.
"""

import argparse
import json
import statistics
import time

import faiss
import jax
import numpy as np

from llc_jax.codes.codebook import Codebook
from llc_jax.decoding import decoders

ROUNDS = 5
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
        found = []
        for start in range(0, len(queries), rows):
            different = queries[start : start + rows, None] ^ codes[None]
            distances = np.bitwise_count(different).sum(axis=-1, dtype=np.uint16)
            nearest = distances.argmin(axis=1)
            found.append(distances[np.arange(len(nearest)), nearest])
        return np.concatenate(found)

    return search


def ours(name: str, codebook: Codebook):
    """A decoder; the distances stand for the pair, which is computed whole."""
    decoder = decoders.make(name, codebook)
    return lambda queries: jax.block_until_ready(decoder(queries))[1]


def costs(codebook: Codebook) -> dict[str, dict[str, float]]:
    """What FAISS's flat index keeps, and each decoder of ours, and takes until its first answer."""
    flat = faiss_bytes(codebook.packed, codebook.num_bits)
    found = {"faiss flat": {"megabytes": flat.nbytes / 1e6}}
    for name in ("mhd", "ed", *(("table",) if codebook.num_bits <= 24 else ())):
        start = time.perf_counter()
        decoder = decoders.make(name, codebook)
        jax.block_until_ready(decoder(codebook.packed[:1]))
        seconds = time.perf_counter() - start
        found[name] = {"seconds": seconds, "megabytes": decoder.nbytes / 1e6}
    return found


def peers(codebook: Codebook, queries: np.ndarray) -> dict:
    """Name -> (search, queries in its own form)."""
    own = faiss_bytes(queries, codebook.num_bits)
    on_device = jax.device_put(queries)
    searches = {
        "faiss flat": (faiss_flat(codebook), own),
        "mhd": (ours("mhd", codebook), on_device),
        "faiss hash": (faiss_hash(codebook), own),
        "ed": (ours("ed", codebook), on_device),
        "numpy": (numpy_nearest(codebook), queries),
    }
    if codebook.num_bits <= 24:
        searches["table"] = (ours("table", codebook), on_device)
    return searches


def measure(codebook: Codebook) -> dict[str, float]:
    """Measures all for one codebook; returns queries per second by name."""
    exact = near_queries(codebook, max(256, min(20_000, 2 * 10**8 // codebook.num_classes)), seed=0)
    many = near_queries(codebook, 2_000_000, seed=1)
    rates, distances = {}, {}
    slow, fast = peers(codebook, exact), peers(codebook, many)
    # The constant-time ones get enough queries to last.
    chosen = {
        name: (fast if name in ("table", "ed", "faiss hash") else slow)[name] for name in slow
    }
    times = {name: [] for name in chosen}
    for name in ("faiss flat", "mhd", "numpy", "table"):
        if name in slow:
            search, queries = slow[name]
            distances[name] = np.asarray(search(queries))
    for name, found in distances.items():
        np.testing.assert_array_equal(found, distances["faiss flat"], err_msg=name)
    for search, queries in chosen.values():
        search(queries)
    for _ in range(ROUNDS):
        for name, (search, queries) in chosen.items():
            start = time.perf_counter()
            search(queries)
            times[name].append(time.perf_counter() - start)
    for name, (_, queries) in chosen.items():
        rates[name] = len(queries) / statistics.median(times[name])
    return rates


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
            made = costs(codebook)
            rates = measure(codebook)
            base = rates["faiss flat"]
            print(f"L = {classes:,}, k = {num_bits}")
            for name, rate in rates.items():
                print(f"  {name:<12} {rate:>16,.0f} queries/s   {rate / base:>10,.2f} x faiss flat")
            for name, cost in made.items():
                seconds = f"{cost['seconds']:.3f} s" if "seconds" in cost else ""
                print(f"  {name:<12} {seconds:>16} {cost['megabytes']:>10,.3f} MB")
            shape = {"classes": classes, "bits": num_bits}
            everything.append(shape | {"queries_per_second": rates, "decoders": made})
    print(json.dumps(everything))


if __name__ == "__main__":
    main()
