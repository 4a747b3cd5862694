"""From an instance code to a class.

`make(name, codebook)` gives a function of packed codes, or of code logits, to a pair:
labels and distances.

  ed      the class whose code equals the instance code, or none: one look-up
  mhd     the class with the nearest code: compares with all
  table   the same in one read, from a table of all 2^k codes
  radius  the class with the nearest code, or none where that is more than r bits away
  chase   ed, also where the p least reliable bits are wrong: 2^p look-ups
  soft    argmax of B(C) f: the same as chase where any of the bits may be wrong

NumPy arrays give NumPy arrays; JAX arrays give JAX arrays, on their devices.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llc_jax.codes import hamming, packing
from llc_jax.codes.codebook import Codebook
from llc_jax.decoding import lookup, soft
from llc_jax.decoding import table as tables
from llc_jax.errors import InputError
from llc_jax.options import suggest

REJECTED = lookup.NONE

# Names that state a decoder's options too.
_NAMES_WITH_OPTIONS = [
    (re.compile(r"radius_(?P<radius>\d+)"), "radius"),
    (re.compile(r"chase_(?P<flips>\d+)(_(?P<fallback>nearest))?"), "chase"),
]
# A name of each form.
_EXAMPLES = ("ed", "mhd", "table", "radius_2", "chase_4", "chase_4_nearest", "soft")

_MAX_FLIPS = 16


class Decoded(NamedTuple):
    """What a decoder says of N instance codes.

    Attributes:
      labels: int32[N], the class, the lowest index where several fit equally well; -1
        where the decoder accepts none.
      distances: int32[N], bits between the instance code and the code of that class;
        -1 where there is none.
      ties: int32[N], how many classes fit equally well: of `ed`, `chase` and `soft`
        those that share the code, of the others all at that distance; 0 where there
        is none.
    """

    labels: jax.Array | np.ndarray
    distances: jax.Array | np.ndarray
    ties: jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A decoder of a codebook; see `make`.

    Attributes:
      name: of the decoder.
      codebook: L classes of k bits.
      needs_logits: whether it decodes code logits only.
    """

    name: str
    codebook: Codebook
    needs_logits: bool
    _decode: Callable[[jax.Array, Any], Decoded]
    _arrays: Any
    # Of NumPy arrays, where there is a faster way: (array, whether to count ties). It refuses
    # codes with bits set beyond k itself.
    _decode_on_host: Callable[[np.ndarray, bool], tuple[np.ndarray, ...]] | None = None

    def __post_init__(self):
        def decode(codes_or_logits, arrays):
            decoded = self._decode(codes_or_logits, arrays)
            return _without_stray_bits(decoded, codes_or_logits, self.codebook.num_bits)

        def decode_without_ties(codes_or_logits, arrays):
            return decode(codes_or_logits, arrays)[:2]

        object.__setattr__(self, "_compiled_without_ties", jax.jit(decode_without_ties))
        object.__setattr__(self, "_compiled", jax.jit(decode))

    @property
    def nbytes(self) -> int:
        """Bytes of what the decoder keeps of the codebook, on a device."""
        return sum(array.nbytes for array in jax.tree.leaves(self._arrays))

    def __call__(
        self, codes_or_logits: jax.Array | np.ndarray
    ) -> tuple[jax.Array, jax.Array] | tuple[np.ndarray, np.ndarray]:
        """Decodes N codes.

        Args:
          codes_or_logits: packed codes, uint32[N, ceil(k / 32)], or code logits,
            float[N, k]. A JAX array may be sharded by rows over the devices of a mesh.

        Returns:
          Labels and distances, as in `Decoded`: NumPy arrays of a NumPy array; JAX
          arrays of a JAX array, on the same devices and sharded alike. In a JAX array,
          whose values may not be known yet, codes with bits set beyond k have no class:
          label and distance are -1.

        Raises:
          InputError: if it is of another form, or a NumPy array has codes with bits set
            beyond k.
        """
        return self._run(codes_or_logits, self._compiled_without_ties, with_ties=False)

    def details(self, codes_or_logits: jax.Array | np.ndarray) -> Decoded:
        """Decodes N codes, and counts the ties; arguments as above."""
        return Decoded(*self._run(codes_or_logits, self._compiled, with_ties=True))

    def _run(self, codes_or_logits, compiled: Callable, *, with_ties: bool) -> tuple:
        if isinstance(codes_or_logits, jax.Array):
            self._check(codes_or_logits)
            return compiled(codes_or_logits, self._arrays)
        array = np.asarray(codes_or_logits)
        self._check(array)
        if self._decode_on_host is not None:
            return self._decode_on_host(array, with_ties)
        if array.dtype == np.uint32:
            packing.checked(array, self.codebook.num_bits)
        # Also while another function is traced, of which the array is then a constant.
        with jax.ensure_compile_time_eval():
            return tuple(np.asarray(result) for result in compiled(array, self._arrays))

    def _check(self, array: jax.Array | np.ndarray) -> None:
        num_bits = self.codebook.num_bits
        words = packing.num_words(num_bits)
        if array.dtype == np.uint32 and array.shape[1:] == (words,) and not self.needs_logits:
            return
        if array.shape[1:] == (num_bits,) and jnp.issubdtype(array.dtype, jnp.floating):
            return
        packed = "" if self.needs_logits else f"uint32[N, {words}] or "
        raise InputError(
            f"The codebook has {num_bits} bits: give the decoder {self.name!r} "
            f"{packed}float[N, {num_bits}], not {array.dtype}{list(array.shape)}."
        )


def make(name: str, codebook: Codebook, **options) -> Decoder:
    """Makes a decoder for a codebook.

    Args:
      name: "ed", "mhd", "table", "radius", "chase" or "soft"; "radius_2" and "chase_4"
        or "chase_4_nearest" name the options too.
      codebook: L classes of k bits.
      **options: of that decoder:
        table: memory_limit, in bytes (2^27, which k = 24 needs).
        radius: radius, in bits.
        chase: flips, p from 0 to 16, or k, which is "soft"; fallback, "reject" or
          "nearest", for where no class has any of the codes ("reject").
        chase and soft: temperature, float32[k], of `soft.fit_temperature`.

    Raises:
      InputError: if there is no such decoder or option.

    References:
      LLC, section 4.1.1 and algorithms 2 (ed) and 3 (mhd).

    Example:
      >>> codebook = llc_jax.Codebook.from_numpy(np.array([[1, -1, 1], [-1, 1, 1]]))
      >>> codes = np.array([[0b101], [0b010]], np.uint32)
      >>> labels, distances = llc_jax.decoders.make("mhd", codebook)(codes)
      >>> labels, distances
      (array([0, 1], dtype=int32), array([0, 1], dtype=int32))
      >>> llc_jax.decoders.make("ed", codebook)(codes)[0]
      array([ 0, -1], dtype=int32)
    """
    kind, name_options = _parse_name(name)
    if kind not in _DECODERS:
        raise InputError(
            f"There is no decoder {name!r}; there are {', '.join(_EXAMPLES)}."
            + suggest(name, _EXAMPLES)
        )
    try:
        inspect.signature(_DECODERS[kind]).bind(codebook, **name_options, **options)
    except TypeError as error:
        raise InputError(f"The decoder {name!r}: {error}.") from error
    return _DECODERS[kind](codebook, **name_options, **options)


def _parse_name(name: str) -> tuple[str, dict[str, Any]]:
    """Splits "radius_2", "chase_4" or "chase_4_nearest" into a decoder and its options."""
    for pattern, kind in _NAMES_WITH_OPTIONS:
        match = pattern.fullmatch(name)
        if match:
            options = {key: value for key, value in match.groupdict().items() if value}
            return kind, {k: int(v) if v.isdigit() else v for k, v in options.items()}
    return name, {}


def _ed(codebook: Codebook) -> Decoder:
    def decode(codes_or_logits, table):
        match = lookup.look_up(table, _packed(codes_or_logits))
        return Decoded(match.label, jnp.where(match.label == REJECTED, REJECTED, 0), match.count)

    return Decoder("ed", codebook, False, decode, lookup.build(codebook.packed))


def _mhd(codebook: Codebook) -> Decoder:
    def decode(codes_or_logits, class_codes):
        return Decoded(*hamming.nearest(_packed(codes_or_logits), class_codes))

    return Decoder("mhd", codebook, False, decode, jnp.asarray(codebook.packed))


def _table(codebook: Codebook, *, memory_limit: int = tables.MEMORY_LIMIT) -> Decoder:
    table = tables.build(codebook.packed, codebook.num_bits, memory_limit)
    # On a CPU these are views of the same memory.
    host_table = functools.cache(lambda: jax.tree.map(np.asarray, table))

    def decode(codes_or_logits, table):
        codes = _packed(codes_or_logits)
        return Decoded(*tables.read(table, codes), table.ties[codes[:, 0]].astype(jnp.int32))

    def decode_on_host(array, with_ties):
        if array.dtype != np.uint32:
            with jax.ensure_compile_time_eval():
                array = np.asarray(packing.pack(array))
        return tables.read_on_host(host_table(), array, with_ties)

    return Decoder("table", codebook, False, decode, table, decode_on_host)


def _radius(codebook: Codebook, *, radius: int) -> Decoder:
    hamming.check_radius(radius)

    def decode(codes_or_logits, class_codes):
        best = hamming.nearest(_packed(codes_or_logits), class_codes)
        within = best.distance <= radius
        return Decoded(
            jnp.where(within, best.index, REJECTED),
            jnp.where(within, best.distance, REJECTED),
            jnp.where(within, best.ties, 0),
        )

    return Decoder("radius", codebook, False, decode, jnp.asarray(codebook.packed))


def _chase(
    codebook: Codebook,
    *,
    flips: int,
    fallback: str = "reject",
    temperature: np.ndarray | None = None,
) -> Decoder:
    if flips == codebook.num_bits:
        return _soft(codebook, temperature=temperature)
    if not 0 <= flips <= min(_MAX_FLIPS, codebook.num_bits):
        raise InputError(
            f"flips is from 0 to {min(_MAX_FLIPS, codebook.num_bits)}, or all "
            f"{codebook.num_bits} bits, not {flips}."
        )
    if fallback not in ("reject", "nearest"):
        raise InputError(f"fallback is 'reject' or 'nearest', not {fallback!r}.")

    def decode(logits, arrays):
        table, class_codes, scale = arrays
        labels, codes = soft.chase(logits * scale, table, flips), packing.pack(logits)
        if fallback == "nearest":
            nearest = hamming.nearest(codes, class_codes).index
            labels = jnp.where(labels == REJECTED, nearest, labels)
        return _decoded(labels, codes, class_codes, table)

    return Decoder("chase", codebook, True, decode, _soft_arrays(codebook, temperature))


def _soft(codebook: Codebook, *, temperature: np.ndarray | None = None) -> Decoder:
    def decode(logits, arrays):
        table, class_codes, scale = arrays
        labels = soft.best_class(logits * scale, class_codes)
        return _decoded(labels, packing.pack(logits), class_codes, table)

    return Decoder("soft", codebook, True, decode, _soft_arrays(codebook, temperature))


_DECODERS = {
    "ed": _ed,
    "mhd": _mhd,
    "table": _table,
    "radius": _radius,
    "chase": _chase,
    "soft": _soft,
}


def _packed(codes_or_logits: jax.Array) -> jax.Array:
    """Returns packed codes, unchanged where they are packed already."""
    packed = codes_or_logits.dtype == jnp.uint32
    return codes_or_logits if packed else packing.pack(codes_or_logits)


def _without_stray_bits(decoded: Decoded, codes_or_logits: jax.Array, num_bits: int) -> Decoded:
    """Returns what was decoded, with no class for codes that have bits set beyond `num_bits`."""
    used_bits = num_bits % packing.WORD_BITS
    if codes_or_logits.dtype != jnp.uint32 or not used_bits:
        return decoded
    valid = codes_or_logits[:, -1] >> used_bits == 0
    none = Decoded(REJECTED, REJECTED, 0)
    return jax.tree.map(lambda values, value: jnp.where(valid, values, value), decoded, none)


def _soft_arrays(codebook: Codebook, temperature: np.ndarray | None) -> tuple:
    """Returns the hash table, the class codes, and the scale of the code logits, f32[1, k]."""
    num_bits = codebook.num_bits
    temperature = np.ones(num_bits) if temperature is None else np.asarray(temperature)
    if temperature.shape != (num_bits,) or not (temperature > 0).all():
        raise InputError(f"temperature is {num_bits} positive numbers, one a bit.")
    scale = jnp.asarray(1 / temperature, jnp.float32)[None]
    return lookup.build(codebook.packed), jnp.asarray(codebook.packed), scale


def _decoded(labels, codes, class_codes, table) -> Decoded:
    """Adds the distances and the ties to labels, of which some may be rejected."""
    accepted, label_codes = labels != REJECTED, class_codes[labels]
    return Decoded(
        labels,
        jnp.where(accepted, hamming.distance(codes, label_codes), REJECTED),
        jnp.where(accepted, lookup.look_up(table, label_codes).count, 0),
    )
