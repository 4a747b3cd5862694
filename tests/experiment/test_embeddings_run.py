import embeddings_20bit
import numpy as np
import pytest
from sklearn.datasets import make_blobs

import llc_jax
from llc_jax.errors import InputError
from llc_jax.experiment.run import run
from llc_jax.files import read_json


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
