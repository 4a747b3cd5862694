import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llc_jax.errors import InputError
from llc_jax.mesh import make_mesh, replicated_sharding
from llc_jax.training.checkpoint import Checkpoints, restore_weights


def state(value):
    return {
        "params": {"w": jnp.full((4, 3), value), "blocks": {0: jnp.full(2, value)}},
        "batch_stats": {"mean": jnp.full(3, value)},
        "step": jnp.int32(value),
    }


def abstract(tree, devices=8):
    whole = replicated_sharding(make_mesh(jax.devices()[:devices]))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), tree)


def test_keeps_the_latest_and_restores_it_on_any_devices(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step is None
        for step in (1, 2, 3):
            checkpoints.save(step, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 3
        for devices in (1, 8):
            restored = checkpoints.restore(abstract(state(0), devices))
            jax.tree.map(np.testing.assert_array_equal, restored, state(3))


def test_a_full_disk_is_seen_before_the_first_step(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.check_space(abstract(state(0)))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
        with pytest.raises(InputError, match=r"2 checkpoints needs .* has 0.0 MB free"):
            checkpoints.check_space(abstract(state(0)))


def test_weights_alone(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state(7))
    wanted = {name: state(0)[name] for name in ("params", "batch_stats")}
    restored = restore_weights(tmp_path, abstract(wanted))
    assert restored.keys() == wanted.keys()
    np.testing.assert_array_equal(restored["params"]["w"], np.full((4, 3), 7))


def test_what_cannot_be_restored_is_named(tmp_path):
    with pytest.raises(InputError, match="There is no checkpoint in .*nowhere"):
        restore_weights(tmp_path / "nowhere", abstract(state(0)))
    assert not (tmp_path / "nowhere").exists()
    with Checkpoints(tmp_path / "empty") as checkpoints:
        with pytest.raises(InputError, match="There is no checkpoint in .*empty"):
            checkpoints.restore(abstract(state(0)))
    with Checkpoints(tmp_path / "other") as checkpoints:
        checkpoints.save(7, state(7))
        changed = state(0) | {"params": {"w": jnp.zeros((5, 5))}}
        with pytest.raises(InputError, match="checkpoint of step 7 in .*other cannot be used"):
            checkpoints.restore(abstract(changed))
