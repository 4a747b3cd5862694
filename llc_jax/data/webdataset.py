"""WebDataset: tars whose files lie beside each other, those of a sample with one key.

The key of a file is its path up to the first dot of its base name, and what follows is its
extension: `0/cat.jpg`, `0/cat.cls` and `0/cat.json` are the sample `0/cat`. A pattern names the
tars of a dataset, its shards: braces `train-{000..146}.tar` and `{train,val}-0.tar`, and the
wildcards `*`, `?`, `[...]` and `**`. It may be a URL; the tars there are copied as a whole.

The tars are read at random, by the index that is kept of each. The label of a sample is the text
of its `.cls`, a value of its `.json`, or the text of its `.txt`.
"""

import functools
import glob
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from llc_jax import objects
from llc_jax.copies import local
from llc_jax.data.parquet import LABEL_COLUMNS
from llc_jax.data.sources import FileSource
from llc_jax.data.stores import IMAGE_SUFFIXES, Tar, cached, is_image
from llc_jax.errors import InputError
from llc_jax.objects import URL, is_url

PREFIX = "webdataset:"

# Of a sample's images the first of these is taken, before those of another suffix.
_PREFERRED = (".jpg", ".jpeg", ".png", ".webp")
_LABEL_KEYS = ("cls", *LABEL_COLUMNS)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
# Files that a process opens beside the shards.
_OTHER_FILES = 256


def is_named(source: str) -> bool:
    """Whether data are named as WebDataset: with the prefix, or as a pattern of tars."""
    return source.startswith(PREFIX) or (source.endswith(".tar") and is_pattern(source))


def is_pattern(text: str) -> bool:
    """Whether a text stands for files of other names: it has braces or wildcards."""
    has_magic = glob.has_magic(text) or _BRACES.search(text) is not None
    return has_magic and not os.path.exists(text)


def locate(source: str) -> str:
    """Returns `webdataset:PATTERN` with an absolute pattern."""
    pattern = source.removeprefix(PREFIX)
    return PREFIX + (pattern if is_url(pattern) else os.path.abspath(os.path.expanduser(pattern)))


def exists(source: str) -> bool:
    """Whether the tars of `webdataset:PATTERN` are there."""
    try:
        return bool(expand(source.removeprefix(PREFIX)))
    except InputError:
        return False


def expand(pattern: str) -> list[pathlib.Path] | list[URL]:
    """Returns the files that a pattern names, in the order of the pattern.

    Args:
      pattern: a path or a URL; braces are replaced first, then the files that wildcards match
        are sorted by name.

    Raises:
      InputError: if it matches no file, names one that is not there, or one twice.
    """
    pattern = os.path.expanduser(pattern)
    if os.path.exists(pattern):
        return [pathlib.Path(pattern)]
    find, paths = _find_urls() if is_url(pattern) else _find_paths, []
    for path in _without_braces(pattern):
        found = find(path)
        if not found:
            named = "" if path == pattern else f", which {pattern} names"
            raise InputError(f"There is no file {path}{named}: check the pattern and its folder.")
        paths += found
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise InputError(f"{pattern} names {twice} more than once: name each file once.")
    return paths


def samples(tar: Tar) -> dict[str, dict[str, str]]:
    """Returns the files of each sample by their extensions, in the order of the tar."""
    found = {}
    for name in tar.members():
        directory, base = os.path.split(name)
        stem, dot, extension = base.partition(".")
        if stem and dot:  # Others are hidden, or have no extension.
            found.setdefault(os.path.join(directory, stem), {})[f".{extension.lower()}"] = name
    return found


def images(tar: Tar) -> dict[str, str]:
    """Returns the keys of the samples that have an image, with the name of its file.

    Of a sample with several images the one whose extension has no other dot is taken, and of
    several such ones a JPEG before a PNG, a WebP and the others.

    Raises:
      InputError: if this does not tell which of several images to take.
    """
    found = {}
    for key, files in samples(tar).items():
        of_sample = [extension for extension in files if is_image(f"x{extension}")]
        if not of_sample:
            continue
        plain = sorted(filter(IMAGE_SUFFIXES.__contains__, of_sample), key=_preference)
        if not plain and len(of_sample) > 1:
            raise InputError(
                f"The sample {key} in {tar.root} has the images {' and '.join(of_sample[:2])}, and "
                f"none of them is {os.path.basename(key)}.jpg, .png or the like: rename the one "
                "that is meant, or give each a key of its own, without dots."
            )
        found[key] = files[(plain or of_sample)[0]]
    return found


class Shards:
    """The files of several tars, as a store of images; `train-000.tar/cat.jpg` is one's name."""

    def __init__(self, paths: Sequence[pathlib.Path] | Sequence[URL]):
        places = [path.resolve() for path in paths]
        kind = type(places[0])
        _allow_open_files(len(paths) * (2 if kind is URL else 1))  # A copy has a lock, too.
        self.root = kind(os.path.commonpath([place.parent for place in places]))
        names = [place.relative_to(self.root).as_posix() for place in places]
        self.tars = dict(zip(names, map(Tar, map(local, paths)), strict=True))

    def read(self, name: str) -> bytes:
        """Returns the content of a file; may be called from several threads."""
        tar, member = self._find(name)
        return tar.read(member)

    def sizes(self, names: Sequence[str]) -> np.ndarray:
        """Returns the bytes of each file, int64[N]."""
        sizes = [tar.sizes([member])[0] for tar, member in map(self._find, names)]
        return np.array(sizes, np.int64)

    def _find(self, name: str) -> tuple[Tar, str]:
        shard, _, member = name.partition(".tar/")
        return self.tars[f"{shard}.tar"], member


def open_shards(source: str) -> FileSource:
    """Opens labelled images.

    Args:
      source: `webdataset:PATTERN`, or a pattern of tars.

    Raises:
      InputError: if there are none, or a sample with an image has no label.
    """
    paths = expand(source.removeprefix(PREFIX))
    other = next((path for path in paths if path.suffix != ".tar"), None)
    if other is not None:
        raise InputError(f"{other} is no .tar: WebDataset has uncompressed tars.")
    shards = Shards(paths)
    names, labels = [], []
    for shard, tar in shards.tars.items():
        content = _labelled(tar)
        names += [f"{shard}/{name}" for name in content["names"].tolist()]
        labels += content["labels"].tolist()
    if not names:
        raise InputError(f"There are no images in the tars {source.removeprefix(PREFIX)}.")
    are_numbers = all(re.fullmatch(r"\d{1,18}", text) for text in set(labels))
    class_names = sorted(set(labels), key=int if are_numbers else None)
    label_of = {name: label for label, name in enumerate(class_names)}
    indices = np.array([label_of[name] for name in labels], np.int32)
    return FileSource(shards, indices, tuple(class_names), names)


def _find_paths(path: str) -> list[pathlib.Path]:
    """Returns the files that match a path with wildcards; without, the one that is there."""
    if glob.has_magic(path):
        return list(map(pathlib.Path, sorted(glob.glob(path, recursive=True))))
    return [pathlib.Path(path)] if os.path.exists(path) else []


def _find_urls() -> Callable[[str], list[URL]]:
    """Returns a function that does the same for URLs; it lists each folder once."""
    listed = functools.cache(objects.glob)

    def find(text: str) -> list[URL]:
        url = URL(text)
        if glob.has_magic(text):
            return list(listed(text))
        return [url] if url in listed(str(url.parent / "*")) else []

    return find


def _without_braces(pattern: str) -> list[str]:
    """Returns the paths that the braces of a pattern stand for."""
    texts, braces = _BRACES.split(pattern)[::2], _BRACES.findall(pattern)
    choices = itertools.product(*map(_choices, braces))
    return [
        "".join(itertools.chain(*zip(texts, chosen, strict=False), texts[-1:]))
        for chosen in choices
    ]


def _choices(text: str) -> list[str]:
    """Returns what stands for `000..146`, or for `a,b`."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return text.split(",")
    first, last = match.groups()
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]


def _preference(suffix: str) -> int:
    return _PREFERRED.index(suffix) if suffix in _PREFERRED else len(_PREFERRED)


def _labelled(tar: Tar) -> dict[str, np.ndarray]:
    """Returns the names and labels of the images in a tar, texts; kept in the cache."""

    def compute() -> dict[str, np.ndarray]:
        files, names = samples(tar), images(tar)
        labels = [_label(tar, key, files[key]) for key in names]
        return {
            "names": np.array(list(names.values()), np.str_),
            "labels": np.array(labels, np.str_),
        }

    return cached(f"{tar.root.resolve()}/labels", [tar.root], compute)


def _label(tar: Tar, key: str, files: Mapping[str, str]) -> str:
    """Returns the label of a sample, a text."""
    try:
        if ".cls" in files:
            label = tar.read(files[".cls"]).decode()
        elif ".json" in files:
            values = json.loads(tar.read(files[".json"]))
            label = next(str(values[name]) for name in _LABEL_KEYS if name in values)
        else:
            label = tar.read(files[".txt"]).decode()
    except (KeyError, StopIteration):
        label = ""
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"The label of {key} in {tar.root} cannot be read: {error}.") from error
    if not label.strip():
        raise InputError(
            f"The sample {key} in {tar.root} has no label: expected {key}.cls with one, "
            f"{key}.json with one of {', '.join(_LABEL_KEYS)}, or {key}.txt."
        )
    return label.strip()


def _allow_open_files(count: int) -> None:
    """Lets this process have so many files open at once, beside its others.

    Raises:
      InputError: if the system does not allow it.
    """
    import resource  # Unix only, and so are open tars.

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + _OTHER_FILES
    if resource.RLIM_INFINITY not in (soft, hard) and needed > hard:
        raise InputError(
            f"{count:,} tars cannot be open at once: this process may have {hard:,} files open; "
            "raise the limit (ulimit -n), or pack the images into fewer tars."
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
