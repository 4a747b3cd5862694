"""Prepares ImageNet and other datasets of TFDS as ArrayRecord.

All checks come before the work begins, and so do estimates of its time and disk space. An
interrupted conversion continues with the same call; `imagenet2012` begins again.
"""

import errno
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
from llc_jax.files import (
    WriteFailed,
    check_space,
    exclusive_lock,
    make_directory,
    volume,
    write_failed,
    write_json,
)
from llc_jax.prepare.progress import Progress, Report, duration, print_line

# Bytes of the published tars.
SIZES = {TRAIN_TAR: 147_897_477_120, EVAL_TAR: 6_744_924_160}

# The number of sample images that are timed, to estimate the time of all.
_SAMPLES = 200


def check_imagenet(
    folder: pathlib.Path, report: Report = print_line
) -> tuple[FileSource, FileSource]:
    """Checks that ImageNet's tars exist and are complete.

    Returns:
      The training and the validation images, as `imagenet.open_tars` does.

    Raises:
      InputError: if a tar is missing, cannot be read, or has another size or number of images
        than the published one.
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
                f"{path} has {size:,} bytes, not {published:,}: it is incomplete, or not "
                "ImageNet's of 2012; download it again."
            )
    report("Indexing the tars; the index is cached, so the next time takes a moment.")
    return imagenet.open_tars(folder)


def prepare_imagenet(folder: pathlib.Path, report: Report = print_line) -> None:
    """Makes TFDS's `imagenet2012` as ArrayRecord, from the tars in a folder.

    TFDS writes into a temporary directory that it renames at the end. Temporary directories of
    interrupted attempts are removed. A dataset that is prepared already is left as it is.

    Raises:
      InputError: if TensorFlow is not installed, a tar is incomplete, the disk has no space, or
        the dataset is prepared in another format.
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
    with exclusive_lock(directory.parent):
        for incomplete in directory.parent.glob(f"incomplete.*_{directory.name}"):
            report(f"Removing {incomplete}, which an interrupted attempt has left.")
            shutil.rmtree(incomplete)
        # Records take no more space than the padded files of a tar.
        needed = 1.02 * sum(SIZES.values())
        check_space(directory.parent, needed, "imagenet2012")
        seconds = _seconds_per_image(builder.info.features, splits[0], directory.parent)
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


def _seconds_per_image(features, source: FileSource, directory: pathlib.Path) -> float:
    """Measures on a sample the seconds to read an image, encode it and write it as a record.

    Each record is written twice, as in TFDS, which first shuffles the records into temporary
    files.
    """
    sample = range(0, len(source), -(-len(source) // _SAMPLES))
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        path = pathlib.Path(scratch) / "records"
        with path.open("wb") as file:
            for index in sample:
                example = {
                    "image": source.read(index),
                    "label": source.class_names[source.labels[index]],
                    "file_name": source.names[index],
                }
                record = features.serialize_example(features.encode_example(example))
                file.write(len(record).to_bytes(8, "little") + bytes(4) + record + bytes(4))
            os.fsync(file.fileno())
        _write_array_record(path.with_suffix(".again"), _read_tfrecord(path))
    return (time.monotonic() - start) / len(sample)


def convert_to_array_record(name: str, report: Report = print_line) -> None:
    """Adds ArrayRecord files to a dataset that TFDS has prepared as TFRecord.

    The new files have the same records in the same order, and are beside the TFRecord files,
    which stay; TFDS calls this an alternative format. Shards that are converted already are not
    converted again. The checksums of TFRecord are not verified.

    Args:
      name: of the dataset in TFDS, such as `cifar100`; it is read in TFDS's own directory, or
        $TFDS_DATA_DIR.

    Raises:
      InputError: if the dataset is not prepared, is prepared in a format other than TFRecord, is
        damaged, or the disk has too little space.
      WriteFailed: if the files cannot be written.
    """
    builder = tfds.prepared_builder(name)
    directory = pathlib.Path(builder.data_path)
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if tfds.FORMAT in formats:
        report(f"{directory} has {tfds.FORMAT} already.")
        return
    if "tfrecord" not in formats:
        raise InputError(f"{directory} is prepared as {', '.join(formats)}, not as tfrecord.")
    shards = [shard for split in builder.info.splits.values() for shard in _shards(split)]
    missing = [shard for shard in shards if not shard.target.exists()]
    try:
        size = sum(shard.source.stat().st_size for shard in missing)
    except OSError as error:
        raise InputError(f"Cannot read {error.filename}: {error.strerror}.") from error
    make_directory(directory)
    check_space(directory, 1.02 * size, f"{name} as {tfds.FORMAT}")
    examples = sum(shard.examples for shard in missing)
    report(f"{examples:,} examples to convert, {volume(size)}, in {directory}.")
    progress = Progress(examples, "examples", report)
    with exclusive_lock(directory):
        for shard in missing:
            _convert_shard(shard)
            progress.add(shard.examples)
        # TFDS's own converter writes the same entry. TFDS reads the new files only with it.
        path = directory / "dataset_info.json"
        info = json.loads(path.read_text())
        info["alternativeFileFormats"] = [*info.get("alternativeFileFormats", []), tfds.FORMAT]
        write_json(path, info)
    report(f"Converted: {directory}. Its name is tfds:{name}.")


class _Shard(NamedTuple):
    """A TFRecord file, the ArrayRecord file to make of it, and the number of examples."""

    source: pathlib.Path
    target: pathlib.Path
    examples: int


def _shards(split) -> list[_Shard]:
    """Lists the shards of a split of TFDS."""
    count = split.num_shards
    sources, targets = (
        split.filename_template.replace(filetype_suffix=suffix).sharded_filepaths(count)
        for suffix in ("tfrecord", tfds.FORMAT)
    )
    return [
        _Shard(pathlib.Path(source), pathlib.Path(target), examples)
        for source, target, examples in zip(sources, targets, split.shard_lengths, strict=True)
    ]


def _convert_shard(shard: _Shard) -> None:
    partial = shard.target.with_name(shard.target.name + ".partial")
    try:
        written = _write_array_record(partial, _read_tfrecord(shard.source))
        if written != shard.examples:
            raise InputError(
                f"{shard.source} has {written:,} examples, not {shard.examples:,}: it is "
                "incomplete; prepare the dataset again."
            )
        os.replace(partial, shard.target)
    except WriteFailed as error:
        raise WriteFailed(f"{error} The same command continues.") from error
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"Cannot convert {shard.source} to {shard.target}: {reason}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _read_tfrecord(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file.

    The file has for each record its length in 8 bytes, little endian, and 4 bytes of checksum;
    then the record, and 4 bytes of checksum.
    """
    with path.open("rb") as file:
        remaining = os.fstat(file.fileno()).st_size
        while remaining:
            header = file.read(12)
            length = int.from_bytes(header[:8], "little")
            remaining -= 12 + length + 4
            if remaining < 0:
                raise InputError(f"{path} is damaged or cut short: prepare the dataset again.")
            yield file.read(length)
            file.seek(4, os.SEEK_CUR)


def _write_array_record(path: pathlib.Path, records: Iterator[bytes]) -> int:
    """Writes an ArrayRecord file as TFDS does; returns the number of records."""
    from array_record.python.array_record_module import ArrayRecordWriter

    count = 0
    try:
        writer = ArrayRecordWriter(str(path), "group_size:1")
        try:
            for record in records:
                writer.write(record)
                count += 1
        finally:
            writer.close()
    except RuntimeError as error:
        # As in "write() failed: No space left on device; writing PATH; at byte 0".
        reason = str(error).partition(" failed: ")[2].partition(";")[0]
        numbers = [number for number in errno.errorcode if os.strerror(number) == reason]
        if not numbers:
            raise
        raise write_failed(path, numbers[0]) from error
    return count
