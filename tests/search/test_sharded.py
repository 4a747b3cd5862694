import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

import llc_jax
from llc_jax.errors import InputError
from llc_jax.mesh import make_mesh
from llc_jax.search.sharded import ShardedIndex
from tests.search.test_index import assert_same, make_index, near_queries, random_codes

ROOT = pathlib.Path(__file__).parents[2]

# One of two processes, each with its own half of the codes.
_PROCESS = """
import sys
import jax
import numpy as np

jax.distributed.initialize("localhost:" + sys.argv[1], 2, int(sys.argv[2]))

from llc_jax.search.sharded import ShardedIndex
from llc_jax.mesh import make_mesh

with np.load(sys.argv[3]) as file:
    codes, ids, queries = file["codes"], file["ids"], file["queries"]
local = slice(0, 700) if sys.argv[2] == "0" else slice(700, None)
index = ShardedIndex(make_mesh(), 20, codes[local], ids[local])
distances, ids = index.search(queries, 30)
np.savez(sys.argv[4], distances=distances, ids=ids)
"""


@pytest.mark.parametrize(("num_bits", "count"), [(20, 3001), (100, 70_000), (33, 5)])
def test_devices_find_the_same(num_bits, count):
    rng = np.random.default_rng(num_bits)
    codes = random_codes(rng, count, num_bits, distinct=max(3, count // 2))
    index = make_index(num_bits, codes, np.arange(count) * 10**10 - 7)
    queries = near_queries(rng, codes, 11)
    sharded = index.shard(make_mesh())
    for top in (1, 20, 100):
        assert_same(sharded.search(queries, top), index.search(queries, top))


def test_devices_search_many_queries_and_an_empty_index():
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 500, 20)
    index = make_index(20, codes)
    queries = random_codes(rng, 300, 20)
    assert_same(index.shard(make_mesh()).search(queries, 4), index.search(queries, 4))
    empty = llc_jax.HammingIndex(20)
    assert_same(empty.shard(make_mesh()).search(queries, 4), empty.search(queries, 4))


def test_processes_with_their_own_codes_find_the_same(tmp_path):
    rng = np.random.default_rng(0)
    codes, ids = random_codes(rng, 1001, 20, distinct=100), rng.permutation(1001) * 10**10
    queries = near_queries(rng, codes, 5)
    np.savez(tmp_path / "items.npz", codes=codes, ids=ids, queries=queries)
    with socket.socket() as free_socket:
        free_socket.bind(("localhost", 0))
        port = str(free_socket.getsockname()[1])
    options = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, port, str(number), "items.npz", f"{number}.npz"],
            cwd=tmp_path, env=os.environ | options, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    expected = make_index(20, codes, ids).search(queries, 30)
    for number, process in enumerate(processes):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        with np.load(tmp_path / f"{number}.npz") as results:
            assert_same([results["distances"], results["ids"]], expected)


def test_bad_input_is_named():
    codes = np.zeros((3, 1), np.uint32)
    with pytest.raises(InputError, match="There are 3 codes but 2 ids"):
        ShardedIndex(make_mesh(), 20, codes, np.arange(2))
    with pytest.raises(InputError, match=r"40 bits are uint32\[N, 2\]"):
        ShardedIndex(make_mesh(), 40, codes, np.arange(3))
    sharded = ShardedIndex(make_mesh(), 20, codes, np.arange(3))
    with pytest.raises(InputError, match="at least 1 item, not 0"):
        sharded.search(codes, 0)
