"""Lines made of symbols only ("-----", "| | |") taken out, as FineWeb 2 does before it scores a page.

Off by default: a table's rule and a heading's underline are such lines, and normalisation keeps structure.
"""

from typing import TYPE_CHECKING

import numpy as np

from pipeline_lib.compiled import kernel

from .arrow_text import text_array, text_buffers
from .characters import PUNCTUATION, character_classes
from .lines import NEWLINE, visible_span
from .words import class_of, decode

if TYPE_CHECKING:
    import pyarrow


def remove_symbol_lines(texts: "pyarrow.Array", replacement: str, exempt: np.ndarray) -> "pyarrow.Array":
    """Return normalised texts without lines that hold punctuation and spaces only (large_string).

    replacement: what stands for a run of such lines, as a line of its own; empty for nothing. exempt: bool[documents],
    those that are left as they are.
    """
    data, offsets = text_buffers(texts)
    mark = np.frombuffer(replacement.encode(), np.uint8)
    room = int(offsets[-1] - offsets[0]) * (1 + mark.size) + 1  # a line of one symbol becomes the replacement at worst
    out, out_offsets = np.empty(room, np.uint8), np.zeros(len(offsets), np.int64)
    end = _remove_batch(data, offsets, exempt, character_classes(), mark, out, out_offsets)
    return text_array(out[:end], out_offsets)


@kernel
def _only_symbols(data, start, end, classes):
    """Whether data[start:end] is punctuation and blanks, with at least one visible character."""
    left, right = visible_span(data, start, end, classes)
    if left == right:
        return False
    position = start
    while position < end:
        code_point, width = decode(data, position)
        if code_point != 0x20 and not class_of(classes, code_point) & PUNCTUATION:
            return False
        position += width
    return True


@kernel
def _append(source, start, end, out, at, first):
    """Write source[start:end] to out[at:] as the next line of the document that begins at out[first]."""
    if at != first:
        out[at - 1] = NEWLINE
    for i in range(start, end):
        out[at + i - start] = source[i]
    return at + end - start + 1  # room for the line end


@kernel
def _remove_batch(data, offsets, exempt, classes, mark, out, out_offsets):
    at = 0
    for i in range(offsets.size - 1):
        first = at
        begin, end = offsets[i], offsets[i + 1]
        removing = False
        while begin <= end and end > offsets[i]:
            stop = begin
            while stop < end and data[stop] != NEWLINE:
                stop += 1
            if exempt[i] or not _only_symbols(data, begin, stop, classes):
                at = _append(data, begin, stop, out, at, first)
                removing = False
            elif not removing:
                removing = True
                if mark.size:
                    at = _append(mark, 0, mark.size, out, at, first)
            begin = stop + 1
        at -= at > first
        out_offsets[i + 1] = at
    return at
