"""The rules of C4 (Raffel et al. 2020, section 2.2), which work on lines: a web page keeps those that read as prose.

A line goes when it has a word beyond any language, does not end like a sentence, is too short, or speaks of javascript,
cookies or terms of use. A document goes when a line that stayed so far has filler text or a curly bracket, or when too
few sentences remain. Unlike the other groups this one rewrites the text: language and Gopher's rules read a page as it
was, FineWeb's rules what these left, as in FineWeb's own recipe.
Sentences are counted by their ends: a run of final punctuation, with closing quotes or brackets, before a space or the
end of the line; a line that stays without one counts as one sentence. Punkt and spaCy, which other tools use, differ on
abbreviations.
Trap: phrases are compared in lower case of the ASCII letters only; after NFC no other letter has one of them as its
lower case (the Kelvin sign is a K by then).
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline_lib.compiled import kernel

from .arrow_text import text_array, text_buffers
from .characters import DIGIT, SPACE, character_classes
from .lines import NEWLINE, visible_span
from .words import class_of, decode

if TYPE_CHECKING:
    import pyarrow

    from pipeline_lib.config.clean import C4Settings

C4_COLUMNS = ("sentences", "lorem_ipsum", "curly_bracket")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")

_OPEN, _CLOSE = np.uint8(0x5B), np.uint8(0x5D)  # [ ]
_EDIT = np.frombuffer(b"edit]", np.uint8)
_CITATION_NEEDED = np.frombuffer(b"citation needed]", np.uint8)
_LOREM_IPSUM = np.frombuffer(b"lorem ipsum", np.uint8)
_JAVASCRIPT = np.frombuffer(b"javascript", np.uint8)
_POLICY = np.frombuffer(b"".join(phrase.encode() + b"\n" for phrase in POLICY), np.uint8)


class C4Result(NamedTuple):
    """The text that stays and the scores of the document rules, in the order of C4_COLUMNS."""

    text: str
    sentences: int
    lorem_ipsum: int
    curly_bracket: int


def apply_c4_batch(
    texts: "pyarrow.Array", settings: "C4Settings", exempt: np.ndarray
) -> tuple["pyarrow.Array", np.ndarray]:
    """Return (what stays of each normalised text, large_string; scores float64[documents, len(C4_COLUMNS)]).

    exempt: bool[documents], those that are left as they are, with scores of 0.
    """
    data, offsets = text_buffers(texts)
    out, out_offsets = np.empty(int(offsets[-1] - offsets[0]) + 1, np.uint8), np.zeros(len(offsets), np.int64)
    scores = np.zeros((len(texts), len(C4_COLUMNS)))
    switches = np.array(
        [
            settings.terminal_punctuation,
            settings.citations,
            settings.javascript,
            settings.policy,
            settings.lorem_ipsum,
            settings.curly_bracket,
        ]
    )
    limits = np.array([settings.min_line_words, settings.max_word_characters], np.int64)
    end = _c4_batch(data, offsets, exempt, character_classes(), switches, limits, out, out_offsets, scores)
    return text_array(out[:end], out_offsets), scores


def apply_c4(text: str, settings: "C4Settings") -> C4Result:
    """Return what stays of one document, and its scores. Lines that stay lose their outer spaces."""
    import pyarrow as pa

    texts, scores = apply_c4_batch(pa.array([text], pa.large_string()), settings, np.zeros(1, np.bool_))
    return C4Result(texts[0].as_py(), *(int(score) for score in scores[0]))


def cut_citations(texts: "pyarrow.Array") -> "pyarrow.Array":
    """Return normalised texts (large_string) without citation marks; lines stay, without their outer spaces."""
    from pipeline_lib.config.clean import C4Settings

    settings = C4Settings(
        terminal_punctuation=False,
        min_line_words=0,
        max_word_characters=np.iinfo(np.int64).max,
        javascript=False,
        policy=False,
        lorem_ipsum=False,
        curly_bracket=False,
    )
    return apply_c4_batch(texts, settings, np.zeros(len(texts), np.bool_))[0]


def count_sentences(line: str) -> int:
    """Return the number of sentences in a line that is not empty, at least one."""
    data = np.frombuffer(line.encode(), np.uint8)
    return _count_sentences(data, 0, data.size, character_classes())


@kernel
def _ends_sentence(code_point):
    latin = code_point == 0x2E or code_point == 0x21 or code_point == 0x3F  # . ! ?
    wide = code_point == 0x3002 or code_point == 0xFF01 or code_point == 0xFF1F
    return latin or wide or code_point == 0x0964 or code_point == 0x061F


@kernel
def _closes_quotation(code_point):
    ascii_mark = code_point == 0x22 or code_point == 0x27 or code_point == 0x29 or code_point == 0x5D  # " ' ) ]
    return ascii_mark or code_point == 0x201D or code_point == 0x2019


@kernel
def _count_sentences(data, start, end, classes):
    sentences = 0
    rest = False  # something visible since the last sentence end
    state = 0  # 1 in a run of final punctuation, 2 in the quotes and brackets after it
    position = start
    while position < end:
        code_point, width = decode(data, position)
        position += width
        if _ends_sentence(code_point):
            state = 1
            rest = True
        elif state != 0 and _closes_quotation(code_point):
            state = 2
            rest = True
        elif class_of(classes, code_point) & SPACE:
            if state != 0:
                sentences += 1
                rest = False
            state = 0
        else:
            state = 0
            rest = True
    if state != 0:
        return sentences + 1
    return sentences + rest


@kernel
def _equal_at(data, position, end, pattern):
    if position + pattern.size > end:
        return False
    i = 0
    while i < pattern.size and data[position + i] == pattern[i]:
        i += 1
    return i == pattern.size


@kernel
def _citation_end(data, position, end, classes):
    """Return the byte after [edit], [citation needed] or [12] at `position`, or `position`."""
    i = position + 1
    while i < end:
        code_point, width = decode(data, i)
        if not class_of(classes, code_point) & DIGIT:
            break
        i += width
    if i < end and data[i] == _CLOSE:
        return i + 1
    if _equal_at(data, position + 1, end, _EDIT):
        return position + 1 + _EDIT.size
    if _equal_at(data, position + 1, end, _CITATION_NEEDED):
        return position + 1 + _CITATION_NEEDED.size
    return position


@kernel
def _lower(byte):
    return byte | 0x20 if 0x41 <= byte <= 0x5A else byte


@kernel
def _mentions(data, start, end, phrases):
    """Whether one of the lower-case phrases, each followed by a line end, occurs in data[start:end] in any case."""
    begin = 0
    while begin < phrases.size:
        stop = begin
        while phrases[stop] != NEWLINE:
            stop += 1
        if _mentions_one(data, start, end, phrases[begin:stop]):
            return True
        begin = stop + 1
    return False


@kernel
def _mentions_one(data, start, end, phrase):
    first = phrase[0]
    capital = first & 0xDF
    for i in range(start, end - phrase.size + 1):
        if data[i] != first and data[i] != capital:
            continue
        k = 1
        while k < phrase.size and _lower(data[i + k]) == phrase[k]:
            k += 1
        if k == phrase.size:
            return True
    return False


@kernel
def _words_of_line(data, start, end, classes):
    """Return (space-separated words, characters of the longest)."""
    words, longest, length = 0, 0, 0
    position = start
    while position < end:
        code_point, width = decode(data, position)
        position += width
        if class_of(classes, code_point) & SPACE:
            length = 0
        else:
            words += length == 0
            length += 1
            longest = max(longest, length)
    return words, longest


@kernel
def _copy_line(data, start, end, classes, cut_citations, out, at):
    """Copy data[start:end] to out[at:], without citation marks if they are to be cut; return the end of the copy."""
    position = start
    while position < end:
        if cut_citations and data[position] == _OPEN:
            after = _citation_end(data, position, end, classes)
            if after > position:
                position = after
                continue
        out[at] = data[position]
        at += 1
        position += 1
    return at


@kernel
def _ends_like_sentence(out, start, end):
    if start == end:
        return False
    byte = out[end - 1]
    mark = byte == 0x2E or byte == 0x3F or byte == 0x21 or byte == 0x22 or byte == 0x27  # . ? ! " '
    dots = end - start >= 3 and byte == 0x2E and out[end - 2] == 0x2E and out[end - 3] == 0x2E
    return mark and not dots


@kernel
def _c4_document(data, start, end, classes, switches, limits, out, at, scores):
    """Write the lines that stay to out[at:]; fill scores[0:3]; return the end of what was written."""
    terminal, citations, javascript, policy, lorem_ipsum, curly_bracket = switches
    first = at
    kept = 0
    begin = start
    while begin <= end:
        stop = begin
        while stop < end and data[stop] != NEWLINE:
            stop += 1
        left, right = visible_span(data, begin, stop, classes)
        begin = stop + 1
        words, longest = _words_of_line(data, left, right, classes)
        if longest > limits[1]:
            continue
        line = at + (kept > 0)
        after = _copy_line(data, left, right, classes, citations, out, line)
        if terminal and not _ends_like_sentence(out, line, after):
            continue
        if words < limits[0]:
            continue
        if lorem_ipsum and _mentions_one(out, line, after, _LOREM_IPSUM):
            scores[1] += 1
        if javascript and _mentions_one(out, line, after, _JAVASCRIPT):
            continue
        if curly_bracket:
            for i in range(line, after):
                if out[i] == 0x7B:
                    scores[2] += 1
                    break
        if policy and _mentions(out, line, after, _POLICY):
            continue
        if after > line:
            scores[0] += _count_sentences(out, line, after, classes)
        if kept > 0:
            out[at] = NEWLINE
        at = after
        kept += 1
    left, right = visible_span(out, first, at, classes)
    for i in range(left, right):
        out[first + i - left] = out[i]
    return first + right - left


@kernel
def _c4_batch(data, offsets, exempt, classes, switches, limits, out, out_offsets, scores):
    at = 0
    for i in range(offsets.size - 1):
        start, end = offsets[i], offsets[i + 1]
        if exempt[i]:
            for k in range(start, end):
                out[at + k - start] = data[k]
            at += end - start
        else:
            at = _c4_document(data, start, end, classes, switches, limits, out, at, scores[i])
        out_offsets[i + 1] = at
    return at
