"""How fast embeddings become codes, beside the matrix products alone.

  python benchmarks/encode_embeddings.py
  python benchmarks/encode_embeddings.py --rows 50000 --size 1280

`llc_jax.LLC.transform` reads embeddings, computes the head, takes the signs and packs them. Its
peer is the least that any program has to do: NumPy's products of the same matrices, all cores.
There are two heads, k bits straight from the embeddings, and three hidden layers of 512 before
them. Rounds alternate; the last line is JSON.
"""

import argparse
import functools
import itertools
import json
from collections.abc import Sequence

import numpy as np
from alternating import medians

import llc_jax

HEADS = {"linear": (), "three layers of 512": (512, 512, 512)}


def multiply(X: np.ndarray, matrices: Sequence[np.ndarray], batch: int = 4096) -> None:
    """Multiplies embeddings, float32[N, d], by one matrix after the other, a batch at a time."""
    for start in range(0, len(X), batch):
        product = X[start : start + batch]
        for matrix in matrices:
            product = product @ matrix


def main() -> None:
    """Times both heads and prints the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=768, help="d, the numbers of an embedding")
    parser.add_argument("--bits", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    X = rng.standard_normal((options.rows, options.size), np.float32)
    labels, results = np.arange(256) % 4, {}
    for name, hidden in HEADS.items():
        model = llc_jax.LLC(options.bits, hidden=hidden, epochs=(1, 1, 1), random_state=0).fit(
            X[:256], labels
        )
        widths = (options.size, *hidden, options.bits)
        matrices = [rng.standard_normal(shape, np.float32) for shape in itertools.pairwise(widths)]
        candidates = {
            "transform": functools.partial(model.transform, X),
            "matrix products": functools.partial(multiply, X, matrices),
        }
        times = medians(candidates, options.seconds)
        ratio = times["transform"] / times["matrix products"]
        rate = 1e3 * options.rows / times["transform"]
        results[name] = times | {"ratio": ratio, "embeddings_per_second": rate}
        print(
            f"{name}: transform {times['transform']:.0f} ms, matrix products "
            f"{times['matrix products']:.0f} ms, ratio {ratio:.2f}; {rate:,.0f} embeddings/s"
        )
    print(json.dumps(vars(options) | {"results": results}))


if __name__ == "__main__":
    main()
