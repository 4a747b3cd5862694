"""Checkpoints of a stage, with Orbax; no other module imports it.

On a disk that several processes share, each writes its part of a checkpoint. Where the workdir is a
URL, the first process writes all of it, in its own copy and from there at the URL, and sends the
others what it restores.
"""

import contextlib
import errno
import functools
import gc
import inspect
import logging
import os
import pathlib
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from llc_jax import copies, objects
from llc_jax.errors import InputError
from llc_jax.files import WriteFailed, check_space, write_failed, writing
from llc_jax.mesh import from_first_process, with_sharding
from llc_jax.training import checksums

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
        find = functools.partial(checksums.set_damaged_aside, self.directory)
        self.remarks = tuple(from_first_process(find))
        self._saved_step = None
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = self._open()
        if _is_copy(self.directory):
            # None is 0, as no checkpoint is of step 0.
            (step,) = from_first_process(lambda: [str(self._manager.latest_step() or 0)])
            self._manager = self._manager or _OfFirstProcess(int(step) or None)

    def _open(self) -> ocp.CheckpointManager | None:
        """Returns what saves and restores; None where the first process alone does that."""
        if _is_copy(self.directory) and jax.process_index() > 0:
            return None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_managers.LatestN(self.keep),
            save_decision_policy=_managers.FixedIntervalPolicy(1),
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._write_checksums,
                # A directory that cannot be made in the background is waited for, for minutes.
                create_directories_asynchronously=False,
            ),
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=_processes(self.directory),
        )
        return ocp.CheckpointManager(self.directory, options=options)

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
        if _is_copy(self.directory) and jax.process_index() == 0:
            state = jax.tree.map(np.array, state)  # Orbax would save a part on each process.
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

        def restore(abstract: Tree) -> Tree:
            return _restore(self._manager, ocp.args.StandardRestore(abstract))

        return _restore_for_all(self.directory, restore, abstract)

    def close(self) -> None:
        """Waits until all checkpoints are written, and closes the manager.

        Raises:
          WriteFailed: if the last one cannot be written; those before stay.
        """
        try:
            self._wait_here()
        finally:
            with self._explaining():  # A save has several files that can fail.
                self._manager.close()

    def wait(self) -> None:
        """Waits until all checkpoints are written; raises as `close` does."""
        if _is_copy(self.directory):
            from_first_process(self._wait_here)
        else:
            self._wait_here()

    def _wait_here(self) -> list[str]:
        with self._explaining():
            self._manager.wait_until_finished()
        return []

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
        checksums.write(checkpoint)
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


class _OfFirstProcess:
    """Stands for Orbax's manager in a process that has no checkpoints, as the first has all."""

    def __init__(self, step: int | None):
        self._step = step

    def latest_step(self) -> int | None:
        return self._step

    def save(self, step: int, args: Any) -> None:
        del args
        self._step = step

    def close(self) -> None:
        """Does nothing."""

    wait_until_finished = close


def _is_copy(directory: pathlib.Path) -> bool:
    """Whether each of several processes has a directory of its own, as the workdir is a URL."""
    return jax.process_count() > 1 and copies.url_of(directory) is not None


def _processes(directory: pathlib.Path) -> ocp.options.MultiprocessingOptions:
    """Returns which processes Orbax waits for."""
    if not _is_copy(directory):
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
    )


def _restore_for_all(
    directory: pathlib.Path, restore: Callable[[Tree], Tree], abstract: Tree
) -> Tree:
    """Returns what `restore` does; where the first process has all checkpoints, it sends it.

    Args:
      directory: of the checkpoints.
      restore: returns arrays of the form and sharding that it is given.
      abstract: as `Checkpoints.restore`.

    Raises:
      InputError: on every process, if `restore` raises one.
    """
    if not _is_copy(directory):
        return restore(abstract)
    found = []

    def restore_here() -> list[str]:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        found.append(jax.device_get(restore(with_sharding(abstract, here))))
        return []

    from_first_process(restore_here)
    empty = functools.partial(jax.tree.map, lambda leaf: np.zeros(leaf.shape, leaf.dtype))
    values = multihost_utils.broadcast_one_to_all(found[0] if found else empty(abstract))

    def place(value: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, value.__getitem__)

    return jax.tree.map(place, values, abstract)


def restore_weights(directory: str | os.PathLike, abstract: Tree) -> Tree:
    """Returns the `params` and `batch_stats` of a stage's newest checkpoint.

    Args:
      directory: of the stage's checkpoints; nothing is written there.
      abstract: a tree of `jax.ShapeDtypeStruct`s with shardings, under those keys.

    Raises:
      InputError: if there is no checkpoint, it is damaged, or it does not match the tree.
    """
    directory = pathlib.Path(directory).absolute()
    return _restore_for_all(directory, functools.partial(_restore_weights, directory), abstract)


def _restore_weights(directory: pathlib.Path, abstract: Tree) -> Tree:
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=True)
    while True:
        steps = _step_names(directory)
        with _silent_coroutines():
            try:
                with _open_read_only(directory) as manager:
                    checkpoint = manager.directory / str(_latest_step(manager))
                    has_checksums = checksums.check_whole(checkpoint)
                    weights = _restore(manager, args)
            except Exception:  # Orbax has errors of many kinds for files that are gone.
                time.sleep(_REMOVAL_SECONDS)
                if _step_names(directory) == steps:
                    raise
                continue  # A run at work there has removed a checkpoint: there is a newer one.
        if not has_checksums and _step_names(directory) == steps:
            warnings.warn(checksums.unchecked(checkpoint), stacklevel=2)
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
    processes = _processes(directory)
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=processes)
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=processes)
    return ocp.CheckpointManager(directory, options=options, item_handlers=handler)


def _latest_step(manager: ocp.CheckpointManager) -> int:
    step = manager.latest_step()
    if step is None:
        raise InputError(f"There is no checkpoint in {manager.directory}.")
    return step


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
