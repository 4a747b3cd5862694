import itertools

import pytest

from llc_jax.corpus import tasks
from llc_jax.errors import InputError

ARRAY = "SLURM_ARRAY_TASK_"


def array(number, first, last, step, count):
    names = ("ID", "MIN", "MAX", "STEP", "COUNT")
    values = (number, first, last, step, count)
    return {f"{ARRAY}{name}": str(value) for name, value in zip(names, values, strict=True)}


def step(index, count):
    return {"SLURM_PROCID": str(index), "SLURM_STEP_NUM_TASKS": str(count)}


def test_every_shard_is_of_one_task():
    for count in (1, 3, 7, 20):
        shards = [tasks.Task(index, count).shards(10) for index in range(count)]
        assert sorted(itertools.chain(*shards)) == list(range(10))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(
    ("text", "environment", "task"),
    [
        ("2/4", array(1, 0, 7, 1, 8), (2, 4)),
        (None, {}, (0, 1)),
        (None, array(5, 1, 7, 2, 4), (2, 4)),
        (None, step(1, 3), (1, 3)),
        (None, array(1, 0, 3, 1, 4) | step(2, 8), (10, 32)),
        # The batch script itself is no step of several tasks.
        (None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),
        (None, {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, (3, 4)),
        (None, {"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ("0/4", {"JOB_COMPLETION_INDEX": "2"}, (0, 4)),
    ],
)
def test_a_task_knows_its_part(text, environment, task):
    assert tasks.find(text, environment) == task


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("4/4", {}, "from 0 to n - 1"),
        ("1", {}, "--task is i/n"),
        ("-1/2", {}, "--task is i/n"),
        ("a/b", {}, "--task is i/n"),
        (None, array(5, 0, 5, 1, 3), "not evenly numbered"),
        (None, {"JOB_COMPLETION_INDEX": "2"}, 'give --task "$JOB_COMPLETION_INDEX/N"'),
    ],
)
def test_what_is_no_task_is_one_error(text, environment, message):
    with pytest.raises(InputError, match="^[^\n]*$") as error:
        tasks.find(text, environment)
    assert message in str(error.value)
