"""From an instance code to a class.

`make(name, codebook)` gives a function of packed codes, or of code logits, to a pair:
labels and distances.

  ed      the class whose code equals the instance code, or none: one look-up
  mhd     the class with the nearest code: compares with all
  table   the same in one read, from a table of all 2^k codes
  radius  the class with the nearest code, or none where that is more than r bits away
  chase   ed, also where the p least reliable bits are wrong: 2^p look-ups
  soft    argmax of B(C) f: what chase comes to where all bits may be wrong
"""

import dataclasses
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

REJECTED = lookup.NONE

_SHORT = [
    (re.compile(r"radius_(?P<radius>\d+)"), "radius"),
    (re.compile(r"chase_(?P<flips>\d+)(_(?P<fallback>nearest))?"), "chase"),
]

_MOST_FLIPS = 16


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

    labels: jax.Array
    distances: jax.Array
    ties: jax.Array


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

    def __post_init__(self):
        pair = jax.jit(lambda given, arrays: self._decode(given, arrays)[:2])
        object.__setattr__(self, "_pair", pair)
        object.__setattr__(self, "_all", jax.jit(self._decode))

    @property
    def nbytes(self) -> int:
        """Bytes of what the decoder keeps of the codebook."""
        return sum(array.nbytes for array in jax.tree.leaves(self._arrays))

    def __call__(self, codes_or_logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Decodes N codes.

        Args:
          codes_or_logits: packed codes, uint32[N, ceil(k / 32)], or code logits,
            float[N, k]; on the devices of a mesh they stay split as they are.

        Returns:
          Labels and distances, as in `Decoded`.

        Raises:
          InputError: if it is of another form.
        """
        return self._pair(self._check(codes_or_logits), self._arrays)

    def details(self, codes_or_logits: jax.Array) -> Decoded:
        """Decodes N codes, and counts the ties; arguments as above."""
        return self._all(self._check(codes_or_logits), self._arrays)

    def _check(self, codes_or_logits: jax.Array) -> jax.Array:
        given, num_bits = jnp.asarray(codes_or_logits), self.codebook.num_bits
        words = packing.num_words(num_bits)
        if given.shape[1:] == (num_bits,) and jnp.issubdtype(given.dtype, jnp.floating):
            return given
        if given.shape[1:] == (words,) and given.dtype == jnp.uint32 and not self.needs_logits:
            return given
        packed = "" if self.needs_logits else f"uint32[N, {words}] or "
        raise InputError(
            f"The codebook has {num_bits} bits: give the decoder {self.name!r} "
            f"{packed}float[N, {num_bits}], not {given.dtype}{list(given.shape)}."
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
          "nearest", for where no class code is met ("reject").
        chase and soft: temperature, float32[k], of `soft.fit_temperature`.

    Raises:
      InputError: if there is no such decoder or option.

    References:
      LLC, section 4.1.1 and algorithms 2 (ed) and 3 (mhd).
    """
    kind, named = _read_name(name)
    if kind not in _DECODERS:
        raise InputError(f"There is no decoder {name!r}; there are {', '.join(_DECODERS)}.")
    try:
        inspect.signature(_DECODERS[kind]).bind(codebook, **named, **options)
    except TypeError as error:
        raise InputError(f"The decoder {name!r}: {error}.") from error
    return _DECODERS[kind](codebook, **named, **options)


def _read_name(name: str) -> tuple[str, dict[str, Any]]:
    """Splits "radius_2", "chase_4" or "chase_4_nearest" into a decoder and its options."""
    for pattern, kind in _SHORT:
        match = pattern.fullmatch(name)
        if match:
            given = {key: value for key, value in match.groupdict().items() if value}
            return kind, {k: int(v) if v.isdigit() else v for k, v in given.items()}
    return name, {}


def _ed(codebook: Codebook) -> Decoder:
    def decode(given, table):
        found = lookup.find(table, _packed(given))
        return Decoded(found.label, jnp.where(found.label == REJECTED, REJECTED, 0), found.count)

    return Decoder("ed", codebook, False, decode, lookup.build(codebook.packed))


def _mhd(codebook: Codebook) -> Decoder:
    def decode(given, class_codes):
        return Decoded(*hamming.nearest(_packed(given), class_codes))

    return Decoder("mhd", codebook, False, decode, jnp.asarray(codebook.packed))


def _table(codebook: Codebook, *, memory_limit: int = tables.MEMORY_LIMIT) -> Decoder:
    def decode(given, table):
        codes = _packed(given)
        return Decoded(*tables.read(table, codes), table.ties[codes[:, 0]])

    table = tables.build(codebook.packed, codebook.num_bits, memory_limit)
    return Decoder("table", codebook, False, decode, table)


def _radius(codebook: Codebook, *, radius: int) -> Decoder:
    if radius < 0:
        raise InputError(f"The radius is at least 0 bits, not {radius}.")

    def decode(given, class_codes):
        best = hamming.nearest(_packed(given), class_codes)
        near = best.distance <= radius
        return Decoded(
            jnp.where(near, best.index, REJECTED),
            jnp.where(near, best.distance, REJECTED),
            jnp.where(near, best.ties, 0),
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
    if not 0 <= flips <= min(_MOST_FLIPS, codebook.num_bits):
        raise InputError(
            f"flips is from 0 to {min(_MOST_FLIPS, codebook.num_bits)}, or all "
            f"{codebook.num_bits} bits, not {flips}."
        )
    if fallback not in ("reject", "nearest"):
        raise InputError(f"fallback is 'reject' or 'nearest', not {fallback!r}.")

    def decode(given, arrays):
        table, class_codes, scale = arrays
        labels, codes = soft.chase(given * scale, table, flips), packing.pack(given)
        if fallback == "nearest":
            nearest = hamming.nearest(codes, class_codes).index
            labels = jnp.where(labels == REJECTED, nearest, labels)
        return _decoded(labels, codes, class_codes, table)

    return Decoder("chase", codebook, True, decode, _soft_arrays(codebook, temperature))


def _soft(codebook: Codebook, *, temperature: np.ndarray | None = None) -> Decoder:
    def decode(given, arrays):
        table, class_codes, scale = arrays
        labels = soft.best_class(given * scale, class_codes)
        return _decoded(labels, packing.pack(given), class_codes, table)

    return Decoder("soft", codebook, True, decode, _soft_arrays(codebook, temperature))


_DECODERS = {
    "ed": _ed,
    "mhd": _mhd,
    "table": _table,
    "radius": _radius,
    "chase": _chase,
    "soft": _soft,
}


def _packed(given: jax.Array) -> jax.Array:
    """Returns packed codes, whichever of the two forms is given."""
    return given if given.dtype == jnp.uint32 else packing.pack(given)


def _soft_arrays(codebook: Codebook, temperature: np.ndarray | None) -> tuple:
    """Returns the look-up, the class codes, and what to multiply code logits with."""
    num_bits = codebook.num_bits
    temperature = np.ones(num_bits) if temperature is None else np.asarray(temperature)
    if temperature.shape != (num_bits,) or not (temperature > 0).all():
        raise InputError(f"temperature is {num_bits} positive numbers, one a bit.")
    scale = jnp.asarray(1 / temperature, jnp.float32)[None]
    return lookup.build(codebook.packed), jnp.asarray(codebook.packed), scale


def _decoded(labels, codes, class_codes, table) -> Decoded:
    """Adds the distances and the ties to labels, of which some may be rejected."""
    accepted, chosen = labels != REJECTED, class_codes[labels]
    return Decoded(
        labels,
        jnp.where(accepted, hamming.distance(codes, chosen), REJECTED),
        jnp.where(accepted, lookup.find(table, chosen).count, 0),
    )
