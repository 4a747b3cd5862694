"""Codes of k bits <-> uint32 words.

Bit j of a code is bit `j % 32` of word `j // 32`, set iff the code has +1 there.
The unused high bits of the last word are 0. On disk, words are little endian.
"""

import jax
import jax.numpy as jnp
import numpy as np

from llc_jax.errors import InputError

MAX_BITS = 1024
WORD_BITS = 32


def num_words(num_bits: int) -> int:
    """Returns how many uint32 words hold a code of `num_bits` bits."""
    if not isinstance(num_bits, int | np.integer) or not 1 <= num_bits <= MAX_BITS:
        raise InputError(f"A code has between 1 and {MAX_BITS} bits, not {num_bits}.")
    return -(-num_bits // WORD_BITS)


@jax.jit
def pack(bits_or_logits: jax.Array) -> jax.Array:
    """Packs codes into words.

    Args:
      bits_or_logits: [..., k], either bool (True is +1) or a signed number, of
        which the sign counts (>= 0 is +1): codes of +1 and -1, or logits.

    Returns:
      uint32[..., ceil(k / 32)].

    Raises:
      InputError: for unsigned integers, where 0 and 1 would both read as +1.
    """
    bits = jnp.asarray(bits_or_logits)
    if jnp.issubdtype(bits.dtype, jnp.unsignedinteger):
        raise InputError(
            f"pack takes bool, +1/-1 or logits, not {bits.dtype}: write `bits == 1` "
            "for bits given as 0 and 1."
        )
    if bits.dtype != jnp.bool_:
        bits = bits >= 0
    num_bits = bits.shape[-1]
    words = num_words(num_bits)
    padding = [(0, 0)] * (bits.ndim - 1) + [(0, words * WORD_BITS - num_bits)]
    bits = jnp.pad(bits, padding).reshape(*bits.shape[:-1], words, WORD_BITS)
    shifted = jnp.left_shift(bits.astype(jnp.uint32), _shifts(bits.ndim))
    return jnp.sum(shifted, axis=-1, dtype=jnp.uint32)


def pack_on_host(logits: np.ndarray) -> np.ndarray:
    """Packs code logits as `pack` does, without a device: real[N, k] -> uint32[N, ceil(k / 32)]."""
    count, num_bits = logits.shape
    code_bytes = np.zeros((count, 4 * num_words(num_bits)), np.uint8)
    code_bytes[:, : -(-num_bits // 8)] = np.packbits(logits >= 0, axis=1, bitorder="little")
    return code_bytes.view("<u4").astype(np.uint32, copy=False)


def unpack(packed: jax.Array, num_bits: int) -> jax.Array:
    """Unpacks words into codes, the inverse of `pack`.

    Args:
      packed: uint32[..., ceil(num_bits / 32)].
      num_bits: k, the bits of a code.

    Returns:
      int8[..., num_bits] of +1 and -1.

    Raises:
      InputError: if the number of words does not fit `num_bits`.
    """
    packed = jnp.asarray(packed)
    if packed.dtype != jnp.uint32 or packed.shape[-1] != num_words(num_bits):
        raise InputError(
            f"Codes of {num_bits} bits are uint32[..., {num_words(num_bits)}], "
            f"not {packed.dtype}{list(packed.shape)}."
        )
    return _unpack(packed, num_bits)


@jax.jit(static_argnums=1)
def _unpack(packed, num_bits):
    bits = jnp.right_shift(packed[..., None], _shifts(packed.ndim + 1)) & 1
    bits = bits.reshape(*packed.shape[:-1], -1)[..., :num_bits]
    return (2 * bits.astype(jnp.int8) - 1).astype(jnp.int8)


def _shifts(ndim: int) -> jax.Array:
    """Returns 0..31 as the last axis of an array with `ndim` axes."""
    return jnp.arange(WORD_BITS, dtype=jnp.uint32).reshape((1,) * (ndim - 1) + (WORD_BITS,))


def checked(packed: np.ndarray | jax.Array, num_bits: int) -> np.ndarray:
    """Returns packed codes as a NumPy array, uint32[N, ceil(num_bits / 32)].

    Raises:
      InputError: if they have another form, or bits set beyond `num_bits`.
    """
    packed = np.asarray(packed)
    words = num_words(num_bits)
    if packed.ndim != 2 or packed.dtype != np.uint32 or packed.shape[1] != words:
        raise InputError(
            f"Codes of {num_bits} bits are uint32[N, {words}], not "
            f"{packed.dtype}{list(packed.shape)}: llc_jax.pack makes them."
        )
    if has_stray_bits(packed[:, -1], num_bits):
        raise InputError(f"There are codes with bits set beyond the first {num_bits}.")
    return packed


def has_stray_bits(last_words: np.ndarray, num_bits: int) -> bool:
    """Whether bits beyond `num_bits` are set in any of the last words of codes, uint32[N]."""
    used_bits = num_bits % WORD_BITS or WORD_BITS
    return int(last_words.max(initial=0)) >= 2**used_bits


def to_little_endian(packed: np.ndarray) -> np.ndarray:
    """Returns packed words as they are stored on disk."""
    return np.ascontiguousarray(packed, dtype="<u4")
