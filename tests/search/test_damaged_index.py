import hashlib
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

import llc_jax
from llc_jax.errors import InputError
from llc_jax.files import WriteFailed
from llc_jax.search import buckets, index_file, scan
from tests.search.test_index import make_index, random_codes


def test_every_damage_is_refused(tmp_path):
    path = tmp_path / "some.index"
    make_index(33, random_codes(np.random.default_rng(0), 50, 33)).save(path)
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    for offset in [*range(80), *rng.integers(len(data), size=100), len(data) - 1]:
        damaged = bytearray(data)
        damaged[offset] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged|is not an index|has version|were written"):
            llc_jax.HammingIndex.load(path)
    for length in [*range(0, 130, 7), len(data) - 1, len(data) + 1]:
        path.write_bytes((data + b"\0")[:length])
        for verify in (True, False):
            with pytest.raises(InputError, match="some.index"):
                llc_jax.HammingIndex.load(path, verify=verify)


def with_checksum(content):
    """The file of an index whose checksum is right again."""
    return content[:-32] + hashlib.sha256(content[:-32]).digest()


def with_header(data, header):
    """The file of an index with another header, a text or changed fields."""
    (length,) = struct.unpack("<I", data[12:16])
    if isinstance(header, dict):
        header = json.dumps(json.loads(data[16 : 16 + length]) | header)
    start = data[:12] + struct.pack("<I", len(header)) + header.encode()
    return with_checksum(start.ljust(-(-len(start) // 64) * 64, b"\0") + data[128:])


@pytest.mark.parametrize("verify", [True, False])
def test_codes_with_stray_bits_are_refused(verify, tmp_path):
    path = tmp_path / "some.index"
    make_index(10, np.arange(1000, dtype=np.uint32)[:, None]).save(path)
    data = path.read_bytes()
    assert data[64:128] != bytes(64)  # The codes start there, after a header of one block.
    stray = bytearray(data)
    stray[64 + 4 * 77 + 3] = 0x80
    lowered = data.replace(b'"num_bits": 10', b'"num_bits": 7 ')
    for content in (bytes(stray), lowered):
        path.write_bytes(with_checksum(content))
        with pytest.raises(InputError, match="codes with bits set beyond the first (10|7): write"):
            llc_jax.HammingIndex.load(path, verify=verify)
    make_index(64, np.full((3, 2), 2**32 - 1, np.uint32)).save(path)  # All bits are used.
    assert len(llc_jax.HammingIndex.load(path, verify=verify)) == 3


@pytest.mark.parametrize(
    "header",
    [
        "[" * 4000,
        '{"num_bits": 10, "count": 1000, "next_id": ' + "[" * 3000,
        {"next_id": 10**30},
        {"count": 10**3000},
        {"num_bits": True},
        {"num_bits": 10.0},
        {"count": -1},
        "",
        "{}",
    ],
)
def test_headers_that_no_index_has_are_refused(header, tmp_path):
    path = tmp_path / "some.index"
    make_index(10, np.arange(1000, dtype=np.uint32)[:, None]).save(path)
    path.write_bytes(with_header(path.read_bytes(), header))
    for verify in (True, False):
        with pytest.raises(InputError, match="some.index is damaged: its header cannot be read"):
            llc_jax.HammingIndex.load(path, verify=verify)


SEARCH_A_FILE = """
import sys
import numpy as np
import llc_jax
from llc_jax.errors import InputError
from llc_jax.files import WriteFailed

for path in sys.argv[1:]:
    for verify in (True, False):
        try:
            index = llc_jax.HammingIndex.load(path, verify=verify)
        except InputError:
            continue
        queries = np.zeros((3, index.codes.shape[1]), np.uint32)
        index.search(queries, 5)
        index.search(queries, 3000)
        index.range_search(queries, 2)
        index.range_search(queries, 1024)
        index.add(queries)
        index.remove(index.ids[-3:])
print("no crash")
"""


@pytest.mark.slow
def test_flipped_bits_with_a_right_checksum_do_no_harm(tmp_path):
    """Searched in a process of its own, in which Numba checks every index of an array."""
    paths = []
    for num_bits, count in [(10, 1000), (33, 500)]:
        path = tmp_path / f"{num_bits}.index"
        make_index(num_bits, random_codes(np.random.default_rng(0), count, num_bits)).save(path)
        paths.append(path)
        data = path.read_bytes()
        header = [(offset, mask) for offset in range(80) for mask in (1, 2, 8, 0xFF)]
        for offset, mask in [*header, *((offset, 0xFF) for offset in range(64, len(data), 97))]:
            flipped = bytearray(data)
            flipped[offset] ^= mask
            paths.append(tmp_path / f"{num_bits}_{offset}_{mask}.index")
            paths[-1].write_bytes(with_checksum(bytes(flipped)))
    process = subprocess.run(
        [sys.executable, "-c", SEARCH_A_FILE, *map(str, paths)],
        capture_output=True,
        text=True,
        # Little is optimised, because most of the time would go there.
        env=os.environ
        | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_OPT": "0", "NUMBA_CACHE_DIR": f"{tmp_path}"},
    )
    assert process.stdout == "no crash\n", process.stderr


def test_codes_that_change_while_they_are_read_do_no_harm():
    """The compiled functions keep to their arrays where a mapped file has other codes now."""
    codes = np.full(500, 2**32 - 1, np.uint32)
    table = buckets.build(codes, 4)
    assert table.starts[-1] == 500
    assert set(table.rows) == set(range(500))
    columns, queries = codes[None], np.zeros((1, 1), np.uint32)
    columns.flags.writeable = queries.flags.writeable = False
    slots = np.zeros((1, 33), np.int64)
    distances, ids = np.full(2, -1, np.int32), np.full(2, -1, np.int64)
    # There are 500 results, and places for two.
    scan.write_within(columns, np.arange(500), queries, slots, distances, ids)
    np.testing.assert_array_equal(distances, [32, 32])
    np.testing.assert_array_equal(ids, [0, 1])


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "some.index"
    with pytest.raises(InputError, match="Cannot read the index .*No such file"):
        llc_jax.HammingIndex.load(path)
    with pytest.raises(InputError, match="Cannot read the index .*directory"):
        llc_jax.HammingIndex.load(tmp_path)
    np.savez(path.with_suffix(".npz"), codes=np.zeros(3))
    with pytest.raises(InputError, match="is not an index"):
        llc_jax.HammingIndex.load(path.with_suffix(".npz"))
    make_index(20, np.zeros((1, 1), np.uint32)).save(path)
    content = bytearray(path.read_bytes())
    content[len(index_file._MAGIC)] = 2
    path.write_bytes(content)
    with pytest.raises(InputError, match="has version 2.*use a newer one"):
        llc_jax.HammingIndex.load(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteFailed, match=r"Cannot write .*some.index \(File exists\)"):
        llc_jax.HammingIndex(20).save(tmp_path / "file" / "some.index")
