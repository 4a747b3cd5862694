"""Codes of k bits <-> uint32 words <-> bytes.

Bit j of a code is bit `j % 32` of word `j // 32`, set iff the code has +1 there.
The unused high bits of the last word are 0. On disk, words are little endian.
"""

import jax
import jax.numpy as jnp
import numpy as np

from llc_jax.errors import InputError
from llc_jax.options import choose

MAX_BITS = 1024
WORD_BITS = 32

# Each byte with its bits in the other order.
_REVERSED = np.packbits(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), axis=1
)[:, 0]
# By the order of the bits in a byte: what each byte is in the order of the words, and back.
_BYTES_BY_ORDER = {"little": np.arange(256, dtype=np.uint8), "big": _REVERSED}
BIT_ORDERS = tuple(_BYTES_BY_ORDER)


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

    Example:
      >>> llc_jax.pack(np.array([[0.5, -1.0, 2.0], [-0.1, 0.3, 0.0]]))
      Array([[5],
             [6]], dtype=uint32)
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

    Example:
      >>> llc_jax.unpack(np.array([[5], [6]], np.uint32), num_bits=3)
      Array([[ 1, -1,  1],
             [-1,  1,  1]], dtype=int8)
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


def to_bytes(codes: np.ndarray | jax.Array, num_bits: int, bit_order: str = "little") -> np.ndarray:
    """Converts packed codes to the bytes that other programs take.

    Args:
      codes: uint32[N, ceil(k / 32)].
      num_bits: k, the bits of a code.
      bit_order: "little", where bit j of a code is bit j % 8 of byte j // 8, as for FAISS;
        or "big", where it is bit 7 - j % 8, as `np.packbits` has it by default, and with it
        Vespa and the precision `ubinary` of sentence-transformers.

    Returns:
      uint8[N, ceil(k / 8)]; unused bits are 0.

    Raises:
      InputError: if the codes have another form, or there is no such order.
    """
    reordered = choose(bit_order, _BYTES_BY_ORDER, "bit_order")
    code_bytes = to_little_endian(checked(codes, num_bits)).view(np.uint8)
    return reordered[code_bytes[:, : _num_bytes(num_bits)]]


def from_bytes(
    code_bytes: np.ndarray | jax.Array, num_bits: int, bit_order: str = "little"
) -> np.ndarray:
    """Converts bytes to packed codes, the inverse of `to_bytes`.

    Args:
      code_bytes: uint8[N, ceil(k / 8)].
      num_bits: k, the bits of a code.
      bit_order: as in `to_bytes`.

    Returns:
      uint32[N, ceil(k / 32)].

    Raises:
      InputError: if the bytes have another form, or bits set beyond `num_bits`, or there is
        no such order.
    """
    reordered = choose(bit_order, _BYTES_BY_ORDER, "bit_order")
    code_bytes = np.asarray(code_bytes)
    words, width = num_words(num_bits), _num_bytes(num_bits)
    if code_bytes.ndim != 2 or code_bytes.dtype != np.uint8 or code_bytes.shape[1] != width:
        raise InputError(
            f"The bytes of codes of {num_bits} bits are uint8[N, {width}], not "
            f"{code_bytes.dtype}{list(code_bytes.shape)}."
        )
    padded = np.zeros((len(code_bytes), 4 * words), np.uint8)
    padded[:, :width] = reordered[code_bytes]
    packed = padded.view("<u4").astype(np.uint32, copy=False)
    if has_stray_bits(packed[:, -1], num_bits):
        raise InputError(
            f"There are bytes with bits set beyond the first {num_bits} of a code, read with "
            f"bit_order={bit_order!r}: give the number of bits and the order they were written in."
        )
    return packed


def _num_bytes(num_bits: int) -> int:
    """Returns how many bytes hold a code."""
    return -(-num_bits // 8)


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
