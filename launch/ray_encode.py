"""Encodes a corpus on a Ray cluster, with one worker on each device: an example.

  pip install 'llc_jax[ray]'
  python launch/ray_encode.py --run runs/photos --shards 'photos-{0000..0999}.tar' --out codes/
  python launch/ray_encode.py ... --workers 8 --gpus 1

Workers are actors of Ray Data, which gives each the numbers of the next shards. All see the same
paths. What they write is what `llc encode --shards` writes, into the same folder: a worker that
dies loses the shards that it was at, Ray starts another, and this command, started again, does
only what is missing. Then `llc index --codes codes/ --out photos.index`.
"""

import argparse
import sys

import ray

from llc_jax.copies import as_path
from llc_jax.corpus import inputs
from llc_jax.experiment.network import takes_embeddings
from llc_jax.experiment.workdir import find_stage
from llc_jax.search import code_shards

# Shards that a worker is given at a time: it reads the next while it encodes one.
SHARDS_AT_ONCE = 4


class Worker:
    """Encodes shards by their numbers; each actor has its own model."""

    def __init__(self, run: str, patterns: list[str], out: str, options: dict):
        import llc_jax  # Here alone it takes a device.
        from llc_jax.corpus import encoding

        model = llc_jax.load(run)
        shards = inputs.find(patterns, model.kind)
        self._corpus = encoding.Encoding(model, shards, as_path(out), **options)

    def __call__(self, batch: dict) -> dict:
        """Encodes some shards; returns what is wrong with those that could not be read."""
        counts = self._corpus.encode(batch["item"].tolist())
        failed = "; ".join(f"{name}: {error}" for name, error in counts.failed.items())
        return {"failed": [failed]}


def main() -> int:
    """Encodes all shards that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--shards", required=True, nargs="+", metavar="PATTERN")
    parser.add_argument("--out", required=True)
    parser.add_argument("--logits", action="store_true")
    parser.add_argument("--decoder")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=1, help="of a worker")
    parser.add_argument("--gpus", type=int, default=0, help="of a worker")
    parser.add_argument("--address", default=None, help="of the cluster; by default one is started")
    options = parser.parse_args()
    ray.init(address=options.address, ignore_reinit_error=True)
    arguments = {"logits": options.logits, "decoder": options.decoder}
    paths = [str(as_path(path).absolute()) for path in (options.run, options.out)]
    patterns = [str(as_path(pattern).absolute()) for pattern in options.shards]
    # Not `ray.data.range`: it would wait for a CPU, and the workers may have them all.
    numbers = list(range(count_shards(paths[0], patterns)))
    results = (
        ray.data.from_items(numbers, override_num_blocks=min(len(numbers), 4 * options.workers))
        .map_batches(
            Worker,
            fn_constructor_args=(paths[0], patterns, paths[1], arguments),
            batch_size=SHARDS_AT_ONCE,
            compute=ray.data.ActorPoolStrategy(size=options.workers),
            num_cpus=options.cpus,
            num_gpus=options.gpus,
        )
        .take_all()
    )
    failed = [row["failed"] for row in results if row["failed"]]
    if failed:
        print("error: shards that could not be read:", *failed, sep="\n", file=sys.stderr)
        return 2
    print(f"{len(code_shards.files(options.out)):,} shards are encoded: {options.out}")
    return 0


def count_shards(run: str, patterns: list[str]) -> int:
    """Returns how many shards a corpus has, without a device."""
    kind = "embeddings" if takes_embeddings(find_stage(run).run) else "images"
    return len(inputs.find(patterns, kind))


if __name__ == "__main__":
    sys.exit(main())
