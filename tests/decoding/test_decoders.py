import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.decoding import decoders, soft
from llc_jax.errors import InputError
from llc_jax.mesh import batch_sharding, make_mesh

# name -> classes, bits, and how the latent values are made of random ones.
CODEBOOKS = {
    "one class, one bit": (1, 1, np.array),
    "one bit": (5, 1, np.array),
    "random, 8": (30, 8, np.array),
    "random, 20": (100, 20, np.array),
    "random, 32": (40, 32, np.array),
    "random, 33": (40, 33, np.array),
    "random, 64": (300, 64, np.array),
    "random, 1000": (12, 1000, np.array),
    "all equal": (50, 20, np.zeros_like),
    "pairs": (50, 20, lambda latent: np.roll(np.repeat(latent[::2], 2, axis=0), 1, axis=0)),
    "two far codes": (9, 64, lambda latent: np.sign(latent[:, :1]) * np.ones(64)),
}
DECODERS = {
    "ed": {},
    "mhd": {},
    "table": {},
    "radius": {"radius": 3},
    "chase": {"flips": 4},
    "soft": {},
}


def make_case(name, queries=70):
    """Returns a codebook and logits: random ones, near ones and equal ones."""
    classes, num_bits, change = CODEBOOKS[name]
    rng = np.random.default_rng(num_bits)
    # Whole numbers, so that sums are exact and ties are many.
    codebook = Codebook.from_numpy(change(rng.normal(size=(classes, num_bits))))
    signs = np.where(codebook.latent >= 0, 1, -1)[rng.integers(classes, size=queries)]
    logits = signs * rng.integers(1, 5, size=signs.shape)
    third = queries // 3
    logits[:third] *= np.where(rng.random((third, num_bits)) < 4 / num_bits, -1, 1)
    logits[third : 2 * third] = rng.integers(-4, 5, size=(third, num_bits))
    return codebook, logits.astype(np.float32)


def brute_force(name, codebook, logits, *, radius=None, flips=None, fallback="reject"):
    """Labels, distances and ties, from all distances and all scores."""
    class_signs = np.where(codebook.latent >= 0, 1, -1)
    signs = np.where(logits >= 0, 1, -1)
    distances = (signs[:, None] != class_signs[None]).sum(-1)
    scores = logits @ class_signs.T.astype(np.float32)
    rows = []
    for query, (distance, score) in enumerate(zip(distances, scores, strict=True)):
        near = np.flatnonzero(distance == distance.min())
        if name == "ed":
            near = near[distance[near] == 0]
        elif name == "radius":
            near = near[distance[near] <= radius]
        elif name in ("chase", "soft"):
            allowed = np.ones(len(score), bool)
            if name == "chase":
                weakest = np.argsort(np.abs(logits[query]), kind="stable")[:flips]
                strong = np.setdiff1d(np.arange(codebook.num_bits), weakest)
                allowed = (class_signs[:, strong] == signs[query, strong]).all(1)
            if allowed.any():
                label = np.flatnonzero(allowed & (score == score[allowed].max()))[0]
                near = np.flatnonzero((class_signs == class_signs[label]).all(1))
                near = np.concatenate([[label], near[near != label]])
            elif fallback == "nearest":
                near = np.flatnonzero((class_signs == class_signs[near[0]]).all(1))
            else:
                near = near[:0]
        rows.append((near[0], distance[near[0]], len(near)) if len(near) else (-1, -1, 0))
    return [np.array(column) for column in zip(*rows, strict=True)]


def assert_equal(results, expected, array_type=np.ndarray):
    for result, values in zip(results, expected, strict=True):
        assert isinstance(result, array_type)
        assert result.dtype == np.int32
        np.testing.assert_array_equal(result, values)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("case", CODEBOOKS)
def test_equals_brute_force(name, case):
    codebook, logits = make_case(case)
    options = dict(DECODERS[name])
    if name == "table" and codebook.num_bits > 24:
        with pytest.raises(InputError, match=f"8 times 2.{codebook.num_bits} bytes"):
            decoders.make(name, codebook)
        return
    if name == "chase":
        options["flips"] = min(options["flips"], codebook.num_bits)
    decoder = decoders.make(name, codebook, **options)
    expected = brute_force(name, codebook, logits, **options)
    assert_equal(decoder.details(logits), expected)
    assert_equal(decoder(logits), expected[:2])
    assert_equal(decoder.details(jnp.asarray(logits)), expected, jax.Array)
    assert_equal(decoder(jnp.asarray(logits)), expected[:2], jax.Array)
    if not decoder.needs_logits:
        codes = packing.pack(logits)
        assert_equal(decoder.details(codes), expected, jax.Array)
        assert_equal(decoder.details(np.asarray(codes)), expected)


@pytest.mark.parametrize("name", ["ed", "mhd", "table", "radius"])
@pytest.mark.parametrize("num_bits", [8, 33, 64])
def test_bits_beyond_the_code_are_refused(name, num_bits):
    codebook = Codebook.random(30, num_bits)
    if name == "table" and num_bits > 20:
        return
    decoder = decoders.make(name, codebook, **DECODERS[name])
    codes = codebook.packed[[3, 4, 5]].copy()
    expected = [array.copy() for array in decoder.details(codes)]
    if num_bits == 64:  # All bits of its words are used.
        assert_equal(decoder.details(jnp.asarray(codes)), expected, jax.Array)
        return
    for bit in (num_bits, 31 if num_bits < 32 else 63):
        stray = codes.copy()
        stray[1, -1] |= np.uint32(1 << bit % 32)
        for decode in (decoder, decoder.details):
            with pytest.raises(InputError, match=f"bits set beyond the first {num_bits}"):
                decode(stray)
        # The values of a JAX array may not be known yet: there such a code has no class.
        for column, none in zip(expected, (-1, -1, 0), strict=True):
            column[1] = none
        assert_equal(decoder.details(jnp.asarray(stray)), expected, jax.Array)
        assert_equal(jax.jit(lambda codes: decoder(codes))(stray), expected[:2], jax.Array)


@pytest.mark.parametrize("name", DECODERS)
def test_under_jit(name):
    codebook, logits = make_case("random, 20")
    decoder = decoders.make(name, codebook, **DECODERS[name])
    expected = brute_force(name, codebook, logits, **DECODERS[name])
    assert_equal(jax.jit(decoder.details)(logits), expected, jax.Array)
    # A NumPy array is a constant of the traced function.
    assert_equal(jax.jit(lambda: decoder(logits))(), expected[:2], jax.Array)


@pytest.mark.parametrize("num_bits", [1, 4, 9])
def test_the_table_holds_every_code(num_bits):
    latent = np.random.default_rng(0).normal(size=(7, num_bits))
    codebook = Codebook.from_numpy(np.concatenate([latent, latent[:2]]))
    every = np.where(np.arange(2**num_bits)[:, None] >> np.arange(num_bits) & 1, 1.0, -1.0)
    decoded = decoders.make("table", codebook).details(every.astype(np.float32))
    assert_equal(decoded, brute_force("mhd", codebook, every))


@pytest.mark.parametrize("flips", [0, 1, 2, 6, 10])
@pytest.mark.parametrize("fallback", ["reject", "nearest"])
def test_chase_goes_from_ed_or_mhd_to_soft(flips, fallback):
    rng = np.random.default_rng(0)
    codebook = Codebook.from_numpy(rng.normal(size=(60, 10)))
    logits = rng.integers(-50, 50, size=(200, 10)).astype(np.float32)
    decoder = decoders.make("chase", codebook, flips=flips, fallback=fallback)
    expected = brute_force("chase", codebook, logits, flips=flips, fallback=fallback)
    assert_equal(decoder.details(logits), expected)
    if flips in (0, 10):
        end = {0: {"reject": "ed", "nearest": "mhd"}[fallback], 10: "soft"}[flips]
        assert_equal(decoder(logits), decoders.make(end, codebook)(logits))


def test_many_classes_in_several_buckets_and_chunks():
    rng = np.random.default_rng(0)
    codebook = Codebook.random(5000, 40)
    logits = codebook.latent[rng.integers(5000, size=300)]
    logits = logits * np.where(rng.random(logits.shape) < 0.02, -1, 1).astype(np.float32)
    for name in ("ed", "mhd", "soft"):
        decoded = decoders.make(name, codebook)(logits)
        assert_equal(decoded, brute_force(name, codebook, logits)[:2])


def test_rows_sharded_over_a_mesh_stay_sharded():
    codebook, logits = make_case("random, 20", queries=64)
    batched = batch_sharding(make_mesh())
    for name, options in DECODERS.items():
        decoder = decoders.make(name, codebook, **options)
        labels, distances = decoder(jax.device_put(logits, batched))
        assert_equal((labels, distances), decoder(logits), jax.Array)
        assert labels.sharding.is_equivalent_to(batched, 1), name


def test_temperature_lowers_the_weight_of_a_bit_that_is_noise():
    # The first logit is large but random; the others are small and informative.
    rng = np.random.default_rng(0)
    codebook = Codebook.random(16, 10)
    labels = rng.integers(16, size=4000)
    logits = codebook.latent[labels] + rng.normal(size=(4000, 10))
    logits[:, 0] = 40 * rng.normal(size=4000)
    temperature = soft.fit_temperature(logits, labels, codebook.packed)
    assert temperature.dtype == np.float32
    assert temperature[0] == pytest.approx(100)
    # Of noise with variance 1 around +1 and -1, the log odds are 2 f.
    np.testing.assert_allclose(temperature[1:], 0.5, rtol=0.1)
    logits = logits.astype(np.float32)
    raw = (decoders.make("soft", codebook)(logits)[0] == labels).mean()
    fitted = (decoders.make("soft", codebook, temperature=temperature)(logits)[0] == labels).mean()
    assert fitted > raw + 0.2


def test_bad_input_is_named():
    codebook = Codebook.from_numpy(np.ones((3, 20)))
    with pytest.raises(InputError, match="no decoder 'chase4'; .* soft. Did you mean 'chase_4'"):
        decoders.make("chase4", codebook)
    with pytest.raises(InputError, match="no decoder 'nearest'; there are ed, mhd, table"):
        decoders.make("nearest", codebook)
    with pytest.raises(InputError, match=r"'mhd' uint32\[N, 1\] or float\[N, 20\], not uint32\[4"):
        decoders.make("mhd", codebook)(np.zeros((4, 2), np.uint32))
    with pytest.raises(InputError, match=r"'soft' float\[N, 20\], not uint32"):
        decoders.make("soft", codebook)(np.zeros((4, 1), np.uint32))
    with pytest.raises(InputError, match="'radius': missing a required .*argument: 'radius'"):
        decoders.make("radius", codebook)
    with pytest.raises(InputError, match="'mhd': got an unexpected keyword argument 'radius'"):
        decoders.make("mhd", codebook, radius=1)
    with pytest.raises(InputError, match="at least 0 bits, not -1"):
        decoders.make("radius", codebook, radius=-1)
    with pytest.raises(InputError, match="from 0 to 16, or all 20 bits, not 17"):
        decoders.make("chase", codebook, flips=17)
    with pytest.raises(InputError, match="'reject' or 'nearest', not 'none'"):
        decoders.make("chase", codebook, flips=2, fallback="none")
    with pytest.raises(InputError, match="20 positive numbers"):
        decoders.make("soft", codebook, temperature=np.zeros(20))
    with pytest.raises(
        InputError, match="28 bits takes up to 8 times .* memory_limit is 134,217,728: raise"
    ):
        decoders.make("table", Codebook.random(10, 28))
