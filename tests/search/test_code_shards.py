import json

import numpy as np
import pytest

from llc_jax.codes import packing
from llc_jax.errors import InputError
from llc_jax.files import write_json
from llc_jax.search import code_shards, export

pytest.importorskip("pyarrow", reason="pip install pyarrow")
K = 37


def make(number, count, **columns):
    rng = np.random.default_rng(number)
    logits = rng.standard_normal((count, K)).astype(np.float32)
    rows = np.sort(rng.choice(2 * count + 1, count, replace=False))
    keys = [f"{number}/{row}" for row in rows]
    codes = packing.pack_on_host(logits)
    ids = code_shards.item_ids(number, rows)
    return code_shards.CodeShard(K, ids, keys, codes, logits, **columns)


@pytest.fixture
def folder(tmp_path):
    """A corpus of three shards, one without items."""
    shards = [make(0, 50), make(1, 0), make(2, 20)]
    for number, shard in enumerate(shards):
        code_shards.write(code_shards.file_of(tmp_path, number), shard, {"model": "m"})
    write_json(tmp_path / code_shards.MANIFEST, {"shards": [{}] * 3})
    return tmp_path, shards


def test_what_is_written_is_read(folder):
    path, shards = folder
    for shard, found in zip(shards, code_shards.read_all(path, "key", "logits"), strict=True):
        assert found.num_bits == K
        np.testing.assert_array_equal(found.ids, shard.ids)
        np.testing.assert_array_equal(found.codes, shard.codes)
        assert found.keys == shard.keys
        np.testing.assert_allclose(found.code_logits, shard.code_logits, rtol=1e-3, atol=1e-7)
    assert {len(shard.ids) for shard in code_shards.read_all(f"{path}/00000[02].parquet")} == {
        50,
        20,
    }


def test_ids_are_the_number_of_the_shard_and_the_row(folder):
    _, shards = folder
    assert shards[2].ids[3] == 2 * 2**32 + int(shards[2].keys[3].split("/")[1])


def test_the_columns_are_those_of_other_programs(folder):
    import pyarrow.parquet as pq

    path, shards = folder
    table = pq.read_table(path / "000002.parquet")
    assert table.column_names == ["id", "key", "code", "logits"]
    bits = [
        [byte >> j & 1 for byte in code for j in range(8)][:K] for code in table["code"].to_pylist()
    ]
    np.testing.assert_array_equal(bits, shards[2].code_logits >= 0)
    assert json.loads(table.schema.metadata[b"num_bits"]) == K


def test_the_signs_of_logits_survive_rounding(tmp_path):
    logits = np.array([[-1e-9, 1e-9, 1e6, -1e6, 0.0, -0.0, -3.0, 6e-8]], np.float32)
    codes = packing.pack_on_host(logits)
    path = tmp_path / "000000.parquet"
    code_shards.write(path, code_shards.CodeShard(8, np.zeros(1, int), ["a"], codes, logits), {})
    found = code_shards.read(path, "logits")
    assert np.isfinite(found.code_logits).all()
    np.testing.assert_array_equal(packing.pack_on_host(found.code_logits), codes)


def test_names_of_some_items(folder):
    path, shards = folder
    ids = np.array([shards[2].ids[5], shards[0].ids[1], shards[2].ids[0], shards[2].ids[5]])
    assert code_shards.keys(path, ids) == {
        int(ids[0]): shards[2].keys[5],
        int(ids[1]): shards[0].keys[1],
        int(ids[2]): shards[2].keys[0],
    }
    for missing in (2**32, 9 * 2**32, int(shards[0].ids.max()) + 1):
        with pytest.raises(InputError, match="the index is of other codes"):
            code_shards.keys(path, np.array([missing]))


def test_all_codes_are_a_table(folder):
    path, shards = folder
    table = export.read(path)
    np.testing.assert_array_equal(table.ids, np.concatenate([shard.ids for shard in shards]))
    assert table.paths == tuple(key for shard in shards for key in shard.keys)
    assert table.code_logits.shape == (70, K)


def test_damage_is_seen(folder):
    path, _ = folder
    file = path / "000000.parquet"
    content = file.read_bytes()
    middle = len(content) // 4
    for damaged in (
        *(content[:100], content[:-1], b"", b"not Parquet"),
        content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    ):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="let llc encode --shards write it again"):
            code_shards.read(file, "key", "logits")
    assert code_shards.read_metadata(file) is not None  # It does not read the codes.
    file.write_bytes(content[:100])
    assert code_shards.read_metadata(file) is None
    file.unlink()
    assert code_shards.read_metadata(file) is None
    with pytest.raises(InputError, match=r"1 of 3 shards .* 000000.parquet the first"):
        code_shards.files(path)
    (path / code_shards.MANIFEST).unlink()
    with pytest.raises(InputError, match="has no manifest.json"):
        code_shards.files(path)
    with pytest.raises(InputError, match="There are no codes"):
        code_shards.files(path / "x*.parquet")


def test_other_parquet_is_refused(folder, tmp_path):
    path, _ = folder
    export.write(export.read(path), "parquet", tmp_path / "exported.parquet")
    with pytest.raises(InputError, match="its column code has large_list.*, not bytes"):
        code_shards.read(tmp_path / "exported.parquet")


def test_codes_of_several_models_are_not_mixed(folder):
    path, shards = folder
    code_shards.write(path / "000001.parquet", shards[1], {"model": "other"})
    with pytest.raises(InputError, match="of another model"):
        list(code_shards.read_all(path))
