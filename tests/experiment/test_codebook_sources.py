import numpy as np
import pytest

import llc_jax
from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.experiment.run import run
from tests.tiny import tree
from tests.workdirs import weights

DIGITS = tuple("0123456789")
LATENT = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)


def test_a_codebook_file_must_fit(tmp_path):
    codebook = Codebook.from_numpy(LATENT, DIGITS)
    cases = {
        "bits.npz": Codebook(codebook.latent[:, :6], codebook.class_names),
        "classes.npz": Codebook(codebook.latent[:9], codebook.class_names[:9]),
        "names.npz": Codebook(codebook.latent, tuple("abcdefghij")),
    }
    for name, case in cases.items():
        case.save(tmp_path / name)
        message = (
            "are not those of the data"
            if name == "names.npz"
            else "stage 'instance' has 10 classes"
        )
        with pytest.raises(InputError, match=message):
            run(tree(stages__instance__codebook=str(tmp_path / name)), tmp_path / "run")


def test_a_codebook_from_a_file(tmp_path):
    np.save(tmp_path / "official.npy", LATENT)
    changed = tree(stages__instance__codebook=str(tmp_path / "official.npy"))
    changed["stages"] = {"instance": changed["stages"]["instance"] | {"init_from": "scratch"}}
    results = run(changed, tmp_path / "run")
    codebook = Codebook.load(tmp_path / "run" / "codebook.npz")
    np.testing.assert_array_equal(codebook.latent, LATENT)
    assert codebook.class_names == DIGITS
    assert results["classification/bits_right"] > 4.5


@pytest.mark.slow
def test_codebooks_that_are_built(tmp_path, capsys):
    stages = tree()["stages"]
    codes = stages["instance"] | {"init_from": "linear", "epochs": 1}
    built = ("svd", "cca", "random", "hadamard")
    results = run(
        tree(
            stages={"linear": stages["linear"], **{n: codes | {"codebook": n} for n in built}},
            decoders=("mhd", "chase_2"),
        ),
        tmp_path,
    )
    for name in built:
        codebook = Codebook.load(tmp_path / name / "codebook.npz")
        assert (codebook.source, codebook.class_names) == (name, DIGITS)
        own = "" if name == "svd" else f"{name}/"
        assert results[f"codebook/{own}unique"] == codebook.num_unique
        assert results[f"classification/{own}bits_right"] > 4.5
        first = results[f"classification/{own}mhd_first"]
        assert results[f"decoding/{own}mhd/accuracy"] == pytest.approx(first)
        assert 0 <= results[f"decoding/{own}chase_2/rejected"] < 1
    kernel = weights(tmp_path, "linear")["['params']['head']['classifier']['kernel']"]
    expected = Codebook.svd(kernel.T, 8)
    np.testing.assert_array_equal(
        Codebook.load(tmp_path / "svd/codebook.npz").packed, expected.packed
    )
    assert "least distance" in capsys.readouterr().out


@pytest.mark.slow
def test_a_nested_codebook(tmp_path, capsys):
    results = run(tree(prefixes=(4, 6)), tmp_path)
    codebook = Codebook.load(tmp_path / "codebook.npz")
    for bits in (4, 6):
        assert results[f"codebook/prefix_{bits}/unique"] == codebook.prefix(bits).num_unique
        assert results[f"classification/prefix_{bits}/bits_right"] > 0.6 * bits
        assert 0 < results[f"classification/codebook/prefix_{bits}/mhd"] < 1
    assert "prefix_6" in capsys.readouterr().out
    images = np.zeros((3, 8, 8, 3), np.uint8)
    whole, part = llc_jax.load(tmp_path), llc_jax.load(tmp_path, num_bits=6)
    np.testing.assert_array_equal(part.code_logits(images), whole.code_logits(images)[:, :6])
    assert part.classify(images)[1].max() <= 6


def test_phase_1_can_start_from_a_codebook(tmp_path, capsys):
    latent = np.random.default_rng(0).normal(size=(10, 3))
    Codebook.from_numpy(latent).save(tmp_path / "start.npz")
    changed = tree(
        num_bits=3,
        stages__codebook__codebook=str(tmp_path / "start.npz"),
        stages__codebook__init_from="scratch",
        stages__codebook__optimizer__learning_rate=0.0,
    )
    changed["stages"] = {"codebook": changed["stages"]["codebook"]}
    results = run(changed, tmp_path / "run")
    learnt = Codebook.load(tmp_path / "run" / "codebook.npz")
    np.testing.assert_array_equal(learnt.latent, latent.astype(np.float32))
    assert results["codebook/unique"] <= 8
    assert "3 bits are too few for the classes" in capsys.readouterr().out
