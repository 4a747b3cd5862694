"""The inputs that a command of `llc` names: files, and what a model makes of them."""

import pathlib
import sys

import numpy as np

from llc_jax.copies import local
from llc_jax.data import image_list
from llc_jax.data.bucket import Bucket
from llc_jax.data.stores import Folder, is_image
from llc_jax.errors import InputError
from llc_jax.objects import URL, is_url


def code_logits(model, files: list[str], on_error: str | None) -> tuple[list[str], np.ndarray]:
    """Returns the names of the inputs in files that can be read, and their code logits.

    Args:
      model: that encodes them.
      files: images; or files of embeddings, for a model of these.
      on_error: "stop" or "skip", what to do about an input that cannot be read; None to stop,
        where the command has no such option.

    Raises:
      InputError: if one cannot be read and is not skipped, or if none can.
    """
    from llc_jax.corpus import inputs

    if model.kind == "images":
        groups = [inputs.Items(files, files)]
    else:
        groups = [inputs.open_file(local(file), model.kind) for file in files]
    names, logits, count = [], [], sum(len(items.keys) for items in groups)
    for part in model.stream((items.keys, items.inputs) for items in groups if len(items.keys)):
        for error in part.errors.values():
            if on_error != "skip":
                hint = " With --on-error skip it is left out." if on_error else ""
                raise InputError(f"{error}{hint}") from error
            print(f"skipped: {error}", file=sys.stderr)
        keys = part.group[part.rows]
        good = [i for i in range(len(keys)) if part.rows.start + i not in part.errors]
        names += [keys[i] for i in good]
        logits.append(part.code_logits[good])
    if len(names) < count:
        print(f"skipped {count - len(names)} of {count} {model.kind}", file=sys.stderr)
    if not names:
        raise InputError(f"None of the {model.kind} can be read.")
    return names, np.concatenate(logits)


def find_files(arguments: list[str]) -> list[str]:
    """Replaces folders, and lists of images, by the images in them."""
    paths = []
    for argument in arguments:
        if is_url(argument):
            url = URL(argument)
            images = [url] if is_image(url.name) else [url / name for name in Bucket(url).files()]
            if not images:
                raise InputError(f"There are no images at {argument}.")
            paths += map(str, images)
            continue
        path, listed = pathlib.Path(argument), image_list.find(argument)
        if path.is_dir():
            files = Folder(path).files()
            if not files:
                raise InputError(f"There are no images in the folder {path}.")
            paths += [str(path / file) for file in files]
        elif listed is not None and listed.path.exists():
            paths += [str(listed.folder / file) for file in image_list.read(listed).names]
        elif path.exists():
            paths.append(argument)
        else:
            raise InputError(f"There is no image {argument}.")
    return paths
