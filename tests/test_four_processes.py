"""Four processes train, measure, encode and index as one does."""

import json
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from llc_jax import cli
from llc_jax.data.sources import load_digits
from llc_jax.experiment.run import run
from tests import tiny
from tests.processes import finish, start_several
from tests.workdirs import STAGES, weights
from tests.writing import tar_bytes

COUNT = 4
ENCODE = "import sys; from llc_jax.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The workdirs of a run of one process on four devices, and of one of four processes."""
    # In folders of their own: a run borrows what lies beside it.
    one, four = (tmp_path_factory.mktemp(name) / "run" for name in ("one", "four"))
    run(tiny.tree(retrieval=(10,), decoders=("mhd",)), one, jax.devices()[:COUNT])
    options = ("--config.retrieval=(10,)", "--config.decoders=('mhd',)")
    for process in start_several(COUNT, four, *options, optimized=False):
        finish(process, timeout=300)
    return one, four


@pytest.mark.slow
def test_four_processes_train_and_measure_as_one(runs):
    one, four = runs
    expected, results = (json.loads((run / "results.json").read_text()) for run in runs)
    assert results.keys() == expected.keys()
    assert any(name.startswith("retrieval/") for name in expected)
    for name, value in expected.items():
        if "per_second" not in name:
            assert results[name] == pytest.approx(value, abs=1e-5), name
    for stage in STAGES:
        theirs = weights(one, stage)
        for key, value in weights(four, stage).items():
            np.testing.assert_allclose(value, theirs[key], atol=1e-5, rtol=1e-5, err_msg=key)


@pytest.mark.slow
def test_four_tasks_encode_and_index_as_one(runs, tmp_path):
    pytest.importorskip("pyarrow", reason="pip install pyarrow")
    images = load_digits().images[:280]
    for shard, of_shard in enumerate(np.split(images, 7)):
        files = {
            f"{i:03}.png": cv2.imencode(".png", x)[1].tobytes() for i, x in enumerate(of_shard)
        }
        (tmp_path / f"{shard}.tar").write_bytes(tar_bytes(files))
    encode = ["encode", f"--run={runs[1]}", "--shards", f"{tmp_path}/*.tar"]
    assert cli.main([*encode, f"--out={tmp_path}/one"]) == 0
    command = [sys.executable, "-c", ENCODE, *encode, f"--out={tmp_path}/four"]
    tasks = [subprocess.Popen([*command, f"--task={task}/{COUNT}"]) for task in range(COUNT)]
    assert [task.wait(300) for task in tasks] == [0] * COUNT
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / out).glob("*.parquet")}
        for out in ("one", "four")
    ]
    assert len(files[0]) == 7
    assert files[0] == files[1]
    for out in ("one", "four"):
        index = ["index", "--codes", f"{tmp_path}/{out}", f"--out={tmp_path}/{out}.index"]
        assert cli.main(index) == 0
    assert (tmp_path / "one.index").read_bytes() == (tmp_path / "four.index").read_bytes()
