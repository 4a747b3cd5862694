"""Bits counted by the processor's own instructions, for functions that Numba compiles."""

from collections.abc import Callable

import llvmlite.ir as ir
import numba
from numba.core import cgutils, types
from numba.extending import intrinsic

# Codes that `closer` looks at together.
LANES = 64

_WORD = ir.IntType(32)
_LANES = ir.VectorType(_WORD, LANES)


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
    """Returns the place of the lowest bit set in a uint64, int64; 64 where none is."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic
def closer(typing, columns, row, query, limit):
    """Compares a query with 64 codes at once.

    Args:
      columns: uint32[W, N], contiguous.
      row: the first of the codes, at most N - 64.
      query: uint32[W].
      limit: in bits.

    Returns:
      uint64, whose bit i is set iff code `row + i` is at less than `limit` bits.
    """

    def generate(context, builder, signature, arguments):
        columns = context.make_array(signature.args[0])(context, builder, arguments[0])
        query = context.make_array(signature.args[2])(context, builder, arguments[2])
        words, count = cgutils.unpack_tuple(builder, columns.shape, 2)
        count_bits = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_LANES, [_LANES]), f"llvm.ctpop.v{LANES}i32"
        )
        # Becomes registers: one for 16 codes, with AVX-512.
        distances = cgutils.alloca_once_value(builder, ir.Constant(_LANES, [0] * LANES))
        with cgutils.for_range(builder, words) as loop:
            place = builder.add(builder.mul(loop.index, count), arguments[1])
            pointer = builder.gep(columns.data, [place])
            codes = builder.load(builder.bitcast(pointer, _LANES.as_pointer()), align=4)
            own = _spread(builder, builder.load(builder.gep(query.data, [loop.index])))
            different = builder.call(count_bits, [builder.xor(codes, own)])
            builder.store(builder.add(builder.load(distances), different), distances)
        limit = _spread(builder, builder.trunc(arguments[3], _WORD))
        near = builder.icmp_unsigned("<", builder.load(distances), limit)
        return builder.bitcast(near, ir.IntType(LANES))

    return types.uint64(columns, types.int64, query, types.int64), generate


def _spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Returns a vector of one value."""
    single = builder.insert_element(ir.Constant(_LANES, ir.Undefined), value, _WORD(0))
    return builder.shuffle_vector(single, single, ir.Constant(_LANES, [0] * LANES))


@numba.njit(inline="always")
def distance(columns, row, query):
    """Returns the distance of code `row` of uint32[W, N] from a query, uint32[W]."""
    total = 0
    for word in range(len(query)):
        total += popcount(columns[word, row] ^ query[word])
    return total
