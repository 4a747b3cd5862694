"""Bits counted by the processor's own instructions, for functions that Numba compiles."""

from collections.abc import Callable

import llvmlite.ir as ir
import numba
from numba.core import cgutils, types
from numba.extending import intrinsic

# SIMD lanes: the codes that `below_threshold` compares together.
LANES = 64

_WORD = ir.IntType(32)
_VECTOR = ir.VectorType(_WORD, LANES)


def compiled(function: Callable) -> Callable:
    """Compiles a function at its first call, and keeps the result where it can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # Neither the package's folder nor the user's cache is writable.
        return numba.njit(nogil=True)(function)


@intrinsic
def popcount(typing, word):
    """Returns the number of bits set in a uint32 or uint64, int64."""

    def generate(context, builder, signature, arguments):
        count = builder.ctpop(arguments[0])
        return context.cast(builder, count, signature.args[0], types.int64)

    return types.int64(word), generate


@intrinsic
def lowest_bit(typing, mask):
    """Returns the position of the lowest bit set in a uint64, int64; 64 where none is."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic
def below_threshold(typing, columns, row, query, threshold):
    """Compares the distances of 64 codes from a query with a threshold.

    Args:
      columns: uint32[W, N], contiguous.
      row: the first of the codes, at most N - 64.
      query: uint32[W].
      threshold: in bits.

    Returns:
      uint64, whose bit i is set iff code `row + i` is at less than `threshold` bits.
    """

    def generate(context, builder, signature, arguments):
        columns = context.make_array(signature.args[0])(context, builder, arguments[0])
        query = context.make_array(signature.args[2])(context, builder, arguments[2])
        words, count = cgutils.unpack_tuple(builder, columns.shape, 2)
        vector_popcount = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.ctpop.v{LANES}i32"
        )
        # Becomes registers: one for 16 codes, with AVX-512.
        distances = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0] * LANES))
        with cgutils.for_range(builder, words) as loop:
            offset = builder.add(builder.mul(loop.index, count), arguments[1])
            pointer = builder.gep(columns.data, [offset])
            code_words = builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()), align=4)
            query_word = builder.load(builder.gep(query.data, [loop.index]))
            differences = builder.xor(code_words, _broadcast(builder, query_word))
            counts = builder.call(vector_popcount, [differences])
            builder.store(builder.add(builder.load(distances), counts), distances)
        threshold = _broadcast(builder, builder.trunc(arguments[3], _WORD))
        below = builder.icmp_unsigned("<", builder.load(distances), threshold)
        return builder.bitcast(below, ir.IntType(LANES))

    return types.uint64(columns, types.int64, query, types.int64), generate


def _broadcast(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Returns a vector that has one value in all lanes."""
    single = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, _WORD(0))
    return builder.shuffle_vector(single, single, ir.Constant(_VECTOR, [0] * LANES))


@numba.njit(inline="always")
def hamming_distance(columns, row, query):
    """Returns the distance of code `row` of uint32[W, N] from a query, uint32[W]."""
    total = 0
    for word in range(len(query)):
        total += popcount(columns[word, row] ^ query[word])
    return total
