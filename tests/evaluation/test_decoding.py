import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llc_jax.codes.codebook import Codebook
from llc_jax.data import pipeline
from llc_jax.decoding import decoders
from llc_jax.evaluation.decoding import Decoding
from llc_jax.mesh import batch_sharding, make_mesh
from llc_jax.models.heads import Output


def test_figures_of_each_decoder():
    rng = np.random.default_rng(0)
    codebook = Codebook.random(12, 8)
    labels = rng.integers(12, size=203).astype(np.int32)
    logits = codebook.latent[labels] + rng.normal(size=(203, 8)).astype(np.float32)
    images = np.zeros((203, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(203)
    table = jnp.asarray(logits)
    encode = jax.jit(lambda images: Output(table[images[:, 0, 0, 0].astype(jnp.int32)], None))
    batched = batch_sharding(make_mesh())
    batches = pipeline.eval_batches(
        pipeline.InMemory(images, labels), pipeline.ProcessShard.of(batched, 16)
    )
    names = ("ed", "mhd", "table", "radius_1", "chase_3", "chase_3_nearest", "soft")
    figures = Decoding(encode, codebook, names).run(pipeline.on_devices(batches, batched))
    for name in names:
        expected = np.asarray(decoders.make(name, codebook)(logits)[0])
        assert figures.pop(f"{name}/accuracy") == pytest.approx((expected == labels).mean())
        assert figures.pop(f"{name}/rejected") == pytest.approx((expected == -1).mean())
        assert figures.pop(f"{name}/codes_per_second") > 0
    assert not figures
