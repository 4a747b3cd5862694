"""The checksums of a checkpoint, by which damage is found.

Beside the files of a checkpoint is `checksums.json`, the SHA-256 of each; they are compared
before anything is restored. A checkpoint of before there was such a file is restored without.
"""

import itertools
import json
import pathlib

from llc_jax import copies, objects
from llc_jax.errors import InputError
from llc_jax.files import read_json, sha256, writing

CHECKSUMS_FILE = "checksums.json"


def write(checkpoint: pathlib.Path) -> None:
    """Adds the checksums to a checkpoint that is otherwise complete."""
    files = sorted(path for path in checkpoint.glob("*/**/*") if path.is_file())
    sums = {path.relative_to(checkpoint).as_posix(): sha256(path) for path in files}
    (checkpoint / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=2) + "\n")


def set_damaged_aside(directory: pathlib.Path) -> list[str]:
    """Renames the newest checkpoints of a stage that are damaged, up to the first whole one.

    Returns:
      Sentences on those, and on the whole one if it has no checksums.

    Raises:
      InputError: if no whole one is left.
    """
    remarks = []
    names = (path.name for path in directory.glob("*") if path.name.isdecimal())
    for step in sorted(map(int, names), reverse=True):
        checkpoint = directory / str(step)
        damage = _find_damage(checkpoint)
        if damage is None:
            return remarks if _has_checksums(checkpoint) else [*remarks, unchecked(checkpoint)]
        asides = (directory / f"{step}.damaged{number}" for number in itertools.count(1))
        aside = next(path for path in asides if not path.exists())
        with writing(aside):
            checkpoint.rename(aside)
        url = copies.url_of(checkpoint)
        if url is not None:
            objects.upload_folder(aside, url.with_name(aside.name))
            objects.remove_folder(url)
        remarks.append(
            f"The checkpoint {checkpoint} is damaged ({damage}), and is now {aside.name}."
        )
    if remarks:
        remarks.append("No other is left: the same command trains the stage from its beginning.")
        raise InputError(" ".join(remarks))
    return []


def check_whole(checkpoint: pathlib.Path) -> bool:
    """Raises an InputError if a checkpoint is damaged; returns whether that can be known."""
    damage = _find_damage(checkpoint)
    if damage is not None:
        raise InputError(
            f"The checkpoint {checkpoint} is damaged ({damage}). Remove the results.json of its "
            "stage and that of its run; the command that started the run then continues it from "
            "the checkpoint before."
        )
    return _has_checksums(checkpoint)


def _has_checksums(checkpoint: pathlib.Path) -> bool:
    return (checkpoint / CHECKSUMS_FILE).exists()


def unchecked(checkpoint: pathlib.Path) -> str:
    """Says that a checkpoint has no checksums."""
    return f"The checkpoint {checkpoint} has no checksums: damage to it would go unnoticed."


def _find_damage(checkpoint: pathlib.Path) -> str | None:
    """Returns which file of a checkpoint is not as it was saved, None if none is known to be."""
    if not _has_checksums(checkpoint):
        return None
    try:
        for name, checksum in read_json(checkpoint / CHECKSUMS_FILE).items():
            if sha256(checkpoint / name) != checksum:
                return f"{name} has changed since it was saved"
    except InputError:
        return f"{CHECKSUMS_FILE} cannot be read"
    except OSError as error:
        return f"{name}: {error.strerror}"
    return None
