"""Line and paragraph scores of one document, in one pass over its bytes.

A line ends at \\n only, because `normalise` has made every other line end one. Lengths are code points. Three readings
of "line" live here because three papers have them: Gopher's quality rules count empty lines, its repetition rules skip
them, FineWeb skips those that hold nothing but spaces.
"""

import numpy as np

from pipeline_lib.compiled import kernel

from .characters import SPACE, TERMINAL
from .hash_set import find_or_add
from .words import FNV_PRIME, FNV_START, class_of, decode, hash_bytes, mix

NEWLINE, DOT, HASH_SIGN, HYPHEN, BULLET = 0x0A, 0x2E, 0x23, 0x2D, 0x2022


@kernel
def count_marks(data, start, end):
    """Return (# signs, ellipses): "..." counted without overlap, and U+2026."""
    signs = 0
    ellipses = 0
    dots = 0
    for i in range(start, end):
        byte = data[i]
        if byte == DOT:
            dots += 1
            if dots == 3:
                ellipses += 1
                dots = 0
        else:
            dots = 0
            if byte == HASH_SIGN:
                signs += 1
            elif byte == 0xE2 and i + 2 < end and data[i + 1] == 0x80 and data[i + 2] == 0xA6:
                ellipses += 1
    return signs, ellipses


@kernel
def scan_line(data, start, end):
    """Return (first byte after the line that begins at `start`, its characters, its hash), in one pass."""
    characters = 0
    value = FNV_START
    position = start
    while position < end and data[position] != NEWLINE:
        byte = data[position]
        characters += (byte & 0xC0) != 0x80
        value = (value ^ np.uint64(byte)) * FNV_PRIME
        position += 1
    return position, characters, mix(value)


@kernel
def decode_before(data, position, start):
    """Return (code point, first byte) of the character that ends before `position`."""
    first = position - 1
    while first > start and (data[first] & 0xC0) == 0x80:
        first -= 1
    return decode(data, first)[0], first


@kernel
def visible_span(data, start, end, classes):
    """Return (start, end) of data[start:end] without leading and trailing spaces and line ends."""
    while start < end:
        code_point, width = decode(data, start)
        if not class_of(classes, code_point) & SPACE:
            break
        start += width
    while end > start:
        code_point, first = decode_before(data, end, start)
        if not class_of(classes, code_point) & SPACE:
            break
        end = first
    return start, end


@kernel
def ends_with_ellipsis(data, start, end):
    """Whether data[start:end] ends with "..." or U+2026."""
    if end - start < 3:
        return False
    a, b, c = data[end - 3], data[end - 2], data[end - 1]
    return (a == DOT and b == DOT and c == DOT) or (a == 0xE2 and b == 0x80 and c == 0xA6)


@kernel
def line_scores(data, start, end, characters, words, classes, short_line, keys, stamps, mask, stamp, out):
    """Fill out[0:8] of a document that is not empty; see document_scores.LINE_COLUMNS for the order."""
    lines, filled, visible = 0, 0, 0
    bullets, ellipses, terminal, short = 0, 0, 0, 0
    repeated, repeated_characters, repeated_visible = 0, 0, 0
    newlines = 0
    begin = start
    while begin <= end:
        stop, length, line_hash = scan_line(data, begin, end)
        newlines += stop < end
        if stop == begin:
            lines += stop < end  # an empty line, unless it is what follows the last line end
        else:
            lines += 1
            filled += 1
            first, after = visible_span(data, begin, stop, classes)
            _, added = find_or_add(keys, stamps, mask, stamp, line_hash)
            repeated += not added
            repeated_characters += 0 if added else length
            if first < after:
                bullets += decode(data, first)[0] in (BULLET, HYPHEN)
                ellipses += ends_with_ellipsis(data, first, after)
                visible += 1
                terminal += (class_of(classes, decode_before(data, stop, begin)[0]) & TERMINAL) != 0
                short += length <= short_line
                repeated_visible += 0 if added else length
        begin = stop + 1
    # An empty first or last piece counts where the text is split at runs of line ends, and so does its repetition.
    outer = (data[start] == NEWLINE) + (data[end - 1] == NEWLINE)
    out[0] = bullets / lines
    out[1] = ellipses / lines
    out[2] = (repeated + (outer == 2)) / (filled + outer)
    out[3] = repeated_characters / characters
    out[4] = terminal / visible if visible else 0.0
    out[5] = short / visible if visible else 0.0
    out[6] = repeated_visible / (characters - newlines) if visible else 0.0
    out[7] = newlines / words if words else 0.0


@kernel
def paragraph_scores(data, start, end, characters, classes, keys, stamps, mask, stamp, out):
    """Fill out[0:2] with the fractions of repeated paragraphs and of the characters in them.

    Paragraphs are what two or more line ends separate in the text without its outer spaces.
    """
    start, end = visible_span(data, start, end, classes)
    paragraphs, repeated, repeated_characters = 0, 0, 0
    begin = start
    i = first_blank_line(data, start, end)
    if i == end:
        out[0] = 0.0  # one paragraph
        out[1] = 0.0
        return
    while i <= end:
        if i < end and not (data[i] == NEWLINE and i + 1 < end and data[i + 1] == NEWLINE):
            i += 1
            continue
        paragraphs += 1
        _, added = find_or_add(keys, stamps, mask, stamp, hash_bytes(data, begin, i))
        if not added:
            repeated += 1
            repeated_characters += count_characters(data, begin, i)
        while i < end and data[i] == NEWLINE:
            i += 1
        begin = i
        if i == end:
            break
    out[0] = repeated / paragraphs
    out[1] = repeated_characters / characters


@kernel
def first_blank_line(data, start, end):
    """Return the place of the first two line ends in a row, or `end`."""
    for i in range(start, end - 1):
        if data[i] == NEWLINE and data[i + 1] == NEWLINE:
            return i
    return end


@kernel
def count_characters(data, start, end):
    """Return the number of code points in data[start:end]: bytes that do not continue one."""
    count = 0
    for i in range(start, end):
        count += (data[i] & 0xC0) != 0x80
    return count
