"""Trains and evaluates: python -m llc_jax.main --config=configs/digits_8bit.py"""

import os
import pathlib
import sys
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from llc_jax.data.prefetch import ReadersFailed, kill_workers
from llc_jax.errors import InputError
from llc_jax.experiment.run import evaluate, run
from llc_jax.files import WriteFailed
from llc_jax.training.loop import Diverged
from llc_jax.training.preemption import Stopped

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config file; FILE:PATH names data.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is kept; by default runs/<name of the config file>."
)
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Whether to train, or to evaluate what is trained."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0 of several; `auto` asks the cluster (TPU, Slurm)."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is.")


def main(_: list[str]) -> None:
    """Runs the config; exits with 0 when the run is finished."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    sys.unraisablehook = _show_unraisable
    _join_cluster(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = _WORKDIR.value or pathlib.Path("runs") / _path(config_file).stem
    try:
        {"train": run, "eval": evaluate}[_MODE.value](_CONFIG.value.to_dict(), workdir)
    except InputError as error:
        _exit(2, f"error: {error}")
    except (Diverged, WriteFailed) as error:
        _exit(1, f"error: {error}")
    except ReadersFailed as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        kill_workers()
        os._exit(1)  # A reader that hangs would keep the usual end waiting.
    except Stopped as stopped:
        _exit(128 + stopped.signal, str(stopped))


def _exit(status: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(status)


def _show_unraisable(unraisable) -> None:
    """Shows what a thread could not raise, but not of the writes that a failed save abandons."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _join_cluster(coordinator: str | None, num_processes: int | None, process_id: int | None):
    if coordinator is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address = None if coordinator == "auto" else coordinator
    jax.distributed.initialize(address, num_processes, process_id)


def _parse_flags(arguments: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it is one line."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config":
            file = _path(value or following)
            if not file.is_file():
                _exit(2, f"error: There is no config file {file}.")
            # A config can import its neighbours, as a script can.
            sys.path.insert(0, str(file.resolve().parent))
    try:
        return flags.FLAGS(arguments)
    except (flags.Error, OSError) as error:
        _exit(2, f"error: {error}")
    except (AttributeError, KeyError) as error:
        reason = str(error.args[0]).replace("\n", ". ").strip("\"'")
        _exit(2, f"error: --config: there is no key {reason}")


def _path(config: str) -> pathlib.Path:
    """Returns the file of FILE:ARGUMENT."""
    return pathlib.Path(config.split(":")[0])


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parse_flags)
