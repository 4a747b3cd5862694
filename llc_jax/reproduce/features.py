"""Features of a run as data for others: python -m llc_jax.reproduce.features RUN FILE.npz"""

import argparse
import sys
from collections.abc import Sequence

from llc_jax.errors import InputError
from llc_jax.experiment.run_features import write_features


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes what the arguments ask for; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        write_features(options.run, options.file)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llc_jax.reproduce.features",
        description="Writes the features of a run with a frozen backbone as labelled embeddings.",
    )
    parser.add_argument("run", help="its workdir")
    parser.add_argument("file", help="the .npz to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
