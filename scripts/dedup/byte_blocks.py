"""Sixty-four bytes at a time: the few vector instructions that numba has no Python for, written as LLVM vectors.

Each function loads BLOCK bytes at a position, whatever the alignment, and answers with bit masks (bit i: byte i).
LLVM lowers them to the widest registers that the processor has (one AVX-512 register, two AVX2, four NEON), with the
same result on each.
Trap: the caller sees to it that BLOCK bytes are readable at the position; nothing is checked here.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline_lib.compiled import kernel

BLOCK = 64
_BYTES = ir.VectorType(ir.IntType(8), BLOCK)
_WORD = ir.IntType(64)


def _all(value: int) -> ir.Constant:
    return ir.Constant(_BYTES, [value] * BLOCK)


def _pointer(context, builder, array_type, array, position, kind):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [position]), kind.as_pointer())


def _load(context, builder, array_type, array, position, kind=_BYTES):
    return builder.load(_pointer(context, builder, array_type, array, position, kind), align=1)


def _between(builder, block, low: int, high: int):
    """Return which bytes lie in low..high: one subtraction and one unsigned comparison."""
    return builder.icmp_unsigned("<=", builder.sub(block, _all(low)), _all(high - low))


def _mask(builder, bits):
    return builder.bitcast(bits, _WORD)


@intrinsic
def load_word(typing_context, data, position):
    """Return the eight bytes at `position` as a little-endian uint64."""

    def generate(context, builder, signature, arguments):
        return _load(context, builder, signature.args[0], arguments[0], arguments[1], _WORD)

    return types.uint64(data, types.int64), generate


@intrinsic
def trailing_zeros(typing_context, mask):
    """Return the position of the lowest set bit of a uint64, 64 when there is none."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic
def word_block(typing_context, data, position):
    """Return (mask of small letters, digits and underscores, mask of bytes from 128)."""

    def generate(context, builder, signature, arguments):
        block = _load(context, builder, signature.args[0], arguments[0], arguments[1])
        words = builder.or_(_between(builder, block, ord("a"), ord("z")), _between(builder, block, ord("0"), ord("9")))
        words = builder.or_(words, builder.icmp_unsigned("==", block, _all(ord("_"))))
        wide = builder.icmp_signed("<", block, _all(0))
        return cgutils.pack_array(builder, [_mask(builder, words), _mask(builder, wide)])

    return types.UniTuple(types.uint64, 2)(data, types.int64), generate


@intrinsic
def fold_block(typing_context, data, position, out, target):
    """Write BLOCK folded bytes to `out` at `target`; returns (mask of spaces, mask of bytes from 128).

    The fold of ASCII: capitals become small, white space and controls become spaces; bytes from 128 are copied.
    """

    def generate(context, builder, signature, arguments):
        block = _load(context, builder, signature.args[0], arguments[0], arguments[1])
        capital = _between(builder, block, ord("A"), ord("Z"))
        folded = builder.select(capital, builder.add(block, _all(32)), block)
        space = builder.or_(builder.icmp_unsigned("<=", block, _all(32)), builder.icmp_unsigned("==", block, _all(127)))
        folded = builder.select(space, _all(32), folded)
        target_block = _pointer(context, builder, signature.args[2], arguments[2], arguments[3], _BYTES)
        builder.store(folded, target_block, align=1)
        wide = builder.icmp_signed("<", block, _all(0))
        return cgutils.pack_array(builder, [_mask(builder, space), _mask(builder, wide)])

    return types.UniTuple(types.uint64, 2)(data, types.int64, out, types.int64), generate


@kernel(inline="always")
def low_bits(count):
    """Return the mask of the lowest `count` bits, 1 <= count <= 64 (a shift by 64 would be undefined)."""
    return np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - count)
