"""Prepares data once, before any run: ImageNet and other TFDS datasets as ArrayRecord.

Every check that can be made is made before the work begins, and it is said how long the work
takes and what it needs. What stops half-way is continued by the same call.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

from llc_jax.data import imagenet, tfds
from llc_jax.data.imagenet import EVAL_TAR, TRAIN_TAR
from llc_jax.data.sources import FileSource
from llc_jax.errors import InputError
from llc_jax.files import check_space, make_directory, volume, write_json
from llc_jax.prepare.jobs import Progress, Report, alone, duration, say

# Bytes of the tars, as they are published.
SIZES = {TRAIN_TAR: 147_897_477_120, EVAL_TAR: 6_744_924_160}

# Images that are tried, to tell how long all of them take.
_TRIED = 200


def check_imagenet(folder: pathlib.Path, report: Report = say) -> tuple[FileSource, FileSource]:
    """Checks that ImageNet's tars are there and whole.

    Returns:
      The training and the validation images, as `imagenet.open_tars` does.

    Raises:
      InputError: if a tar is missing, cannot be read, has not its published size, or not its
        number of images.
    """
    for name, published in SIZES.items():
        path = folder / name
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
        except FileNotFoundError as error:
            raise InputError(
                f"There is no {path}: ImageNet needs both {' and '.join(SIZES)}, from "
                "https://image-net.org."
            ) from error
        except OSError as error:
            raise InputError(f"Cannot read {path}: {error.strerror}.") from error
        if size != published:
            raise InputError(
                f"{path} has {size:,} bytes, not {published:,}: it is not whole, or not ImageNet's "
                "of 2012; get it again."
            )
    report("Reading through the tars; the index is kept, and the next time takes a moment.")
    return imagenet.open_tars(folder)


def prepare_imagenet(folder: pathlib.Path, report: Report = say) -> None:
    """Makes TFDS's `imagenet2012` as ArrayRecord, from the tars in a folder.

    TFDS writes into a directory that it renames at the end; what a broken attempt has left of
    one is removed. A dataset that is there is left as it is.

    Raises:
      InputError: if TensorFlow is not installed, a tar is not whole, the disk has no space, or
        the dataset is there in another format.
    """
    import tensorflow_datasets

    builder = tfds.declared_builder("imagenet2012")
    directory = pathlib.Path(builder.data_path)
    if directory.is_dir():
        tfds.array_record_builder("imagenet2012")
        report(f"{directory} is prepared already.")
        return
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError("Preparing imagenet2012 needs TensorFlow: pip install tensorflow.")
    splits = check_imagenet(folder, report)
    make_directory(directory.parent)
    with alone(directory.parent):
        for broken in directory.parent.glob(f"incomplete.*_{directory.name}"):
            report(f"Removing {broken}, which a broken attempt has left.")
            shutil.rmtree(broken)
        # Records take no more than the files of a tar with their padding do.
        needed = 1.02 * sum(SIZES.values())
        check_space(directory.parent, needed, "imagenet2012")
        seconds = _try_records(builder.info.features, splits[0], directory.parent)
        images = sum(len(split) for split in splits)
        report(
            f"{images:,} images: about {duration(images * seconds)} and {volume(needed)} in "
            f"{directory}."
        )
        builder.download_and_prepare(
            file_format=tfds.FORMAT,
            download_config=tensorflow_datasets.download.DownloadConfig(
                manual_dir=folder, try_download_gcs=False
            ),
        )
    report(f"Prepared: {directory}. Its name is tfds:imagenet2012.")


def _try_records(features, source: FileSource, directory: pathlib.Path) -> float:
    """Returns the seconds that an image takes to become a record: read, coded and written.

    Each is written twice, as TFDS does: it first sorts all records into files of their own.
    """
    chosen = range(0, len(source), -(-len(source) // _TRIED))
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        path = pathlib.Path(scratch) / "records"
        with path.open("wb") as first:
            for index in chosen:
                example = {
                    "image": source.read(index),
                    "label": source.class_names[source.labels[index]],
                    "file_name": source.names[index],
                }
                record = features.serialize_example(features.encode_example(example))
                first.write(len(record).to_bytes(8, "little") + bytes(4) + record + bytes(4))
            os.fsync(first.fileno())
        _write_array_record(path.with_suffix(".again"), _read_tfrecord(path))
    return (time.monotonic() - start) / len(chosen)


def convert_to_array_record(name: str, report: Report = say) -> None:
    """Adds ArrayRecord files to a dataset that TFDS has prepared as TFRecord.

    They lie beside the others, which stay, with the same records in the same order; TFDS calls
    them an alternative format. Shards that are there already are kept. The checksums of
    TFRecord are not verified.

    Args:
      name: as TFDS spells it, `cifar100`; its directory is TFDS's, or $TFDS_DATA_DIR.

    Raises:
      InputError: if the dataset is not prepared, in a format other than TFRecord, or damaged,
        or the disk has no space.
    """
    builder = tfds.prepared_builder(name)
    directory = pathlib.Path(builder.data_path)
    formats = {one.value for one in builder.info.available_file_formats()}
    if tfds.FORMAT in formats:
        report(f"{directory} has {tfds.FORMAT} already.")
        return
    if "tfrecord" not in formats:
        raise InputError(f"{directory} is prepared as {', '.join(formats)}, not as tfrecord.")
    shards = [shard for split in builder.info.splits.values() for shard in _shards(split)]
    missing = [shard for shard in shards if not shard.target.exists()]
    try:
        size = sum(shard.given.stat().st_size for shard in missing)
    except OSError as error:
        raise InputError(f"Cannot read {error.filename}: {error.strerror}.") from error
    make_directory(directory)
    check_space(directory, 1.02 * size, f"{name} as {tfds.FORMAT}")
    examples = sum(shard.examples for shard in missing)
    report(f"{examples:,} examples to convert, {volume(size)}, in {directory}.")
    progress = Progress(examples, "examples", report)
    with alone(directory):
        for shard in missing:
            _convert(shard)
            progress.add(shard.examples)
        # As TFDS's own converter notes it; nothing reads the new files before.
        path = directory / "dataset_info.json"
        info = json.loads(path.read_text())
        info["alternativeFileFormats"] = [*info.get("alternativeFileFormats", []), tfds.FORMAT]
        write_json(path, info)
    report(f"Converted: {directory}. Its name is tfds:{name}.")


class _Shard(NamedTuple):
    """A TFRecord file, how many examples it has, and the ArrayRecord file to make of it."""

    given: pathlib.Path
    target: pathlib.Path
    examples: int


def _shards(split) -> list[_Shard]:
    """Lists the shards of a split of TFDS."""
    count = split.num_shards
    given, target = (
        split.filename_template.replace(filetype_suffix=suffix).sharded_filepaths(count)
        for suffix in ("tfrecord", tfds.FORMAT)
    )
    return [
        _Shard(pathlib.Path(old), pathlib.Path(new), examples)
        for old, new, examples in zip(given, target, split.shard_lengths, strict=True)
    ]


def _convert(shard: _Shard) -> None:
    partial = shard.target.with_name(shard.target.name + ".partial")
    try:
        written = _write_array_record(partial, _read_tfrecord(shard.given))
        if written != shard.examples:
            raise InputError(
                f"{shard.given} has {written:,} examples, not {shard.examples:,}: it is not whole; "
                "prepare the dataset again."
            )
        os.replace(partial, shard.target)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"Cannot convert {shard.given} to {shard.target}: {reason}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _read_tfrecord(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file.

    Each is its length in 8 bytes, little endian, and their checksum in 4; itself; its checksum.
    """
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size
        while left:
            header = file.read(12)
            length = int.from_bytes(header[:8], "little")
            left -= 12 + length + 4
            if left < 0:
                raise InputError(f"{path} is damaged or cut short: prepare the dataset again.")
            yield file.read(length)
            file.seek(4, os.SEEK_CUR)


def _write_array_record(path: pathlib.Path, records: Iterator[bytes]) -> int:
    """Writes an ArrayRecord file as TFDS does; returns the number of records."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    count = 0
    try:
        for record in records:
            writer.write(record)
            count += 1
    finally:
        writer.close()
    return count
