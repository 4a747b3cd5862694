"""The command `llc`: uses and evaluates a trained model, and prepares data."""

import argparse
import json
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from llc_jax.codes import packing
from llc_jax.data.prefetch import ReadersFailed, kill_workers
from llc_jax.data.stores import Folder
from llc_jax.errors import InputError
from llc_jax.files import WriteFailed, atomic_write
from llc_jax.options import suggest


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WriteFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ReadersFailed as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        kill_workers()
        os._exit(1)  # A reader that hangs would delay the usual end.
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the pipe, such as `head`, has closed it; nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


class _Parser(argparse.ArgumentParser):
    """Names the nearest command, or other choice, where one is misspelt."""

    def error(self, message: str) -> NoReturn:
        if match := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += "." + suggest(match[1], re.findall(r"[\w-]+", match[2]))
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="llc", description="Uses a trained llc_jax model; prepares data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    encode = commands.add_parser("encode", help="write the codes of images to a file")
    encode.add_argument("--out", required=True, type=pathlib.Path, help="the .npz file to write")
    encode.set_defaults(command=_encode)

    classify = commands.add_parser("classify", help="tell the classes of images")
    classify.add_argument(
        "--decoder",
        default="mhd",
        help="mhd (the default), ed, table, radius_R, chase_P, chase_P_nearest or soft",
    )
    classify.add_argument("--json", action="store_true", help="print JSON instead of a table")
    classify.set_defaults(command=_classify)

    _add_evaluation(commands)

    _add_conversions(commands)

    prepare = commands.add_parser("prepare", help="make data ready for training; see its --help")
    _add_preparations(prepare.add_subparsers(required=True, metavar="WHAT"))

    index = commands.add_parser("index", help="make an index of codes, to be searched")
    index.add_argument("--codes", required=True, help="the .npz file that encode wrote")
    index.add_argument("--out", required=True, help="the file to write")
    index.set_defaults(command=_index)

    search = commands.add_parser("search", help="find the images most like others")
    search.add_argument("--index", required=True, help="what index wrote")
    search.add_argument("--codes", help="the .npz file that it was made of: names the images")
    search.add_argument("--top", type=int, default=10, help="how many to find (10)")
    search.add_argument(
        "--rescore", action="store_true", help="order by the code logits, and print the scores"
    )
    search.add_argument(
        "--oversample", type=int, help="with --rescore: of TOP times so many nearest (4)"
    )
    search.add_argument("--json", action="store_true", help="print JSON instead of a table")
    search.set_defaults(command=_search)

    for command in (encode, classify):
        _add_on_error(command)
    for command in (encode, classify, search):
        command.add_argument("images", nargs="+", metavar="IMAGES", help="image files, or folders")
        command.add_argument("--run", required=True, help="workdir of a finished run")
    return parser


def _add_evaluation(commands) -> None:
    evaluate = commands.add_parser("eval", help="evaluate a run once more, without training")
    evaluate.add_argument("run", metavar="RUN", help="workdir of the run")
    evaluate.add_argument("--data", help="other labelled images; or where the run's own are now")
    evaluate.add_argument("--decoders", nargs="+", default=[], help="to measure, as in classify")
    evaluate.add_argument(
        "--retrieval", nargs="+", default=[], type=int, help="ranks at which to measure retrieval"
    )
    evaluate.set_defaults(command=_evaluate)


def _add_conversions(commands) -> None:
    convert = commands.add_parser("convert", help="make a run of an official LLC checkpoint")
    convert.add_argument("weights", metavar="WEIGHTS", help="a .pth or .safetensors file")
    convert.add_argument("run", metavar="RUN", help="the workdir to make")
    convert.add_argument("--codebook", help="an .npz or .npy; by default the checkpoint's own")
    convert.add_argument("--arch", help="the backbone; by default the one that fits")
    convert.set_defaults(command=_convert)

    export = commands.add_parser("export", help="write a run's weights, or codes, for others")
    formats = ["torch", "faiss", "pgvector", "parquet", "npy", "float"]
    export.add_argument("--to", required=True, choices=formats, help="what to write")
    export.add_argument(
        "--out",
        required=True,
        help="the file to write: .safetensors or .pth, .faiss, .sql, .parquet, .npy (of bytes, "
        "and of float)",
    )
    export.add_argument("--run", help="for torch: workdir of a finished run")
    export.add_argument("--codes", help="for the others: what encode wrote, or an index")
    export.add_argument(
        "--bit-order",
        choices=["little", "big"],
        help="for npy and parquet: bit j is bit j %% 8 of a byte (little, the default; as FAISS) "
        "or bit 7 - j %% 8 (big; as np.packbits, ubinary and Vespa)",
    )
    export.set_defaults(command=_export)


def _add_on_error(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="stop at an image that cannot be read (the default), or skip and name it",
    )


def _add_preparations(commands) -> None:
    imagenet = commands.add_parser("imagenet", help="TFDS's imagenet2012, from the original tars")
    imagenet.add_argument("folder", metavar="FOLDER", type=pathlib.Path, help="where the tars are")
    imagenet.set_defaults(command=_prepare_imagenet)

    convert = commands.add_parser("array_record", help="add ArrayRecord to a TFRecord dataset")
    convert.add_argument("name", metavar="NAME", help="of a dataset that TFDS has prepared")
    convert.set_defaults(command=_prepare_array_record)

    resize = commands.add_parser("resize", help="copy a dataset, with smaller images, to a tar")
    resize.add_argument("source", metavar="SOURCE", help="a folder, .zip, .tar, .csv or tfds:NAME")
    resize.add_argument("out", metavar="OUT.tar", type=pathlib.Path, help="the tar to write")
    resize.add_argument("--short-side", type=int, default=320, help="in pixels; 320 by default")
    resize.add_argument("--quality", type=int, default=92, help="of the JPEGs; 92 by default")
    resize.set_defaults(command=_prepare_resized)


def _encode(options: argparse.Namespace) -> None:
    if options.out.suffix != ".npz":
        raise InputError(f"--out is an .npz file, not {options.out}.")
    images = _image_paths(options.images)
    model = _load(options.run)
    paths, logits = _code_logits(model, images, options.on_error)
    codes = packing.to_little_endian(np.asarray(packing.pack(logits)))
    with atomic_write(options.out) as temporary:
        np.savez(temporary, codes=codes, num_bits=model.num_bits, paths=np.array(paths, np.str_))
    print(f"{len(paths)} codes of {model.num_bits} bits: {options.out}")


def _classify(options: argparse.Namespace) -> None:
    from llc_jax.decoding import decoders

    images = _image_paths(options.images)
    model = _load(options.run)
    decode = decoders.make(options.decoder, model.codebook)
    paths, logits = _code_logits(model, images, options.on_error)
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


def _evaluate(options: argparse.Namespace) -> None:
    from llc_jax.experiment import evaluate

    evaluate.evaluate_again(
        options.run, source=options.data, decoders=options.decoders, retrieval=options.retrieval
    )


def _convert(options: argparse.Namespace) -> None:
    from llc_jax.experiment import conversion

    conversion.convert(options.weights, options.run, codebook=options.codebook, arch=options.arch)
    print(f"Run: {options.run}")


def _export(options: argparse.Namespace) -> None:
    sources = {"--run": options.run, "--codes": options.codes}
    needed, other = ("--run", "--codes") if options.to == "torch" else ("--codes", "--run")
    if sources[needed] is None:
        raise InputError(f"--to {options.to} needs {needed}: what to write.")
    if sources[other] is not None:
        raise InputError(f"--to {options.to} writes what {needed} names: leave {other} out.")
    if options.to == "torch":
        if options.bit_order:
            raise InputError("--to torch writes weights: --bit-order is for codes.")
        from llc_jax.experiment import conversion

        conversion.export(options.run, options.out)
        print(f"Weights: {options.out}")
        return
    from llc_jax.search import export

    table = export.read(options.codes)
    export.write(table, options.to, options.out, options.bit_order)
    print(f"{len(table.ids)} codes of {table.num_bits} bits: {options.out}")


def _index(options: argparse.Namespace) -> None:
    from llc_jax.search import export
    from llc_jax.search.index import HammingIndex

    table = export.read(options.codes)
    index = HammingIndex(table.num_bits)
    index.add(table.codes, table.ids)
    index.save(options.out)
    print(f"{len(index)} codes of {index.num_bits} bits: {options.out}")


def _search(options: argparse.Namespace) -> None:
    from llc_jax.search import export
    from llc_jax.search.index import HammingIndex

    if options.oversample is not None and not options.rescore:
        raise InputError("--oversample is for --rescore: give both, or neither.")
    index = HammingIndex.load(options.index)
    item_paths = export.read(options.codes).paths if options.codes else None
    if item_paths is not None and len(index) and index.ids.max() >= len(item_paths):
        raise InputError(f"The index {options.index} was not made of {options.codes}.")
    paths = _image_paths(options.images)
    model = _load(options.run)
    if model.num_bits != index.num_bits:
        raise InputError(
            f"The index {options.index} has codes of {index.num_bits} bits, the run "
            f"{options.run} of {model.num_bits}: make the index with that run."
        )
    logits = model.code_logits(paths)
    if options.rescore:
        oversample = 4 if options.oversample is None else options.oversample
        distances, ids, scores = index.rescore(logits, options.top, oversample)
    else:
        distances, ids = index.search(packing.pack(logits), options.top)
        scores = None
    rows = [
        {"image": path, "distance": int(distances[q, i]), "id": int(ids[q, i])}
        | ({} if scores is None else {"score": float(scores[q, i])})
        | ({"path": item_paths[ids[q, i]]} if item_paths else {})
        for q, path in enumerate(paths)
        for i in np.flatnonzero(distances[q] >= 0)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    found = [(row["image"], row["distance"], str(row.get("path", row["id"]))) for row in rows]
    _print_rows(found, "found", [row["score"] for row in rows] if options.rescore else None)


def _prepare_imagenet(options: argparse.Namespace) -> None:
    from llc_jax.prepare import tfds_datasets

    tfds_datasets.prepare_imagenet(options.folder)


def _prepare_array_record(options: argparse.Namespace) -> None:
    from llc_jax.prepare import tfds_datasets

    tfds_datasets.convert_to_array_record(options.name)


def _prepare_resized(options: argparse.Namespace) -> None:
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


def _code_logits(model, paths: list[str], on_error: str) -> tuple[list[str], np.ndarray]:
    """Returns the paths of the images that can be read, and their code logits.

    Raises:
      InputError: if one cannot be read and `on_error` is "stop", or if none can.
    """
    errors = {}
    try:
        logits = model.code_logits(paths, errors.__setitem__ if on_error == "skip" else None)
    except InputError as error:
        raise InputError(f"{error} With --on-error skip it is left out.") from error
    for error in errors.values():
        print(f"skipped: {error}", file=sys.stderr)
    if errors:
        print(f"skipped {len(errors)} of {len(paths)} images", file=sys.stderr)
    if len(errors) == len(paths):
        raise InputError("None of the images can be read.")
    good = [index for index in range(len(paths)) if index not in errors]
    return [paths[index] for index in good], logits[good]


def _image_paths(arguments: list[str]) -> list[str]:
    """Replaces folders by the images in them."""
    paths = []
    for argument in arguments:
        path = pathlib.Path(argument)
        if path.is_dir():
            files = Folder(path).files()
            if not files:
                raise InputError(f"There are no images in the folder {path}.")
            paths += [str(path / file) for file in files]
        elif path.exists():
            paths.append(argument)
        else:
            raise InputError(f"There is no image {argument}.")
    return paths
