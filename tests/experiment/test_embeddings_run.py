import embeddings_20bit
import folder_scratch_20bit
import numpy as np
import pytest
from sklearn.datasets import make_blobs

import llc_jax
from llc_jax.errors import InputError
from llc_jax.experiment.run import run
from llc_jax.files import read_json
from llc_jax.training.preemption import Stopped
from tests.experiment.test_run import record_losses
from tests.workdirs import assert_same_weights


def test_a_run_of_embeddings(tmp_path):
    X, y = make_blobs(400, 12, centers=5, random_state=0)
    np.savez(tmp_path / "a.npz", embeddings=X.astype(np.float32), labels=y)
    config = embeddings_20bit.get_config(f"{tmp_path}/a.npz").unlock()
    config.num_bits, config.min_steps = 8, 60
    for stage in config.stages.values():
        stage.epochs, stage.head.hidden = 1, (32,)
    results = run(config.to_dict(), tmp_path / "run")
    assert results["classification/mhd"] > 0.9
    model = llc_jax.load(tmp_path / "run")
    assert np.mean(model.classify(X.astype(np.float32), "soft")[0] == y) > 0.95
    assert read_json(tmp_path / "run" / "config.json")["data"]["embedding_size"] == 12
    images = config.to_dict()
    images["data"]["source"], images["data"]["in_memory"] = "digits", True
    images["data"]["augment"] = {"pad": 1, "flip": False}
    with pytest.raises(InputError, match="The data are images, which the backbone 'identity' does"):
        run(images, tmp_path / "other")
    wrong = config.to_dict() | {"model": {"name": "cnn", "dtype": "float32"}}
    with pytest.raises(InputError, match="are embeddings, which the backbone 'cnn' does not take"):
        run(wrong, tmp_path / "other")
    np.savez(tmp_path / "a.npz", embeddings=X[:, :9].astype(np.float32), labels=y)
    with pytest.raises(InputError, match="12"):
        run(config.to_dict(), tmp_path / "run")


def test_a_stopped_run_continues_and_a_folder_config_takes_embeddings(tmp_path, monkeypatch):
    X, y = make_blobs(200, 6, centers=10, random_state=1)
    np.savez(tmp_path / "a.npz", embeddings=X.astype(np.float32), labels=y)
    config = folder_scratch_20bit.get_config(f"embeddings:{tmp_path}/a.npz").unlock()
    config.batch_size = 32
    for stage in config.stages.values():
        stage.epochs = 2
    unbroken = run(config.to_dict(), tmp_path / "unbroken")
    assert read_json(tmp_path / "unbroken" / "config.json")["model"] == {"name": "identity"}
    losses = record_losses(monkeypatch, stop_at=15)
    with pytest.raises(Stopped):
        run(config.to_dict(), tmp_path / "run")
    assert len(losses) < 30
    assert run(config.to_dict(), tmp_path / "run") == unbroken
    assert_same_weights(tmp_path / "unbroken", tmp_path / "run")
