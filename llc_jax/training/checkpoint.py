"""Checkpoints of a stage, with Orbax; no other module imports it.

Beside the files of a checkpoint is `checksums.json`, the SHA-256 of each; they are compared
before anything is restored. A checkpoint of before there was such a file is restored without.
"""

import contextlib
import errno
import functools
import gc
import inspect
import itertools
import json
import logging
import os
import pathlib
import re
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from llc_jax import copies, objects
from llc_jax.errors import InputError
from llc_jax.files import WriteFailed, check_space, read_json, sha256, write_failed, writing
from llc_jax.mesh import from_first_process

CHECKSUMS_FILE = "checksums.json"

# The removal of a checkpoint, which another process has begun, takes less.
_REMOVAL_SECONDS = 0.5

Tree = Any
_managers = ocp.checkpoint_managers


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """Keeps Orbax from logging what it raises as well: errors, and files that are not there."""
    raised = record.exc_info or "does not exist" in record.getMessage()
    return not (raised and "orbax" in record.pathname)


logging.getLogger("absl").addFilter(_is_not_raised_too)


class Checkpoints:
    """The checkpoints of one stage, by step; the latest `keep` of them are kept.

    Saving is asynchronous; a checkpoint appears under its name when it is complete, with its
    checksums. Newest checkpoints that are damaged are set aside: renamed, not removed.
    Use it as a context manager, or call `close`.

    Attributes:
      directory: of the checkpoints.
      keep: how many are kept.
      remarks: sentences on those that were found damaged, or without checksums.

    Raises:
      InputError: if all were damaged.
      WriteFailed: if the directory cannot be made.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        self.directory, self.keep = pathlib.Path(directory).absolute(), keep
        find = functools.partial(_set_damaged_aside, self.directory)
        self.remarks = tuple(from_first_process(find))
        self._saved_step = None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_managers.LatestN(keep),
            save_decision_policy=_managers.FixedIntervalPolicy(1),
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._write_checksums,
                # A directory that cannot be made in the background is waited for, for minutes.
                create_directories_asynchronously=False,
            ),
            cleanup_tmp_directories=True,
        )
        with writing(self.directory):
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.close()
        except WriteFailed:
            if not isinstance(error, WriteFailed):
                raise

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def check_space(self, abstract: Tree) -> None:
        """Raises an InputError if the disk has no room for the checkpoints of such a state.

        While the newest is written, there is one more than `keep`.

        Args:
          abstract: the state's tree of `jax.ShapeDtypeStruct`s.
        """
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
        count = self.keep + 1
        remedy = "choose another --workdir, or keep fewer (config.checkpoint.keep)"
        check_space(self.directory, size * count, f"A set of {count} checkpoints", remedy)

    def save(self, step: int, state: Tree) -> None:
        """Starts to save the state, unless this step is already saved.

        Raises:
          WriteFailed: if this or the last checkpoint cannot be written; those before stay.
        """
        if step == self.latest_step:
            return
        self.wait()
        if not self.directory.is_dir():
            raise write_failed(self.directory, errno.ENOENT)
        self._saved_step = step
        with self._explaining():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, abstract: Tree) -> Tree:
        """Returns the newest state.

        Args:
          abstract: the state's tree of `jax.ShapeDtypeStruct`s with shardings; the
            devices may differ from those that saved it.

        Raises:
          InputError: if there is no checkpoint, or it does not match the tree.
        """
        return _restore(self._manager, ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Waits until all checkpoints are written, and closes the manager.

        Raises:
          WriteFailed: if the last one cannot be written; those before stay.
        """
        try:
            self.wait()
        finally:
            with self._explaining():  # A save has several files that can fail.
                self._manager.close()

    def wait(self) -> None:
        """Waits until all checkpoints are written; raises as `close` does."""
        with self._explaining():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Says in a sentence what the system did not let Orbax write."""
        try:
            yield
        except Exception as error:
            number = _errno(error)
            if number is None:
                raise
            what = f"the checkpoint of step {self._saved_step} in {self.directory}"
            raise write_failed(what, number) from error

    def _write_checksums(self) -> None:
        """Adds the checksums to the checkpoint that is complete but for its name."""
        (checkpoint,) = self.directory.glob(f"{self._saved_step}.orbax-checkpoint-tmp*")
        files = sorted(path for path in checkpoint.glob("*/**/*") if path.is_file())
        sums = {path.relative_to(checkpoint).as_posix(): sha256(path) for path in files}
        (checkpoint / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=2) + "\n")
        self._publish(checkpoint)

    def _publish(self, checkpoint: pathlib.Path) -> None:
        """Writes the checkpoint to where the directory is a copy of, and removes old ones there."""
        url = copies.url_of(self.directory)
        if url is None:
            return
        objects.upload_folder(checkpoint, url / str(self._saved_step))
        before = _step_names(self.directory) - {str(self._saved_step)}
        for step in sorted(map(int, before), reverse=True)[self.keep - 1 :]:
            objects.remove_folder(url / str(step))


def restore_weights(directory: str | os.PathLike, abstract: Tree) -> Tree:
    """Returns the `params` and `batch_stats` of a stage's newest checkpoint.

    Args:
      directory: of the stage's checkpoints; nothing is written there.
      abstract: a tree of `jax.ShapeDtypeStruct`s with shardings, under those keys.

    Raises:
      InputError: if there is no checkpoint, it is damaged, or it does not match the tree.
    """
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=True)
    while True:
        steps = _step_names(directory)
        with _silent_coroutines():
            try:
                with _open_read_only(directory) as manager:
                    checkpoint = manager.directory / str(_latest_step(manager))
                    has_checksums = _check_whole(checkpoint)
                    weights = _restore(manager, args)
            except Exception:  # Orbax has errors of many kinds for files that are gone.
                time.sleep(_REMOVAL_SECONDS)
                if _step_names(directory) == steps:
                    raise
                continue  # A run at work there has removed a checkpoint: there is a newer one.
        if not has_checksums and _step_names(directory) == steps:
            warnings.warn(_unchecked(checkpoint), stacklevel=2)
        return weights


@contextlib.contextmanager
def _silent_coroutines() -> Iterator[None]:
    """Lets those coroutines of Orbax that an error has left behind end without a word."""
    report = sys.unraisablehook
    sys.unraisablehook = lambda what: None if inspect.iscoroutine(what.object) else report(what)
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook = report


def _step_names(directory: str | os.PathLike) -> set[str]:
    """Returns the names of all checkpoints in a directory; none where it is missing."""
    try:
        return {name for name in os.listdir(directory) if name.isdecimal()}
    except OSError:
        return set()


def weight_shapes(directory: str | os.PathLike) -> Tree:
    """Returns the tree of `params` and `batch_stats` in a stage's newest checkpoint.

    Its leaves are `jax.ShapeDtypeStruct`s.

    Raises:
      InputError: if there is no checkpoint.
    """
    with _open_read_only(directory) as manager:
        metadata = manager.item_metadata(_latest_step(manager))
    return {name: _shapes(metadata[name]) for name in ("params", "batch_stats")}


def _shapes(metadata: Any) -> Tree:
    """Returns the shapes in Orbax's metadata, where the integer keys of a tree are strings."""
    if isinstance(metadata, dict):
        items = metadata.items()
        return {int(key) if key.isdigit() else key: _shapes(value) for key, value in items}
    return jax.ShapeDtypeStruct(metadata.shape, metadata.dtype)


def _open_read_only(directory: str | os.PathLike) -> ocp.CheckpointManager:
    """Opens existing checkpoints; nothing is written."""
    directory = pathlib.Path(directory).absolute()
    if not directory.is_dir():
        raise InputError(f"There is no checkpoint in {directory}.")
    options = ocp.CheckpointManagerOptions(create=False)
    handler = ocp.PyTreeCheckpointHandler()
    return ocp.CheckpointManager(directory, options=options, item_handlers=handler)


def _latest_step(manager: ocp.CheckpointManager) -> int:
    step = manager.latest_step()
    if step is None:
        raise InputError(f"There is no checkpoint in {manager.directory}.")
    return step


def _set_damaged_aside(directory: pathlib.Path) -> list[str]:
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
            return remarks if _has_checksums(checkpoint) else [*remarks, _unchecked(checkpoint)]
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


def _check_whole(checkpoint: pathlib.Path) -> bool:
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


def _unchecked(checkpoint: pathlib.Path) -> str:
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


def _errno(error: BaseException) -> int | None:
    """Returns the number of the system's error that an exception tells of, None if of none."""
    if isinstance(error, OSError):
        return error.errno
    of_tensorstore = re.search(r"os_error_code='(\d+)'", str(error))
    return int(of_tensorstore[1]) if of_tensorstore else None


def _restore(manager: ocp.CheckpointManager, args) -> Tree:
    step = _latest_step(manager)
    try:
        return manager.restore(step, args=args)
    except (ValueError, KeyError, FileNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"The checkpoint of step {step} in {manager.directory} cannot be used: {reason}"
        ) from error
