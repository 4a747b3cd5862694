import random
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llc_jax.errors import InputError
from llc_jax.files import WriteFailed
from llc_jax.mesh import make_mesh, replicated_sharding
from llc_jax.training import checksums
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


def save(directory, *steps):
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))


def flip_bit(path, bit):
    """Inverts one bit of a file, counted from its start."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def saved_files(checkpoint):
    """Returns the files with data, of which a damaged one must be noticed."""
    return sorted(path for path in checkpoint.glob("*/**/*") if path.is_file())


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


def test_weights_that_a_run_at_work_replaces_are_the_newest(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def replace(path):
        if path.name == "2":
            return True
        save(tmp_path, 2)
        shutil.rmtree(path)
        return False  # Its checksums are gone, too.

    monkeypatch.setattr(checksums, "check_whole", replace)
    weights = {key: state(2)[key] for key in ("params", "batch_stats")}
    restored = restore_weights(tmp_path, abstract(weights))
    jax.tree.map(np.testing.assert_array_equal, restored, weights)


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


def test_a_flipped_bit_sets_the_newest_aside_and_the_one_before_continues(tmp_path):
    save(tmp_path / "saved", 1, 2)
    rng = random.Random(0)
    for path in [*saved_files(tmp_path / "saved" / "2"), tmp_path / "saved/2/checksums.json"]:
        copy = shutil.copytree(tmp_path / "saved", tmp_path / "copy")
        damaged = copy / path.relative_to(tmp_path / "saved")
        flip_bit(damaged, rng.randrange(8 * damaged.stat().st_size))
        with Checkpoints(copy) as checkpoints:
            assert len(checkpoints.remarks) == 1
            assert f"The checkpoint {copy}/2 is damaged (" in checkpoints.remarks[0]
            assert checkpoints.latest_step == 1
            restored = checkpoints.restore(abstract(state(0)))
            jax.tree.map(np.testing.assert_array_equal, restored, state(1))
            checkpoints.save(2, state(2))
        assert sorted(path.name for path in copy.iterdir()) == ["1", "2", "2.damaged1"]
        shutil.rmtree(copy)


def test_all_damaged_is_one_sentence_and_then_a_new_beginning(tmp_path):
    save(tmp_path, 1, 2)
    for step in ("1", "2"):
        saved_files(tmp_path / step)[0].write_bytes(b"")
    with pytest.raises(InputError, match=r"/2 is damaged .*/1 is damaged .*from its beginning"):
        Checkpoints(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None
        assert checkpoints.remarks == ()


def test_damaged_weights_are_refused_and_left_as_they_are(tmp_path):
    save(tmp_path, 1, 2)
    saved_files(tmp_path / "2")[-1].unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"/2 is damaged \(default/.*: No such file or directory"):
        restore_weights(tmp_path, abstract(state(0)))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_without_checksums_is_restored_and_said_to_be(tmp_path):
    save(tmp_path, 7)
    (tmp_path / "7" / "checksums.json").unlink()
    wanted = abstract({name: state(0)[name] for name in ("params", "batch_stats")})
    with pytest.warns(UserWarning, match="/7 has no checksums: damage to it would go unnoticed"):
        restore_weights(tmp_path, wanted)
    with Checkpoints(tmp_path) as checkpoints:
        assert len(checkpoints.remarks) == 1
        jax.tree.map(
            np.testing.assert_array_equal, checkpoints.restore(abstract(state(0))), state(7)
        )


def test_a_checkpoint_that_cannot_be_written_is_one_sentence(tmp_path, caplog):
    old, large = resource.getrlimit(resource.RLIMIT_FSIZE), {"w": np.random.rand(2**15)}
    with pytest.raises(WriteFailed, match=r"step 2 in .* \(File too large\): allow larger files"):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, state(1))
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, old[1]))
            try:
                checkpoints.save(2, large)
                checkpoints.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "Traceback" not in caplog.text
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 1
        checkpoints.save(2, state(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_checkpoints_that_were_removed_are_one_sentence(tmp_path):
    with pytest.raises(WriteFailed, match="No such file or directory.*directory was removed"):
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            checkpoints.save(1, state(1))
            checkpoints.wait()
            shutil.rmtree(tmp_path / "checkpoints")
            checkpoints.save(2, state(2))
    assert not (tmp_path / "checkpoints").exists()
