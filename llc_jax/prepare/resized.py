"""A copy of a dataset with smaller images, for hosts whose cores cannot decode the large ones.

The copy is one tar, which `splits.open_splits` reads in place. It is written sequentially, so an
interrupted copy continues after its last complete file.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np

from llc_jax.data import embeddings, imagenet
from llc_jax.data.sources import ArraySource, Source
from llc_jax.data.splits import Splits, open_source
from llc_jax.data.stores import IMAGE_SUFFIXES
from llc_jax.errors import InputError
from llc_jax.files import (
    WriteFailed,
    check_space,
    exclusive_lock,
    make_directory,
    volume,
    writing,
)
from llc_jax.objects import is_url
from llc_jax.prepare.progress import Progress, Report, duration, print_line
from llc_jax.prepare.tfds_datasets import check_imagenet

_JPEG_START, _JPEG_SUFFIXES = b"\xff\xd8", (".jpe", ".jpeg", ".jpg")

# The first file of a copy: its settings and a digest of its image names. A partial copy is
# continued only if they are the same.
_MANIFEST = "resized.json"

# The number of sample images that are resized, to estimate the time and size of all.
_SAMPLES = 256


class _Image(NamedTuple):
    """The path of an image in the copy, and its source and index there."""

    path: str
    source: Source
    index: int


def resize_copy(
    source: str,
    out: pathlib.Path,
    *,
    short_side: int = 320,
    quality: int = 92,
    report: Report = print_line,
) -> None:
    """Writes a tar of the images of a dataset, made smaller.

    Images whose shorter side is longer than `short_side` pixels are resized to it by area
    averaging. These images, and all that are not JPEG, become JPEG of three 8-bit channels; the
    others are copied byte for byte. The EXIF orientation is kept, not applied.

    The files of the tar are `train/<class>/<name>` and `val/<class>/<name>`, or `<class>/<name>`
    where the dataset is not split. Names and order are the dataset's. Only the suffix changes of
    images that were not JPEG, and where two names of a class are equal or out of order, all names
    of the class are numbered.

    Args:
      source: as `splits.open_splits` takes it.
      out: the .tar to write; until it is complete, it is named OUT.partial.
      short_side: in pixels.
      quality: of the JPEGs, 1 to 100.
      report: receives lines to print.

    Raises:
      InputError: if the data cannot be read, the disk has too little space, an image is
        damaged, or `out` is another file.
      WriteFailed: if the copy cannot be written.
    """
    if is_url(out):
        raise InputError(f"A tar is written to a disk, not to {out}: copy it there afterwards.")
    _check_options(out, short_side, quality)
    images = _list_images(_open_splits(source, report))
    manifest = _manifest(images, short_side, quality)
    if _is_complete(out, manifest):
        report(f"{out} is there already.")
        return
    resize = functools.partial(_resize, short_side=short_side, quality=quality)
    rate, size = _estimate(images, resize)
    partial = out.with_name(f"{out.name}.partial")
    written = partial.stat().st_size if partial.exists() else 0
    make_directory(out.parent)
    check_space(out.parent, 1.1 * size * len(images) - written, f"The copy of {source}")
    try:
        with writing(partial), partial.open("ab+") as file, exclusive_lock(partial):
            remaining = images[_resume(file, manifest) :]
            report(
                f"{len(remaining):,} of {len(images):,} images to do, at about {rate:,.0f}/s: "
                f"{duration(len(remaining) / rate)}. {out} will have about "
                f"{volume(size * len(images))}."
            )
            _append(file, remaining, resize, Progress(len(remaining), "images", report))
            os.replace(partial, out)
    except WriteFailed as error:
        raise WriteFailed(f"{error} The same command continues it.") from error
    report(f"Written: {out}, {volume(out.stat().st_size)}.")


def _check_options(out: pathlib.Path, short_side: int, quality: int) -> None:
    """Raises an InputError for invalid options of `resize_copy`."""
    if out.suffix != ".tar":
        raise InputError(f"The copy is a .tar file, not {out}.")
    if short_side < 1 or not 1 <= quality <= 100:
        raise InputError(
            f"The short side is at least 1 pixel and the quality 1 to 100, not {short_side} and "
            f"{quality}."
        )


def _is_complete(out: pathlib.Path, manifest: bytes) -> bool:
    """Whether the copy is complete already; raises an InputError if `out` is another file."""
    if not out.exists():
        return False
    with out.open("rb") as file:
        if file.read(len(manifest)) == manifest:
            return True
    raise InputError(f"{out} is another file: remove it, or name the copy otherwise.")


def _open_splits(source: str, report: Report) -> dict[str, Source]:
    """Returns the splits of a dataset by their directories in the copy; "" where it has none."""
    path = pathlib.Path(source).expanduser()
    if source.startswith(embeddings.PREFIX):
        raise InputError(f"{source} are embeddings, not images that could be made smaller.")
    try:
        if imagenet.has_tars(path):
            check_imagenet(path, report)
        data = open_source(source)
    except OSError as error:
        raise InputError(f"Cannot read {source}: {error.strerror}.") from error
    splits = {"": data}
    if isinstance(data, Splits):
        splits = {"train/": data.train, "val/": data.evaluation}
    if any(isinstance(images, ArraySource) for images in splits.values()):
        raise InputError(f"{source} has no image files that could be copied.")
    return splits


def _list_images(splits: dict[str, Source]) -> list[_Image]:
    """Lists the images of the copy, sorted by path, as `splits.open_splits` reads them."""
    images = []
    for directory, source in splits.items():
        order = np.argsort(source.labels, kind="stable")
        counts = np.bincount(source.labels, minlength=len(source.class_names))
        groups = np.split(order, np.cumsum(counts)[:-1])
        for name, indices in zip(source.class_names, groups, strict=True):
            if "/" in name or name in ("", ".", ".."):
                raise InputError(f"The class {name!r} cannot be a directory: rename it.")
            files = _file_names([source.names[index] for index in indices])
            images += [
                _Image(f"{directory}{name}/{file}", source, index)
                for file, index in zip(files, indices.tolist(), strict=True)
            ]
    return sorted(images, key=lambda image: image.path)


def _file_names(names: list[str]) -> list[str]:
    """Returns names of JPEG files for the images of a class, distinct and in ascending order."""
    files = [_jpeg_name(name) for name in names]
    if all(file < following for file, following in itertools.pairwise(files)):
        return files
    digits = len(str(len(files)))
    return [f"{number:0{digits}}_{file}" for number, file in enumerate(files)]


def _jpeg_name(name: str) -> str:
    name = name.rsplit("/", maxsplit=1)[-1].lstrip(".")  # Hidden files would not be read.
    suffix = pathlib.PurePosixPath(name).suffix
    if suffix.lower() in _JPEG_SUFFIXES:
        return name
    return (name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name) + ".jpg"


def _manifest(images: list[_Image], short_side: int, quality: int) -> bytes:
    """Returns the first member of the copy: its settings and a digest of its image names."""
    digest = hashlib.sha256("\n".join(image.path for image in images).encode()).hexdigest()
    content = {
        "images": len(images),
        "short_side": short_side,
        "quality": quality,
        "names_sha256": digest,
    }
    return _tar_member(_MANIFEST, json.dumps(content, indent=2).encode() + b"\n")


def _tar_member(name: str, content: bytes) -> bytes:
    """Returns a member of a tar: header and padded content, without times, so reproducible."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return header + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _estimate(images: list[_Image], resize: Callable[[_Image], bytes]) -> tuple[float, float]:
    """Measures on a sample the images per second and the mean bytes of a tar member."""
    sample = images[:: -(-len(images) // _SAMPLES)]
    start = time.monotonic()
    size = sum(len(_tar_member(image.path, jpeg)) for image, jpeg in _parallel_map(resize, sample))
    return len(sample) / (time.monotonic() - start), size / len(sample)


def _parallel_map(
    function: Callable[[_Image], bytes], images: Iterable[_Image]
) -> Iterator[tuple[_Image, bytes]]:
    """Yields each image and the function's result in order, computed on all cores.

    Unlike `Executor.map`, it submits only a few images ahead, which bounds the memory.
    """
    workers = os.cpu_count()
    pending = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for image in images:
                pending.append((image, pool.submit(function, image)))
                if len(pending) > 8 * workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def _resize(image: _Image, short_side: int, quality: int) -> bytes:
    """Returns an image as a JPEG file whose shorter side is at most `short_side` pixels."""
    content = image.source.read(image.index)
    try:
        jpeg = _resize_file(content, short_side, quality)
    except cv2.error:
        jpeg = None
    if jpeg is None:
        raise InputError(
            f"{image.source.names[image.index]} ({len(content)} bytes) cannot be decoded and made "
            "a JPEG: repair or remove it, and give the same command again."
        )
    return jpeg


def _resize_file(content: bytes, short_side: int, quality: int) -> bytes | None:
    """Returns the JPEG of an image file; None or OpenCV's error if it cannot be decoded."""
    encoded = np.frombuffer(content, np.uint8)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels, kinds, metadata = cv2.imdecodeWithMetadata(encoded, flags=flags)
    if pixels is None:
        return None
    scale = short_side / min(pixels.shape[:2])
    if scale >= 1 and content.startswith(_JPEG_START):
        return content
    if scale < 1:
        height, width = (round(side * scale) for side in pixels.shape[:2])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    exif = [index for index, kind in enumerate(kinds) if kind == cv2.IMAGE_METADATA_EXIF]
    success, encoded = cv2.imencodeWithMetadata(
        ".jpg",
        pixels,
        [kinds[index] for index in exif],
        [metadata[index] for index in exif],
        [cv2.IMWRITE_JPEG_QUALITY, quality],
    )
    return encoded.tobytes() if success else None


def _resume(file: BinaryIO, manifest: bytes) -> int:
    """Truncates a tar after its last complete member, or begins it; returns how many images it has.

    Raises:
      InputError: if the tar has another manifest.
    """
    file.seek(0)
    begun = file.read(len(manifest))
    if not manifest.startswith(begun):
        raise InputError(
            f"{file.name} was begun with other images or settings: remove it, and give the same "
            "command again."
        )
    if begun != manifest:
        file.truncate(0)
        file.write(manifest)
        return 0
    members, end = _complete_members(file)
    file.truncate(end)
    return members - 1


def _complete_members(file: BinaryIO) -> tuple[int, int]:
    """Returns the number of complete members of a tar, and the offset of their end."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    count = end = 0
    with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            blocks = -(-member.size // tarfile.BLOCKSIZE)
            member_end = member.offset_data + blocks * tarfile.BLOCKSIZE
            if member_end > length:
                break
            count, end = count + 1, member_end
            tar.members = []  # tarfile would keep every member in memory.
    return count, end


def _append(
    file: BinaryIO,
    images: list[_Image],
    resize: Callable[[_Image], bytes],
    progress: Progress,
) -> None:
    """Writes the images, and the two zero blocks that end a tar."""
    for image, content in _parallel_map(resize, images):
        file.write(_tar_member(image.path, content))
        progress.add(1)
    file.write(bytes(2 * tarfile.BLOCKSIZE))
    file.flush()
    os.fsync(file.fileno())
