"""The command line of `llc`: what there is to say, and how it ends."""

import argparse
import os
import pathlib
import re
import sys
from typing import NoReturn

from llc_jax import commands
from llc_jax.copies import as_path, named
from llc_jax.data.prefetch import ReadersFailed, kill_workers
from llc_jax.errors import InputError
from llc_jax.files import WriteFailed
from llc_jax.options import suggest


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    parser = _parser()
    options, options.overrides = parser.parse_known_args(arguments)
    if options.overrides and options.command is not commands.train:
        parser.error(f"unrecognized arguments: {' '.join(options.overrides)}")
    try:
        options.command(options)
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {named(error)}", file=sys.stderr)
        return 2
    except WriteFailed as error:
        print(f"error: {named(error)}", file=sys.stderr)
        return 1
    except ReadersFailed as error:
        print(f"error: {named(error)}", file=sys.stderr, flush=True)
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
    parser = _Parser(prog="llc", description="Trains and uses binary codes; prepares data.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_training(subparsers)

    encode = _add_encoding(subparsers)

    classify = subparsers.add_parser("classify", help="tell the classes of images")
    classify.add_argument(
        "--decoder",
        default="mhd",
        help="mhd (the default), ed, table, radius_R, chase_P, chase_P_nearest or soft",
    )
    classify.add_argument("--json", action="store_true", help="print JSON instead of a table")
    classify.set_defaults(command=commands.classify)

    detect = subparsers.add_parser("detect", help="tell which images are of no class")
    detect.add_argument(
        "--radius",
        default=0,
        type=int,
        help="an image is unknown if no class code is within so many bits (0) of its code",
    )
    detect.add_argument("--json", action="store_true", help="print JSON instead of a table")
    detect.set_defaults(command=commands.detect)

    _add_evaluation(subparsers)

    _add_conversions(subparsers)

    prepare = subparsers.add_parser("prepare", help="make data ready for training; see its --help")
    _add_preparations(prepare.add_subparsers(required=True, metavar="WHAT"))

    _add_search(subparsers)

    for command in (encode, classify, detect):
        _add_on_error(command, None if command is encode else "stop")
        _add_images(command, "*" if command is encode else "+")
    return parser


def _add_encoding(subparsers) -> argparse.ArgumentParser:
    encode = subparsers.add_parser("encode", help="write the codes of images, or of a corpus")
    encode.add_argument(
        "--out",
        required=True,
        type=as_path,
        help="the .npz file to write; with --shards, the folder",
    )
    encode.add_argument(
        "--logits",
        action="store_true",
        help="keep the code logits too: 4 bytes for each bit; with --shards 2",
    )
    encode.add_argument(
        "--shards",
        nargs="+",
        metavar="PATTERN",
        help="a corpus: folders, .tar, .zip, .parquet of paths; or embeddings, .npy, .npz, "
        ".parquet; with wildcards and braces, as 'photos-{000..099}.tar'",
    )
    encode.add_argument(
        "--task",
        metavar="i/n",
        help="with --shards: do every n-th shard, from shard i on; by default what Slurm, MPI or "
        "Ray Train say, or else all",
    )
    encode.add_argument(
        "--decoder", help="with --shards: find the class of each image, as classify does, with mhd"
    )
    encode.set_defaults(command=commands.encode)
    return encode


def _add_training(subparsers) -> None:
    train = subparsers.add_parser(
        "train",
        help="train codes of a folder of photos, or of embeddings",
        epilog="Values of the config follow as --config.KEY=VALUE, as for llc_jax.main.",
    )
    train.add_argument(
        "data", metavar="PHOTOS", help="a folder, .zip, .tar, .csv or .txt; or a file of embeddings"
    )
    train.add_argument("--run", required=True, help="where the run is kept")
    train.add_argument("--bits", type=int, help="of a code; 20 by default")
    train.set_defaults(command=commands.train)


def _add_evaluation(subparsers) -> None:
    evaluate = subparsers.add_parser("eval", help="evaluate a run once more, without training")
    evaluate.add_argument("run", metavar="RUN", help="workdir of the run")
    evaluate.add_argument("--data", help="other labelled images; or where the run's own are now")
    evaluate.add_argument("--decoders", nargs="+", default=[], help="to measure, as in classify")
    evaluate.add_argument(
        "--retrieval", nargs="+", default=[], type=int, help="ranks at which to measure retrieval"
    )
    _add_unknown(evaluate)
    evaluate.set_defaults(command=commands.evaluate)

    report = subparsers.add_parser("report", help="make a page that shows the results of a run")
    report.add_argument("run", metavar="RUN", help="workdir of the run")
    report.add_argument(
        "--examples", action="store_true", help="encode the images again, where none are shown"
    )
    report.add_argument("--data", help="where the images of the run are now, to encode them again")
    _add_unknown(report)
    report.set_defaults(command=commands.report)


def _add_unknown(command: argparse.ArgumentParser) -> None:
    for group, likeness in (("near", "like"), ("far", "unlike")):
        command.add_argument(
            f"--{group}",
            nargs="+",
            default=[],
            metavar="NAME=DATA",
            help=f"sets of unknown images {likeness} those of the classes, to tell from them",
        )


def _add_search(subparsers) -> None:
    index = subparsers.add_parser("index", help="make an index of codes, to be searched")
    index.add_argument("--codes", required=True, help="what encode wrote: a file, or a folder")
    index.add_argument("--out", required=True, help="the file to write")
    index.set_defaults(command=commands.index)

    search = subparsers.add_parser("search", help="find the images most like others")
    search.add_argument(
        "--index",
        required=True,
        action="append",
        help="what index wrote; wildcards, braces and several --index name several",
    )
    search.add_argument("--codes", help="what it was made of: names the images")
    search.add_argument("--top", type=int, default=10, help="how many to find (10)")
    search.add_argument(
        "--rescore", action="store_true", help="order by the code logits, and print the scores"
    )
    search.add_argument(
        "--oversample", type=int, help="with --rescore: of TOP times so many nearest (4)"
    )
    search.add_argument("--json", action="store_true", help="print JSON instead of a table")
    search.set_defaults(command=commands.search)
    _add_images(search)


def _add_images(command: argparse.ArgumentParser, nargs: str = "+") -> None:
    command.add_argument(
        "images",
        nargs=nargs,
        metavar="IMAGES",
        help="images, folders or lists; files of embeddings, for a run that was trained on some",
    )
    command.add_argument("--run", required=True, help="workdir of a finished run")


def _add_conversions(subparsers) -> None:
    convert = subparsers.add_parser("convert", help="make a run of an official LLC checkpoint")
    convert.add_argument("weights", metavar="WEIGHTS", help="a .pth or .safetensors file")
    convert.add_argument("run", metavar="RUN", help="the workdir to make")
    convert.add_argument("--codebook", help="an .npz or .npy; by default the checkpoint's own")
    convert.add_argument("--arch", help="the backbone; by default the one that fits")
    convert.set_defaults(command=commands.convert)

    export = subparsers.add_parser("export", help="write a run's weights, or codes, for others")
    formats = ["torch", "stablehlo", "faiss", "pgvector", "parquet", "npy", "float"]
    export.add_argument("--to", required=True, choices=formats, help="what to write")
    export.add_argument(
        "--out",
        required=True,
        help="the file to write: .safetensors or .pth, .npz (of stablehlo), .faiss, .sql, "
        ".parquet, .npy (of bytes, and of float)",
    )
    export.add_argument(
        "--run",
        help="for torch and stablehlo: workdir of a finished run; for parquet: the run that made "
        "the codes, for the classes of the images",
    )
    export.add_argument("--codes", help="for the others: what encode wrote, or an index")
    export.add_argument(
        "--bit-order",
        choices=["little", "big"],
        help="for npy and parquet: bit j is bit j %% 8 of a byte (little, the default; as FAISS) "
        "or bit 7 - j %% 8 (big; as np.packbits, ubinary and Vespa)",
    )
    export.set_defaults(command=commands.export)


def _add_on_error(command: argparse.ArgumentParser, default: str | None) -> None:
    command.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default=default,
        help="stop at an image that cannot be read (the default), or skip and name it"
        + ("; with --shards the default" if default is None else ""),
    )


def _add_preparations(subparsers) -> None:
    imagenet = subparsers.add_parser("imagenet", help="TFDS's imagenet2012, from the original tars")
    imagenet.add_argument("folder", metavar="FOLDER", type=pathlib.Path, help="where the tars are")
    imagenet.set_defaults(command=commands.prepare_imagenet)

    convert = subparsers.add_parser("array_record", help="add ArrayRecord to a TFRecord dataset")
    convert.add_argument("name", metavar="NAME", help="of a dataset that TFDS has prepared")
    convert.set_defaults(command=commands.prepare_array_record)

    resize = subparsers.add_parser("resize", help="copy a dataset, with smaller images, to a tar")
    resize.add_argument("source", metavar="SOURCE", help="a folder, .zip, .tar, .csv or tfds:NAME")
    resize.add_argument("out", metavar="OUT.tar", type=as_path, help="the tar to write")
    resize.add_argument("--short-side", type=int, default=320, help="in pixels; 320 by default")
    resize.add_argument("--quality", type=int, default=92, help="of the JPEGs; 92 by default")
    resize.set_defaults(command=commands.prepare_resized)
