"""From an instance code to a class.

`make(name, codebook)` gives a jitted function from packed codes, or from code
logits, to a `Decoded`; unpacked as a pair it is `labels, distances`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llc_jax.codes import hamming, packing
from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError

REJECTED = -1


class Decoded(NamedTuple):
    """What a decoder says of N instance codes.

    Attributes:
      labels: int32[N], the class; the lowest index where several classes fit
        equally well; -1 where the decoder accepts none.
      distances: int32[N], bits between the instance code and the nearest class
        code, whether it was accepted or not.
    """

    labels: jax.Array
    distances: jax.Array


def exact(codes: jax.Array, class_codes: jax.Array) -> Decoded:
    """Exact decoding (ED): the class whose code equals the instance code, else -1.

    Args:
      codes: uint32[N, W], packed instance codes.
      class_codes: uint32[L, W], packed class codes.

    References:
      LLC, section 4.1.1 and algorithm 2.
    """
    best = hamming.nearest(codes, class_codes)
    labels = jnp.where(best.distance == 0, best.index, REJECTED)
    return Decoded(labels, best.distance)


def minimum_hamming(codes: jax.Array, class_codes: jax.Array) -> Decoded:
    """Minimum Hamming decoding (MHD): the class with the nearest code.

    Args:
      codes: uint32[N, W], packed instance codes.
      class_codes: uint32[L, W], packed class codes.

    References:
      LLC, section 4.1.1 and algorithm 3.
    """
    best = hamming.nearest(codes, class_codes)
    return Decoded(best.index, best.distance)


_DECODERS = {"ed": exact, "mhd": minimum_hamming}


def make(name: str, codebook: Codebook) -> Callable[[jax.Array], Decoded]:
    """Makes the decoder `name` for a codebook.

    Args:
      name: "ed" or "mhd".
      codebook: L classes of k bits.

    Returns:
      A function of packed codes, uint32[N, ceil(k / 32)], or of code logits,
      float[N, k], that returns a `Decoded`.

    Raises:
      InputError: if there is no such decoder; from the function, if what it is
        given has not the codebook's number of bits.
    """
    if name not in _DECODERS:
        raise InputError(f"There is no decoder {name!r}; there are {', '.join(_DECODERS)}.")
    decode, class_codes = jax.jit(_DECODERS[name]), jnp.asarray(codebook.packed)

    def decoder(codes_or_logits: jax.Array) -> Decoded:
        return decode(_as_packed(codes_or_logits, codebook.num_bits), class_codes)

    return decoder


def _as_packed(codes_or_logits, num_bits: int) -> jax.Array:
    """Returns packed codes, whichever of the two forms was given."""
    given = jnp.asarray(codes_or_logits)
    if given.dtype == jnp.uint32 and given.shape[1:] == (packing.num_words(num_bits),):
        return given
    if jnp.issubdtype(given.dtype, jnp.floating) and given.shape[1:] == (num_bits,):
        return packing.pack(given)
    raise InputError(
        f"The codebook has {num_bits} bits: give uint32[N, {packing.num_words(num_bits)}] "
        f"or float[N, {num_bits}], not {given.dtype}{list(given.shape)}."
    )
