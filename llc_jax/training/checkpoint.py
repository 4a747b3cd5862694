"""Checkpoints of a stage, with Orbax; no other module imports it."""

import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from llc_jax.errors import InputError
from llc_jax.files import check_space

Tree = Any
_managers = ocp.checkpoint_managers


class Checkpoints:
    """The checkpoints of one stage, by step; the latest `keep` of them are kept.

    Saving is asynchronous; a checkpoint appears under its name when it is complete.
    Use it as a context manager, or call `close`.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_managers.LatestN(keep),
            save_decision_policy=_managers.FixedIntervalPolicy(1),
            enable_async_checkpointing=True,
        )
        self.directory, self.keep = pathlib.Path(directory).absolute(), keep
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

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
        """Starts to save the state, unless this step is already saved."""
        if step != self.latest_step:
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

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster has announced a preemption; all processes get the same answer."""
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Waits until all checkpoints are written, and closes the manager."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore_weights(directory: str | os.PathLike, abstract: Tree) -> Tree:
    """Returns the `params` and `batch_stats` of a stage's newest checkpoint.

    Args:
      directory: of the stage's checkpoints; nothing is written there.
      abstract: a tree of `jax.ShapeDtypeStruct`s with shardings, under those keys.

    Raises:
      InputError: if there is no checkpoint, or it does not match the tree.
    """
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=True)
    with _open_read_only(directory) as manager:
        return _restore(manager, args)


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


def _restore(manager: ocp.CheckpointManager, args) -> Tree:
    step = _latest_step(manager)
    try:
        return manager.restore(step, args=args)
    except (ValueError, KeyError, FileNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"The checkpoint of step {step} in {manager.directory} cannot be used: {reason}"
        ) from error
