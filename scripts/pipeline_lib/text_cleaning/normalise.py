"""Text repair that keeps the structure: line breaks, indentation, tables and code come out as they went in.

What: one kind of line end (\\n; also for the form feed, NEL and Unicode's line and paragraph separators), no control
characters or terminal colour codes except tab and newline, no byte order marks, no spaces at line ends, no empty lines
at the ends of the document, Unicode NFC (UAX #15). `full` first repairs text that was decoded with the wrong charset
("cafÃ©") with ftfy, without its typographic changes: curly quotes and ligatures are content.
How: one compiled pass over the bytes, which also checks that they are UTF-8 (Unicode 15, table 3-7). Only documents
with characters that can combine with a neighbour (UAX #15, quick check) go through Python's normalisation after it.
Cost: see benchmarks/cleaning_quality.py.
Trap: NFC comes after the removal of characters, because a removal can bring a letter and a combining mark together.
Trap: joiners (U+200C, U+200D) and zero-width spaces carry meaning in Indic, Khmer and emoji sequences, so they stay.
"""

import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline_lib.compiled import kernel

from .arrow_text import replace_texts, text_array, text_buffers
from .characters import COMBINES, SPACE, character_classes
from .words import class_of, decode

if TYPE_CHECKING:
    import pyarrow

Mode = Literal["fast", "full"]

TAB, NEWLINE, RETURN, ESCAPE, BRACKET = 0x09, 0x0A, 0x0D, 0x1B, 0x5B
CLEAN, RECOMBINE, INVALID = 0, 1, 2  # what a document needs after the compiled pass


def normalise_batch(texts: "pyarrow.Array", mode: Mode = "fast") -> tuple["pyarrow.Array", np.ndarray]:
    """Return (repaired texts, large_string; bool[documents]: the bytes were not UTF-8).

    texts: string or binary, without nulls. Bytes that are not UTF-8 become U+FFFD. Raises ValueError for nulls.
    """
    if mode == "full":
        texts = _fixed_by_ftfy(texts)
    data, offsets = text_buffers(texts)
    room = int(offsets[-1] - offsets[0])
    out, out_offsets = np.empty(room, np.uint8), np.zeros(len(offsets), np.int64)
    needs = np.zeros(len(offsets) - 1, np.uint8)
    end = _normalise_batch(data, offsets, character_classes(), out, out_offsets, needs)
    result = text_array(out[:end], out_offsets)
    invalid = needs == INVALID
    others: dict[int, str] = {}
    for place in np.flatnonzero(needs).tolist():
        if needs[place] == INVALID:
            raw = data[offsets[place] : offsets[place + 1]].tobytes()
            others[place] = normalise(raw.decode("utf-8", "replace"))
        else:
            text = result[place].as_py()
            if not unicodedata.is_normalized("NFC", text):
                others[place] = unicodedata.normalize("NFC", text)
    return replace_texts(result, others), invalid


def normalise(text: str, mode: Mode = "fast") -> str:
    """Return the repaired text; doing it twice changes nothing more."""
    import pyarrow as pa

    return normalise_batch(pa.array([text], pa.large_string()), mode)[0][0].as_py()


@kernel
def sequence_length(data, position, end):
    """Return the number of bytes of the UTF-8 character at `position`, 0 when it is not one (Unicode 15, table 3-7)."""
    first = data[position]
    if first < 0x80:
        return 1
    if first < 0xC2 or first > 0xF4:
        return 0
    width = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    if position + width > end:
        return 0
    second = data[position + 1]
    low, high = 0x80, 0xBF
    if first == 0xE0:
        low = 0xA0
    elif first == 0xED:
        high = 0x9F  # surrogates
    elif first == 0xF0:
        low = 0x90
    elif first == 0xF4:
        high = 0x8F
    if second < low or second > high:
        return 0
    for i in range(2, width):
        if data[position + i] & 0xC0 != 0x80:
            return 0
    return width


@kernel
def colour_code_end(data, position, end):
    """Return the byte after the terminal colour code whose escape character is at `position`, or `position`."""
    i = position + 1
    if i >= end or data[i] != BRACKET:
        return position
    i += 1
    while i < end and (0x30 <= data[i] <= 0x39 or data[i] == 0x3B):
        i += 1
    if i < end and (0x41 <= data[i] <= 0x5A or 0x61 <= data[i] <= 0x7A):
        return i + 1
    return position


@kernel
def without_spaces_at_end(out, begin, end, classes):
    """Return `end` moved back before the spaces that out[begin:end] ends with."""
    while end > begin:
        byte = out[end - 1]
        if byte == 0x20 or byte == TAB:
            end -= 1
            continue
        if byte < 0x80:
            break
        first = end - 1
        while out[first] & 0xC0 == 0x80:
            first -= 1
        if not class_of(classes, decode(out, first)[0]) & SPACE:
            break
        end = first
    return end


@kernel
def _normalise_document(data, start, end, classes, out, at):
    """Write the repaired data[start:end] to out[at:]; return (end of what was written, CLEAN, RECOMBINE or INVALID)."""
    begin = at  # of the document
    line = at
    need = CLEAN
    position = start
    while position < end:
        byte = data[position]
        line_end = False
        if byte >= 0x20 and byte < 0x7F:
            out[at] = byte
            at += 1
            position += 1
            continue
        if byte < 0x80:
            if byte == TAB:
                out[at] = byte
                at += 1
            elif byte >= NEWLINE and byte <= RETURN:
                line_end = True
                if byte == RETURN and position + 1 < end and data[position + 1] == NEWLINE:
                    position += 1
            elif byte == ESCAPE:
                after = colour_code_end(data, position, end)
                position = after - 1 if after > position else position
            position += 1
        else:
            width = sequence_length(data, position, end)
            if width == 0:
                return begin, INVALID
            code_point, _ = decode(data, position)
            if code_point == 0x85 or code_point == 0x2028 or code_point == 0x2029:
                line_end = True
            elif code_point >= 0xA0 and code_point != 0xFEFF and code_point != 0xFFFE and code_point != 0xFFFF:
                if class_of(classes, code_point) & COMBINES:
                    need = RECOMBINE
                for i in range(width):
                    out[at + i] = data[position + i]
                at += width
            position += width
        if line_end:
            at = without_spaces_at_end(out, line, at, classes)
            if at > begin:
                out[at] = NEWLINE
                at += 1
            line = at
    at = without_spaces_at_end(out, line, at, classes)
    while at > begin and out[at - 1] == NEWLINE:
        at -= 1
    return at, need


@kernel
def _normalise_batch(data, offsets, classes, out, out_offsets, needs):
    at = 0
    for i in range(offsets.size - 1):
        at, needs[i] = _normalise_document(data, offsets[i], offsets[i + 1], classes, out, at)
        out_offsets[i + 1] = at
    return at


@cache
def _ftfy_configuration():
    import ftfy

    return ftfy.TextFixerConfig(
        unescape_html=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_terminal_escapes=False,
        remove_control_chars=False,
        normalization="NFC",
        explain=False,
    )


def _fixed_by_ftfy(texts: "pyarrow.Array") -> "pyarrow.Array":
    """Repair wrongly decoded text, in Python, where there is any: pure ASCII cannot be wrongly decoded."""
    import ftfy
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = texts.cast(pa.large_binary())
    fixed: dict[int, str] = {}
    strings = texts.cast(pa.large_string(), safe=False)
    for place in np.flatnonzero(~pc.string_is_ascii(strings).to_numpy(zero_copy_only=False)).tolist():
        try:
            text = texts[place].as_py().decode()
        except UnicodeDecodeError:
            continue  # the compiled pass reports it
        better = ftfy.fix_text(text, _ftfy_configuration())
        if better != text:
            fixed[place] = better
    return replace_texts(strings, fixed)
