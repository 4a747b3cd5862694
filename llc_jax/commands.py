"""What the commands of `llc` do. Heavy imports wait for the command that needs them."""

import argparse
import functools
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from llc_jax import arguments
from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.files import atomic_write

# Files of embeddings; all else is images.
_EMBEDDINGS = (".npz", ".npy", ".parquet")


def train(options: argparse.Namespace) -> None:
    """Trains codes of images or of embeddings, as `python -m llc_jax.main` does."""
    from llc_jax import main

    data, run = options.data, options.run
    is_file = data.split("://")[-1].split(":")[0].endswith(_EMBEDDINGS)
    has_embeddings = data.startswith("embeddings:") or is_file
    config = "embeddings_20bit" if has_embeddings else "folder_20bit"
    bits = [] if options.bits is None else [f"--config.num_bits={options.bits}"]
    for override in options.overrides:
        if not override.startswith("--config."):
            raise InputError(f"Expected --config.KEY=VALUE, not {override}; see llc train --help.")
    overrides = [*bits, *options.overrides]
    hints = "" if has_embeddings else _NEXT.format(run=run)
    main.start(["llc train", f"--config={config}:{data}", f"--workdir={run}", *overrides], hints)


_NEXT = """
What one can do with it:
  llc classify --run {run} IMAGES
  llc encode --run {run} IMAGES --out codes.npz
  llc index --codes codes.npz --out photos.index
  llc search --run {run} --index photos.index --codes codes.npz IMAGES"""


def encode(options: argparse.Namespace) -> None:
    """Writes the codes of images or embeddings to a file, or those of a corpus to a folder."""
    if bool(options.shards) == bool(options.images):
        raise InputError("Name what to encode: IMAGES, or --shards PATTERN.")
    if options.shards:
        _encode_corpus(options)
        return
    if options.task or options.decoder:
        raise InputError("--task and --decoder are for --shards.")
    if options.out.suffix != ".npz":
        raise InputError(f"--out is an .npz file, not {options.out}.")
    files = arguments.find_files(options.images)
    model = _load(options.run)
    names, logits = arguments.code_logits(model, files, options.on_error or "stop")
    codes = packing.to_little_endian(packing.pack_on_host(logits))
    arrays = {"codes": codes, "num_bits": model.num_bits, "paths": np.array(names, np.str_)}
    if options.logits:
        arrays["code_logits"] = logits.astype("<f4")
    with atomic_write(options.out) as temporary:
        np.savez(temporary, **arrays)
    print(f"{len(names)} codes of {model.num_bits} bits: {options.out}")


def _encode_corpus(options: argparse.Namespace) -> None:
    """Writes the codes of a task's shards of a corpus."""
    from llc_jax.corpus import encoding, inputs, progress, tasks

    if options.out.suffix == ".npz":
        raise InputError(f"With --shards, --out is a folder, not {options.out}.")
    task = tasks.find(options.task)
    model = _load(options.run)
    shards = inputs.find(options.shards, model.kind)
    corpus = encoding.Encoding(
        model,
        shards,
        options.out,
        logits=options.logits,
        decoder=options.decoder,
        skip=options.on_error != "stop",
    )
    numbers = task.shards(len(shards))
    missing = corpus.missing(numbers)
    print(
        f"task {task}: {len(missing):,} of its {len(numbers):,} shards to do, of {len(shards):,} "
        "in all",
        flush=True,
    )
    with progress.show(model.kind, corpus.work(missing)) as shown:
        counts = corpus.encode(missing, shown)
    print(
        f"task {task}: {counts.items:,} codes of {model.num_bits} bits in {counts.shards:,} files: "
        f"{options.out}"
    )
    if damaged := corpus.damaged(numbers):
        print(f"{damaged:,} {model.kind} could not be read and have no codes; the files name them.")
    if counts.failed:
        name, error = next(iter(counts.failed.items()))
        raise InputError(
            f"{len(counts.failed):,} shards could not be read and have no codes, {name} the first "
            f"({error.rstrip('.')}): repair them, and the same command goes on."
        )


def classify(options: argparse.Namespace) -> None:
    """Prints the classes of images."""
    from llc_jax.decoding import decoders

    images = arguments.find_files(options.images)
    model = _load(options.run)
    decode = decoders.make(options.decoder, model.codebook)
    paths, logits = arguments.code_logits(model, images, options.on_error)
    labels, distances = map(np.asarray, decode(logits))
    names = [*model.codebook.class_names, None]  # The label -1, rejected, is the last.
    rows = [
        {"image": path, "label": int(label), "class": names[label], "distance": int(distance)}
        for path, label, distance in zip(paths, labels, distances, strict=True)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    _print_rows(
        [(row["image"], row["distance"], row["class"] or "(none)") for row in rows], "class"
    )


def detect(options: argparse.Namespace) -> None:
    """Prints which images are of no class."""
    from llc_jax.codes import hamming
    from llc_jax.decoding import decoders

    hamming.check_radius(options.radius)
    images = arguments.find_files(options.images)
    model = _load(options.run)
    paths, logits = arguments.code_logits(model, images, options.on_error)
    labels, distances = map(np.asarray, decoders.make("mhd", model.codebook)(logits))
    rows = [
        {
            "image": path,
            "unknown": bool(distance > options.radius),
            "label": int(label),
            "class": model.codebook.class_names[label],
            "distance": int(distance),
        }
        for path, label, distance in zip(paths, labels, distances, strict=True)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    found = [f"{'unknown' if row['unknown'] else 'known':<7}  {row['class']}" for row in rows]
    _print_rows(
        [(row["image"], row["distance"], text) for row, text in zip(rows, found, strict=True)],
        f"{'':<7}  nearest class",
    )


def evaluate(options: argparse.Namespace) -> None:
    """Evaluates a run once more."""
    from llc_jax.experiment import evaluate

    evaluate.evaluate_again(
        options.run,
        source=options.data,
        decoders=options.decoders,
        retrieval=options.retrieval,
        near=options.near,
        far=options.far,
    )


def report(options: argparse.Namespace) -> None:
    """Makes the report of a run."""
    from llc_jax.experiment import run_report

    if options.examples or options.near or options.far:
        from llc_jax.experiment.report_inputs import FinishedRun

        run = FinishedRun(options.run, options.data, options.near, options.far)
        if options.examples:
            run.keep_examples()
        if options.near or options.far:
            run.keep_ood_scores()
    print(f"Report: {run_report.write_report(options.run)}")


def convert(options: argparse.Namespace) -> None:
    """Makes a run of an official checkpoint."""
    from llc_jax.experiment import conversion

    conversion.convert(options.weights, options.run, codebook=options.codebook, arch=options.arch)
    print(f"Run: {options.run}")


def export(options: argparse.Namespace) -> None:
    """Writes a run's weights, its model, or codes, for others."""
    sources = {"--run": options.run, "--codes": options.codes}
    of_run = options.to in ("torch", "stablehlo")
    needed, other = ("--run", "--codes") if of_run else ("--codes", "--run")
    if sources[needed] is None:
        raise InputError(f"--to {options.to} needs {needed}: what to write.")
    if sources[other] is not None and options.to != "parquet":
        raise InputError(f"--to {options.to} writes what {needed} names: leave {other} out.")
    if of_run and options.bit_order:
        raise InputError(f"--to {options.to} writes weights: --bit-order is for codes.")
    if options.to == "stablehlo":
        from llc_jax import serving

        serving.export(options.run, options.out)
        print(f"Model: {options.out}")
        return
    if options.to == "torch":
        from llc_jax.experiment import conversion

        conversion.export(options.run, options.out)
        print(f"Weights: {options.out}")
        return
    from llc_jax.search import export

    table = export.read(options.codes)
    if options.run is not None:
        table = export.classify(table, _codebook(options.run))
    export.write(table, options.to, options.out, options.bit_order)
    print(f"{len(table.ids)} codes of {table.num_bits} bits: {options.out}")


def index(options: argparse.Namespace) -> None:
    """Writes an index of codes."""
    from llc_jax.search import code_shards, export
    from llc_jax.search.index import HammingIndex

    is_corpus = code_shards.is_folder(options.codes)
    tables = code_shards.read_all(options.codes) if is_corpus else [export.read(options.codes)]
    index = None
    for table in tables:
        index = HammingIndex(table.num_bits) if index is None else index
        index.add(table.codes, table.ids)
    index.save(options.out)
    print(f"{len(index)} codes of {index.num_bits} bits: {options.out}")


def search(options: argparse.Namespace) -> None:
    """Prints the images most like others."""
    from llc_jax.data import webdataset
    from llc_jax.search.several import SeveralIndexes

    if options.oversample is not None and not options.rescore:
        raise InputError("--oversample is for --rescore: give both, or neither.")
    named = ", ".join(options.index)
    index = SeveralIndexes.load(
        [
            path
            for name in options.index
            for path in (webdataset.expand(name) if webdataset.is_pattern(name) else [name])
        ]
    )
    names_of = _names(options.codes, index, named) if options.codes else None
    files = arguments.find_files(options.images)
    model = _load(options.run)
    if model.num_bits != index.num_bits:
        raise InputError(
            f"The index {named} has codes of {index.num_bits} bits, the run "
            f"{options.run} of {model.num_bits}: make the index with that run."
        )
    paths, logits = arguments.code_logits(model, files, None)
    if options.rescore:
        oversample = 4 if options.oversample is None else options.oversample
        distances, ids, scores = index.rescore(logits, options.top, oversample)
    else:
        distances, ids = index.search(packing.pack_on_host(logits), options.top)
        scores = None
    item_names = names_of(ids[distances >= 0]) if names_of else None
    rows = [
        {"image": path, "distance": int(distances[q, i]), "id": int(ids[q, i])}
        | ({} if scores is None else {"score": float(scores[q, i])})
        | ({"path": item_names[int(ids[q, i])]} if item_names else {})
        for q, path in enumerate(paths)
        for i in np.flatnonzero(distances[q] >= 0)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    found = [(row["image"], row["distance"], str(row.get("path", row["id"]))) for row in rows]
    _print_rows(found, "found", [row["score"] for row in rows] if options.rescore else None)


def _names(codes: str, index, named: str) -> Callable[[np.ndarray], Mapping[int, str]]:
    """Returns a function that gives the names of the items of an index by their ids.

    Raises:
      InputError: if it was made of other codes.
    """
    from llc_jax.search import code_shards, export

    ids = index.ids
    if len(np.unique(ids)) < len(ids):
        raise InputError(f"Some items of {named} have the same id, and no name: leave --codes out.")
    if code_shards.is_folder(codes):
        return functools.partial(code_shards.keys, codes)
    names = export.read(codes).paths
    if names is not None and len(ids) and ids.max() >= len(names):
        raise InputError(f"The index {named} was not made of {codes}.")
    return lambda ids: {} if names is None else {i: names[i] for i in ids.tolist()}


def prepare_imagenet(options: argparse.Namespace) -> None:
    """Prepares TFDS's imagenet2012."""
    from llc_jax.prepare import tfds_datasets

    tfds_datasets.prepare_imagenet(options.folder)


def prepare_array_record(options: argparse.Namespace) -> None:
    """Adds ArrayRecord to a prepared dataset."""
    from llc_jax.prepare import tfds_datasets

    tfds_datasets.convert_to_array_record(options.name)


def prepare_resized(options: argparse.Namespace) -> None:
    """Copies a dataset, with smaller images."""
    from llc_jax.prepare import resized

    resized.resize_copy(
        options.source, options.out, short_side=options.short_side, quality=options.quality
    )


def _print_rows(
    rows: Sequence[tuple[str, int, str]], last: str, scores: Sequence[float] | None = None
) -> None:
    """Prints a table, a line for each image: its name, a distance, and what was found.

    Scores, one a line, are printed between the distance and what was found.
    """
    names = [_on_one_line(name) for name, *_ in rows]
    width = max(map(len, names), default=0)
    print(f"{'image':<{width}}  distance{'' if scores is None else '     score'}  {last}")
    cells = [""] * len(rows) if scores is None else [f"  {score:>8.3f}" for score in scores]
    for name, cell, (_, distance, found) in zip(names, cells, rows, strict=True):
        print(f"{name:<{width}}  {distance:>8}{cell}  {_on_one_line(found)}")


def _on_one_line(name: str) -> str:
    """Returns a name with escapes for what does not print, such as the end of a line."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in name)


def _load(path: str):
    from llc_jax.inference import load  # The import takes seconds: --help does without it.

    return load(path)


def _codebook(path: str) -> Codebook:
    """Returns the class codes of a finished run, without its network."""
    from llc_jax.experiment.workdir import find_stage

    stage = find_stage(path)
    codebook = stage.directory.load_codebook()
    if codebook is None:
        raise InputError(f"The stage {stage.name!r} of {stage.workdir} has no class codes.")
    return codebook
