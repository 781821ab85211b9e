"""Line and paragraph scores of one document, in one pass over its bytes.

A line ends at \\n only, because `normalise` has made every other line end one. Lengths are code points. Three readings
of "line" live here because three papers have them: Gopher's quality rules count empty lines, its repetition rules skip
them, FineWeb skips those that hold nothing but spaces.
"""

from pipeline_lib.compiled import kernel

from .characters import SPACE, TERMINAL
from .hash_set import find_or_add
from .words import class_of, decode, hash_bytes

NEWLINE, DOT, HASH_SIGN, HYPHEN, BULLET, ELLIPSIS = 0x0A, 0x2E, 0x23, 0x2D, 0x2022, 0x2026


@kernel
def count_marks(data, start, end):
    """Return (# signs, ellipses): "..." counted without overlap, and U+2026."""
    signs = 0
    ellipses = 0
    dots = 0
    for i in range(start, end):
        byte = data[i]
        dots = dots + 1 if byte == DOT else 0
        if dots == 3:
            ellipses += 1
            dots = 0
        elif byte == HASH_SIGN:
            signs += 1
        elif byte == 0xE2 and i + 2 < end and data[i + 1] == 0x80 and data[i + 2] == 0xA6:
            ellipses += 1
    return signs, ellipses


@kernel
def examine_line(data, start, end, classes):
    """Return (characters, first and last character that are no space or -1, last character, ends with an ellipsis)."""
    characters = 0
    first = -1
    last_visible = -1
    last = -1
    visible_end = start
    position = start
    while position < end:
        last, width = decode(data, position)
        position += width
        characters += 1
        if not class_of(classes, last) & SPACE:
            if first == -1:
                first = last
            last_visible = last
            visible_end = position
    dots = visible_end - start >= 3 and data[visible_end - 1] == DOT and data[visible_end - 2] == DOT
    ellipsis = last_visible == ELLIPSIS or (dots and data[visible_end - 3] == DOT)
    return characters, first, last_visible, last, ellipsis


@kernel
def line_scores(data, start, end, characters, words, classes, short_line, keys, stamps, mask, stamp, out):
    """Fill out[0:8] of a document that is not empty; see document_scores.LINE_COLUMNS for the order."""
    lines, filled, visible = 0, 0, 0
    bullets, ellipses, terminal, short = 0, 0, 0, 0
    repeated, repeated_characters, repeated_visible = 0, 0, 0
    newlines = 0
    begin = start
    for i in range(start, end + 1):
        if i < end and data[i] != NEWLINE:
            continue
        newlines += i < end
        if i == begin:
            lines += i < end  # an empty line, unless it is what follows the last line end
        else:
            lines += 1
            filled += 1
            length, first, last_visible, last, ellipsis = examine_line(data, begin, i, classes)
            bullets += first in (BULLET, HYPHEN)
            ellipses += ellipsis
            _, added = find_or_add(keys, stamps, mask, stamp, hash_bytes(data, begin, i))
            repeated += not added
            repeated_characters += 0 if added else length
            if first != -1:
                visible += 1
                terminal += (class_of(classes, last) & TERMINAL) != 0
                short += length <= short_line
                repeated_visible += 0 if added else length
        begin = i + 1
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
    i = start
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
def visible_span(data, start, end, classes):
    """Return (start, end) without leading and trailing spaces and line ends."""
    first, last = -1, start
    position = start
    while position < end:
        code_point, width = decode(data, position)
        position += width
        if not class_of(classes, code_point) & SPACE:
            if first == -1:
                first = position - width
            last = position
    return (start, start) if first == -1 else (first, last)


@kernel
def count_characters(data, start, end):
    """Return the number of code points in data[start:end]: bytes that do not continue one."""
    count = 0
    for i in range(start, end):
        count += (data[i] & 0xC0) != 0x80
    return count
