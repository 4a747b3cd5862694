"""Which part of a corpus a task encodes: task i of n has every n-th shard, from shard i on."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from llc_jax.errors import InputError

# Variables with the number of a process and how many there are: of a step of Slurm, of Open MPI,
# and of PyTorch's launchers and Ray Train.
_VARIABLES = (
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("RANK", "WORLD_SIZE"),
)
# The variable of an indexed job of Kubernetes, and so of a JobSet: it does not say of how many.
_INDEX = "JOB_COMPLETION_INDEX"


class Task(NamedTuple):
    """Task `index` of `count`, from 0."""

    index: int
    count: int

    def shards(self, num_shards: int) -> list[int]:
        """Returns the numbers of its shards."""
        return list(range(self.index, num_shards, self.count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def find(text: str | None, environment: Mapping[str, str] = os.environ) -> Task:
    """Returns the task that this process is.

    Args:
      text: `i/n`; or None for what Slurm, MPI, Ray Train or a JobSet say, or else the only task.
      environment: where they say it.

    Raises:
      InputError: if the text is something else, or the environment does not say how many tasks
        there are.
    """
    if text is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or int(match[1]) >= int(match[2]):
            raise InputError(f"--task is i/n, with i from 0 to n - 1 (0/4 to 3/4), not {text}.")
        return Task(int(match[1]), int(match[2]))
    array, process = _of_array(environment), _of_process(environment)
    if _INDEX in environment and array.count == process.count == 1:
        raise InputError(
            f"This is pod {environment[_INDEX]} of an indexed job, which does not say of how many: "
            f'give --task "${_INDEX}/N".'
        )
    return Task(array.index * process.count + process.index, array.count * process.count)


def _of_array(environment: Mapping[str, str]) -> Task:
    """Returns which job of an array of Slurm's this is."""
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP", "COUNT")]
    if names[0] not in environment:
        return Task(0, 1)
    number, first, last, step, count = (int(environment.get(name, 1)) for name in names)
    if (last - first) // step + 1 != count:
        raise InputError(
            f"The jobs of this array are not evenly numbered, so this one ({number}) does not know "
            "its part: give --task i/n, with the n of the whole array."
        )
    return Task((number - first) // step, count)


def _of_process(environment: Mapping[str, str]) -> Task:
    """Returns which process of a job this is."""
    for index, count in _VARIABLES:
        if index in environment and count in environment:
            return Task(int(environment[index]), int(environment[count]))
    return Task(0, 1)
