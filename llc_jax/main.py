"""Trains and evaluates: python -m llc_jax.main --config=digits_8bit"""

import pathlib
import sys
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from llc_jax.data.prefetch import ReadersFailed
from llc_jax.errors import InputError
from llc_jax.files import WriteFailed
from llc_jax.options import choose, suggest
from llc_jax.training.preemption import Stopped
from llc_jax.training.process import Process
from llc_jax.training.roll_call import NotConnected

# How Python begins to say that a value is of another kind, and the kind.
_KINDS = {
    "invalid literal for int()": "a whole number",
    "could not convert string to float": "a number",
    "('Non-boolean argument": "true or false",
}

# The configs that come with the package.
_CONFIGS = pathlib.Path(__file__).parent / "configs"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config that comes with llc_jax, or a file of one; CONFIG:PATH names data."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is kept; by default runs/<name of the config>."
)
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Whether to train, or to evaluate what is trained."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0 of several; `auto` for what a TPU pod, GKE, Slurm or Open MPI tell; "
    "`none` for one of their processes that is to train alone.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is.")
_TIMEOUT = flags.DEFINE_integer(
    "initialization_timeout", 60, "Seconds to wait for the other processes.", lower_bound=1
)
_PLATFORM = flags.DEFINE_enum(
    "platform", None, ["cpu", "gpu", "tpu"], "The devices that are meant; by default any."
)


def main(_: list[str], process: Process) -> None:
    """Runs the config; exits with 0 when the run is finished."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    sys.unraisablehook = _show_unraisable
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = _WORKDIR.value or pathlib.Path("runs") / _path(config_file).stem
    try:
        process.join(
            *(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value),
            *(_TIMEOUT.value, _PLATFORM.value),
        )
        _run(_MODE.value, _values(_CONFIG.value), workdir, process)
        process.finish()
    except Stopped as stopped:
        process.end(128 + stopped.signal, str(stopped))
    except InputError as error:
        process.fail(2, str(error))
    except (ReadersFailed, NotConnected) as error:
        process.fail(1, str(error))
    except Exception as error:
        process.crash(error)


def _run(mode: str, config: dict, workdir: pathlib.Path, process: Process) -> None:
    # This import takes seconds; signals are caught already.
    from llc_jax.experiment.evaluate import evaluate
    from llc_jax.experiment.run import run
    from llc_jax.training.loop import Diverged

    try:
        if mode == "train":
            run(config, workdir, stop_request=process.stop_request)
        else:
            evaluate(config, workdir)
    except (Diverged, WriteFailed) as error:
        process.fail(1, str(error))


def _exit(status: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(status)


def _show_unraisable(unraisable) -> None:
    """Shows what a thread could not raise, but not of the writes that a failed save abandons."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _parse_flags(arguments: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it is one line."""
    try:
        arguments = _with_config_file(arguments)
        remaining = flags.FLAGS(arguments)
        if _CONFIG.value is None:
            raise InputError(
                "--config says what to train, as --config=NAME:PATH; NAME is one of "
                f"{', '.join(sorted(_configs()))}, and PATH is your data."
            )
        return remaining
    except flags.IllegalFlagValueError as error:
        _exit(2, f"error: {_in_words(error)}")
    except (InputError, flags.Error, OSError) as error:
        _exit(2, f"error: {error}")
    except (AttributeError, KeyError):
        unknown = _unknown_key(arguments)
        if not unknown:
            raise
        _exit(2, f"error: {unknown}")


def _in_words(error: flags.IllegalFlagValueError) -> str:
    """Says of which kind a value must be, where Python would; all else as it is."""
    flag, _, reason = str(error).partition(": ")
    name, _, value = flag.removeprefix("flag ").partition("=")
    for start, kind in _KINDS.items():
        if reason.startswith(start):
            return f"{name} is {kind}, not {value!r}."
    return str(error)


def _with_config_file(arguments: list[str]) -> list[str]:
    """Returns the arguments with the file of the config, where its name is given."""
    located, remaining = [], iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name.lstrip("-") == "config" and name.startswith("-"):
            config, colon, data = (value if equals else next(remaining, "")).partition(":")
            file = _find_config(config)
            # A config can import its neighbours, as a script can.
            sys.path.insert(0, str(file.resolve().parent))
            argument = f"--config={file}{colon}{data}"
        located.append(argument)
    return located


def _find_config(config: str) -> pathlib.Path:
    """Returns the file of a config: a path, or the name of one that comes with the package.

    Raises:
      InputError: if there is no such config.
    """
    path, names = pathlib.Path(config), _configs()
    if path.suffix != ".py" and path.name == config:
        return choose(config, names, "--config")
    if path.is_file():
        return path
    hint = f": --config={path.stem} comes with llc_jax" if path.stem in names else ""
    raise InputError(f"There is no config file {path}{hint}.")


def _configs() -> dict[str, pathlib.Path]:
    """Returns the files of the configs that come with the package, by their names."""
    return {file.stem: file for file in _CONFIGS.glob("*_*.py")}


def _unknown_key(arguments: list[str]) -> str:
    """Says which key that the arguments set is none of the config's; "" where all are."""
    overrides = [argument.lstrip("-").partition("=")[0].split(".") for argument in arguments]
    (file,) = [argument for argument in arguments if argument.startswith("--config=")][-1:]
    config = flags.FLAGS["config"].parser.parse(file.removeprefix("--config="))
    for root, *keys in overrides:
        node, path = config, "config"
        for key in keys if root in ("config", "noconfig") else ():
            known = node.keys() if isinstance(node, ConfigDict) else ()
            if key not in known:
                return f"{path} has no key {key!r}.{suggest(key, known)}"
            node, path = node[key], f"{path}.{key}"
    return ""


def _values(config: ConfigDict) -> dict[str, Any]:
    """Returns the tree of a config, with what is computed from other values.

    Raises:
      InputError: if nothing can be computed from the number of bits.
    """
    if config.get("num_bits", 1) < 1:
        raise InputError(f"config.num_bits is at least 1, not {config.num_bits}.")
    return config.to_dict()


def _path(config: str) -> pathlib.Path:
    """Returns the file of FILE:ARGUMENT."""
    return pathlib.Path(config.split(":")[0])


def start(arguments: list[str] | None = None, afterwards: str = "") -> NoReturn:
    """Runs the program, and ends with its exit status.

    Args:
      arguments: of the command line, the program first; by default this program's.
      afterwards: what to print when the run is finished.
    """

    def run_and_say(remaining: list[str]) -> None:
        main(remaining, process)
        if afterwards:
            print(afterwards)

    process = Process()
    if arguments is not None:
        sys.argv = arguments  # Where ml_collections looks for what overrides a config.
    app.run(run_and_say, flags_parser=_parse_flags)


if __name__ == "__main__":
    start()
