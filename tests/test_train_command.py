import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import make_blobs

import llc_jax

SMALL = [
    f"--config.stages.{stage}.{option}"
    for stage in ("linear", "codebook", "instance")
    for option in ("head.hidden=(32,)", "epochs=1")
]


def llc(*arguments, status=0):
    """Runs the command; returns what it prints."""
    program = "import sys; from llc_jax.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def test_trains_codes_of_a_file_of_embeddings(tmp_path):
    X, y = make_blobs(200, 8, centers=3, random_state=0)
    np.savez(tmp_path / "a.npz", embeddings=X.astype(np.float32), labels=y)
    few = "--config.min_steps=40"
    out = llc("train", tmp_path / "a.npz", "--run", tmp_path / "run", "--bits", 6, few, *SMALL)
    assert "evaluation images of 3 classes" in out
    assert out.endswith(f"Run: {tmp_path}/run\n")
    assert llc_jax.load(tmp_path / "run").num_bits == 6


@pytest.mark.slow
def test_says_what_to_do_with_photos_next(tmp_path):
    # The digits stand for photos.
    run = tmp_path / "run"
    out = llc("train", "digits", "--run", run, *[o for o in SMALL if "epochs" in o])
    assert out.splitlines()[-4].strip() == f"llc classify --run {run} IMAGES"


def test_refuses_what_it_does_not_know(tmp_path):
    err = llc("train", "photos", "--run", tmp_path, "--epochs=3", status=2)
    assert err == "error: Expected --config.KEY=VALUE, not --epochs=3; see llc train --help.\n"
    err = llc("train", tmp_path / "none.npz", "--run", tmp_path / "run", status=2)
    assert err == f"error: There are no embeddings at {tmp_path}/none.npz.\n"
