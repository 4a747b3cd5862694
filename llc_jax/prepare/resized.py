"""A copy of a dataset with smaller images, for hosts whose cores cannot decode the large ones.

The copy is one tar, which `splits.open_splits` reads in place. It is written from its first
byte to its last: what a broken attempt has left is kept up to its last whole file.
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

from llc_jax.data import imagenet
from llc_jax.data.sources import ArraySource, Source
from llc_jax.data.splits import Splits, open_source
from llc_jax.data.stores import IMAGE_SUFFIXES
from llc_jax.errors import InputError
from llc_jax.files import check_space, make_directory, volume
from llc_jax.prepare.jobs import Progress, Report, alone, duration, say
from llc_jax.prepare.prepare import check_imagenet

_JPEG_START, _JPEG_SUFFIXES = b"\xff\xd8", (".jpe", ".jpeg", ".jpg")

# Its first file tells what the copy is made of, so that no other is continued.
_NOTE = "resized.json"

# Images that are tried, to tell how long all of them take, and how large they are.
_TRIED = 256


class _Image(NamedTuple):
    """An image's path in the copy, and where it comes from."""

    path: str
    source: Source
    index: int


def resize_copy(
    source: str,
    out: pathlib.Path,
    *,
    short_side: int = 320,
    quality: int = 92,
    report: Report = say,
) -> None:
    """Writes a tar of the images of a dataset, made smaller.

    Images whose shorter side is longer than `short_side` pixels are averaged down to it; these,
    and all that are not JPEG, become JPEG of three 8-bit channels. The others are copied byte
    for byte. Pixels are not turned: EXIF data, which say how to, are kept.

    The tar holds `train/<class>/<name>` and `val/<class>/<name>`; `<class>/<name>` where the
    dataset is not split. Names and order are the dataset's, but for the suffix of what was not
    JPEG; where two names of a class are the same or not in order, numbers precede them.

    Args:
      source: as `splits.open_splits` takes it.
      out: the .tar to write; beside it, OUT.partial until it is whole.
      short_side: in pixels.
      quality: of the JPEGs, 1 to 100.
      report: is given lines to print.

    Raises:
      InputError: if the data cannot be read, the disk has no space, an image is damaged, or
        there is another file at `out`.
    """
    _check_options(out, short_side, quality)
    images = _list_images(_open(source, report))
    note = _note(images, short_side, quality)
    if _is_there(out, note):
        report(f"{out} is there already.")
        return
    shrink = functools.partial(_shrink, short_side=short_side, quality=quality)
    rate, size = _try(images, shrink)
    partial = out.with_name(f"{out.name}.partial")
    there = partial.stat().st_size if partial.exists() else 0
    make_directory(out.parent)
    check_space(out.parent, 1.1 * size * len(images) - there, f"The copy of {source}")
    try:
        with partial.open("ab+") as file, alone(partial):
            left = images[_resume(file, note) :]
            report(
                f"{len(left):,} of {len(images):,} images to do, at about {rate:,.0f}/s: "
                f"{duration(len(left) / rate)}. {out} will have about "
                f"{volume(size * len(images))}."
            )
            _append(file, left, shrink, Progress(len(left), "images", report))
            os.replace(partial, out)
    except OSError as error:
        raise InputError(
            f"Cannot write {partial}: {error.strerror}; the same command continues it."
        ) from error
    report(f"Written: {out}, {volume(out.stat().st_size)}.")


def _check_options(out: pathlib.Path, short_side: int, quality: int) -> None:
    """Raises an InputError for what `resize_copy` does not take."""
    if out.suffix != ".tar":
        raise InputError(f"The copy is a .tar file, not {out}.")
    if short_side < 1 or not 1 <= quality <= 100:
        raise InputError(
            f"The short side is at least 1 pixel and the quality 1 to 100, not {short_side} and "
            f"{quality}."
        )


def _is_there(out: pathlib.Path, note: bytes) -> bool:
    """Whether the copy is there; another file at its place is an error."""
    if not out.exists():
        return False
    with out.open("rb") as file:
        if file.read(len(note)) == note:
            return True
    raise InputError(f"{out} is another file: remove it, or name the copy otherwise.")


def _open(source: str, report: Report) -> dict[str, Source]:
    """Returns the parts of a dataset by their directories in the copy."""
    path = pathlib.Path(source).expanduser()
    try:
        if imagenet.has_tars(path):
            check_imagenet(path, report)
        opened = open_source(source)
    except OSError as error:
        raise InputError(f"Cannot read {source}: {error.strerror}.") from error
    parts = {"": opened}
    if isinstance(opened, Splits):
        parts = {"train/": opened.train, "val/": opened.evaluation}
    if any(isinstance(part, ArraySource) for part in parts.values()):
        raise InputError(f"{source} has no image files that could be copied.")
    return parts


def _list_images(parts: dict[str, Source]) -> list[_Image]:
    """Lists the images of the copy, in the order in which a tree is read."""
    images = []
    for part, source in parts.items():
        order = np.argsort(source.labels, kind="stable")
        counts = np.bincount(source.labels, minlength=len(source.class_names))
        groups = np.split(order, np.cumsum(counts)[:-1])
        for name, indices in zip(source.class_names, groups, strict=True):
            if "/" in name or name in ("", ".", ".."):
                raise InputError(f"The class {name!r} cannot be a directory: rename it.")
            files = _file_names([source.names[index] for index in indices])
            images += [
                _Image(f"{part}{name}/{file}", source, index)
                for file, index in zip(files, indices.tolist(), strict=True)
            ]
    return sorted(images, key=lambda image: image.path)


def _file_names(names: list[str]) -> list[str]:
    """Returns names of JPEG files for the images of a class, all different and in order."""
    files = [_jpeg_name(name) for name in names]
    if all(one < other for one, other in itertools.pairwise(files)):
        return files
    digits = len(str(len(files)))
    return [f"{number:0{digits}}_{file}" for number, file in enumerate(files)]


def _jpeg_name(name: str) -> str:
    name = name.rsplit("/", maxsplit=1)[-1].lstrip(".")  # Hidden files would not be read.
    suffix = pathlib.PurePosixPath(name).suffix
    if suffix.lower() in _JPEG_SUFFIXES:
        return name
    return (name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name) + ".jpg"


def _note(images: list[_Image], short_side: int, quality: int) -> bytes:
    """Returns the copy's first member: what it is made of."""
    digest = hashlib.sha256("\n".join(image.path for image in images).encode()).hexdigest()
    content = {
        "images": len(images),
        "short_side": short_side,
        "quality": quality,
        "names_sha256": digest,
    }
    return _member(_NOTE, json.dumps(content, indent=2).encode() + b"\n")


def _member(name: str, content: bytes) -> bytes:
    """Returns a file as a tar holds it, padded to whole blocks; the same for the same content."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return header + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _try(images: list[_Image], shrink: Callable[[_Image], bytes]) -> tuple[float, float]:
    """Returns how many images a second some of them take, and the mean size of a member."""
    chosen = images[:: -(-len(images) // _TRIED)]
    start = time.monotonic()
    size = sum(len(_member(image.path, shrunk)) for image, shrunk in _map(shrink, chosen))
    return len(chosen) / (time.monotonic() - start), size / len(chosen)


def _map(
    function: Callable[[_Image], bytes], images: Iterable[_Image]
) -> Iterator[tuple[_Image, bytes]]:
    """Yields the images and what a function makes of them, in order; all cores work ahead."""
    workers = os.cpu_count()
    waiting = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for image in images:
                waiting.append((image, pool.submit(function, image)))
                if len(waiting) > 8 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _shrink(image: _Image, short_side: int, quality: int) -> bytes:
    """Returns an image as a JPEG file of at most that shorter side."""
    content = image.source.read(image.index)
    try:
        shrunk = _shrink_file(content, short_side, quality)
    except cv2.error:
        shrunk = None
    if shrunk is None:
        raise InputError(
            f"{image.source.names[image.index]} ({len(content)} bytes) cannot be decoded and made "
            "a JPEG: repair or remove it, and give the same command again."
        )
    return shrunk


def _shrink_file(content: bytes, short_side: int, quality: int) -> bytes | None:
    """Returns a file's JPEG; None, or raises OpenCV's error, if that cannot be."""
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
    exif = [place for place, kind in enumerate(kinds) if kind == cv2.IMAGE_METADATA_EXIF]
    written, encoded = cv2.imencodeWithMetadata(
        ".jpg",
        pixels,
        [kinds[place] for place in exif],
        [metadata[place] for place in exif],
        [cv2.IMWRITE_JPEG_QUALITY, quality],
    )
    return encoded.tobytes() if written else None


def _resume(file: BinaryIO, note: bytes) -> int:
    """Cuts a tar after its last whole member, or begins it; returns how many images it has."""
    file.seek(0)
    begun = file.read(len(note))
    if not note.startswith(begun):
        raise InputError(
            f"{file.name} was begun with other images or settings: remove it, and give the same "
            "command again."
        )
    if begun != note:
        file.truncate(0)
        file.write(note)
        return 0
    members, end = _whole_members(file)
    file.truncate(end)
    return members - 1


def _whole_members(file: BinaryIO) -> tuple[int, int]:
    """Returns how many members of a tar are whole, and where the last of them ends."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    count = end = 0
    with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            after = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if after > length:
                break
            count, end = count + 1, after
            tar.members = []  # tarfile keeps all that it has seen.
    return count, end


def _append(
    file: BinaryIO,
    images: list[_Image],
    shrink: Callable[[_Image], bytes],
    progress: Progress,
) -> None:
    """Writes the images, and the end of the tar."""
    for image, content in _map(shrink, images):
        file.write(_member(image.path, content))
        progress.add(1)
    file.write(bytes(2 * tarfile.BLOCKSIZE))
    file.flush()
    os.fsync(file.fileno())
