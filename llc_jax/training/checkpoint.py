"""Checkpoints of a stage. The only file that imports Orbax."""

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

    Saving is asynchronous; a checkpoint appears under its name when it is whole.
    Use as a context manager, or `close`.
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
        """The step of the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def check_space(self, abstract: Tree) -> None:
        """Raises an InputError if the disk has no room for the checkpoints of such a state.

        There is one more than are kept while the newest is written.
        """
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
        count = self.keep + 1
        remedy = "choose another --workdir, or keep fewer (config.checkpoint.keep)"
        check_space(self.directory, size * count, f"A set of {count} checkpoints", remedy)

    def save(self, step: int, state: Tree) -> None:
        """Starts to save the state, unless the step is saved already."""
        if step != self.latest_step:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, abstract: Tree) -> Tree:
        """Returns the newest state.

        Args:
          abstract: the state's tree of `jax.ShapeDtypeStruct`s with shardings; the
            devices may be others than those that saved.

        Raises:
          InputError: if there is no checkpoint, or it does not fit the tree.
        """
        return _restore(self._manager, ocp.args.StandardRestore(abstract))

    def told_to_stop(self, step: int) -> bool:
        """Whether the cluster has announced that it will end this run (all processes agree)."""
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore_weights(directory: str | os.PathLike, abstract: Tree) -> Tree:
    """Returns the `params` and `batch_stats` of a stage's newest checkpoint.

    Args:
      directory: of the stage's checkpoints; nothing is written there.
      abstract: a tree of `jax.ShapeDtypeStruct`s with shardings, under those keys.

    Raises:
      InputError: if there is no checkpoint, or it does not fit the tree.
    """
    how = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=how, partial_restore=True)
    with _open(directory) as manager:
        return _restore(manager, args)


def weight_shapes(directory: str | os.PathLike) -> Tree:
    """Returns the tree of `params` and `batch_stats` in a stage's newest checkpoint.

    Its leaves are `jax.ShapeDtypeStruct`s.

    Raises:
      InputError: if there is no checkpoint.
    """
    with _open(directory) as manager:
        found = manager.item_metadata(_latest(manager))
    return {name: _shapes(found[name]) for name in ("params", "batch_stats")}


def _shapes(found: Any) -> Tree:
    """Returns shapes of Orbax's metadata, in which the numbers of a list are strings."""
    if isinstance(found, dict):
        items = found.items()
        return {int(key) if key.isdigit() else key: _shapes(value) for key, value in items}
    return jax.ShapeDtypeStruct(found.shape, found.dtype)


def _open(directory: str | os.PathLike) -> ocp.CheckpointManager:
    """Opens checkpoints to read from."""
    directory = pathlib.Path(directory).absolute()
    if not directory.is_dir():
        raise InputError(f"There is no checkpoint in {directory}.")
    options = ocp.CheckpointManagerOptions(create=False)
    handler = ocp.PyTreeCheckpointHandler()
    return ocp.CheckpointManager(directory, options=options, item_handlers=handler)


def _latest(manager: ocp.CheckpointManager) -> int:
    step = manager.latest_step()
    if step is None:
        raise InputError(f"There is no checkpoint in {manager.directory}.")
    return step


def _restore(manager: ocp.CheckpointManager, args) -> Tree:
    step = _latest(manager)
    try:
        return manager.restore(step, args=args)
    except (ValueError, KeyError, FileNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"The checkpoint of step {step} in {manager.directory} cannot be used: {reason}"
        ) from error
