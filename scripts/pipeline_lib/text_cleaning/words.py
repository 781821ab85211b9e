"""Words, found in UTF-8 bytes by compiled code: the unit in which every quality rule counts.

What is a word: the longest run of letters, digits, marks and underscores. One of ' ’ . - / @ stays inside when such
characters stand on both sides (don't, 3.14, well-known, and/or, a@b.org), so does a comma between ASCII digits (1,000).
A web address is one word, from its scheme to the last letter, digit or slash before a space, quotation mark or bracket.
In scripts without spaces each code point is a word. Every other run of one repeated symbol is a word as well ("...",
"=====", "("): the published thresholds are used with splitters that count punctuation.
How: one pass decodes, classifies and hashes; a word is then a position, a length in characters and a 64-bit hash, and
two words are equal when their hashes are (a false match needs about 2^32 different words in one document).
Trap: lengths are code points, as in the papers, never bytes.
"""

import numpy as np

from pipeline_lib.compiled import kernel

from .characters import LETTER, PUNCTUATION, SINGLE, SPACE, WORD, character_classes

FNV_START = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(33)

HAS_LETTER = 1  # word flag: at least one letter
HAS_MORE_THAN_PUNCTUATION = 2  # word flag: at least one character that is not punctuation


@kernel
def mix(value):
    """Spread the bits of a 64-bit value (the finaliser of MurmurHash3)."""
    value = (value ^ (value >> _SHIFT)) * _MIX_1
    value = (value ^ (value >> _SHIFT)) * _MIX_2
    return value ^ (value >> _SHIFT)


@kernel
def hash_bytes(data, start, end):
    """Return the 64-bit FNV-1a hash of data[start:end], mixed."""
    value = FNV_START
    for i in range(start, end):
        value = (value ^ np.uint64(data[i])) * FNV_PRIME
    return mix(value)


@kernel
def decode(data, position):
    """Return (code point, number of bytes) of the UTF-8 character at `position`; the bytes must be valid UTF-8."""
    first = np.int64(data[position])
    if first < 0x80:
        return first, 1
    if first < 0xE0:
        return (first & 0x1F) << 6 | np.int64(data[position + 1]) & 0x3F, 2
    second, third = np.int64(data[position + 1]) & 0x3F, np.int64(data[position + 2]) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third, 3
    return (first & 0x07) << 18 | second << 12 | third << 6 | np.int64(data[position + 3]) & 0x3F, 4


@kernel
def class_of(classes, code_point):
    """Return the flags of a code point, 0 beyond the table."""
    return classes[code_point] if code_point < classes.size else np.uint8(0)


@kernel
def _is_plain_word(classes, code_point):
    flags = class_of(classes, code_point)
    return (flags & WORD) != 0 and (flags & SINGLE) == 0


@kernel
def _connects(data, position, end, classes, previous, code_point):
    """Whether the connector at `position` belongs to the word: between word characters, commas between digits."""
    if code_point == 0x2019:
        following = position + 3
    elif code_point == 0x27 or code_point == 0x40 or (code_point >= 0x2C and code_point <= 0x2F):  # ' @ , - . /
        following = position + 1
    else:
        return False
    if following >= end:
        return False
    after, _ = decode(data, following)
    if code_point == 0x2C:
        return 0x30 <= previous <= 0x39 and 0x30 <= after <= 0x39
    return _is_plain_word(classes, after)


@kernel
def _address_follows(data, position, end):
    """Whether "://" stands at `position`."""
    return position + 2 < end and data[position] == 0x3A and data[position + 1] == 0x2F and data[position + 2] == 0x2F


@kernel
def _address_end(data, position, end, classes):
    """Return (byte after the web address whose "://" is at `position`, its characters from there)."""
    characters = 0
    last_end, last_characters = position, 0
    while position < end:
        code_point, width = decode(data, position)
        flags = class_of(classes, code_point)
        if flags & (SPACE | SINGLE):
            break
        stops = code_point == 0x22 or code_point == 0x27 or code_point == 0x28 or code_point == 0x29  # " ' ( )
        stops = stops or code_point == 0x3C or code_point == 0x3E or code_point == 0x5B or code_point == 0x5D  # < > [ ]
        if stops or code_point == 0x7B or code_point == 0x7D:  # { }
            break
        position += width
        characters += 1
        if flags & WORD or code_point == 0x2F:
            last_end, last_characters = position, characters
    return last_end, last_characters


@kernel
def split(data, start, end, classes, begins, ends, lengths, hashes, flags):
    """Find the words of data[start:end]; return (number of words, number of characters).

    Fills, per word: first byte, byte after the last (int64), characters (int32), hash (uint64), flags (uint8). The
    arrays need room for end - start words.
    """
    count = 0
    characters = 0
    position = start
    while position < end:
        code_point, width = decode(data, position)
        kind = class_of(classes, code_point)
        characters += 1
        if kind & SPACE:
            position += width
            continue
        first = position
        length = 1
        seen = kind
        only_punctuation = (kind & PUNCTUATION) != 0
        position += width
        if kind & WORD and not kind & SINGLE:
            previous = code_point
            while position < end:
                code_point, width = decode(data, position)
                kind = class_of(classes, code_point)
                if not _is_plain_word(classes, code_point):
                    if _address_follows(data, position, end):
                        position, more = _address_end(data, position, end, classes)
                        length += more
                        break
                    if not _connects(data, position, end, classes, previous, code_point):
                        break
                seen |= kind
                only_punctuation = only_punctuation and (kind & PUNCTUATION) != 0
                previous = code_point
                length += 1
                position += width
        elif not kind & SINGLE:
            symbol = code_point
            while position < end:
                code_point, width = decode(data, position)
                if code_point != symbol:
                    break
                length += 1
                position += width
        characters += length - 1
        begins[count] = first
        ends[count] = position
        lengths[count] = length
        hashes[count] = hash_bytes(data, first, position)
        flags[count] = (HAS_LETTER if seen & LETTER else 0) | (0 if only_punctuation else HAS_MORE_THAN_PUNCTUATION)
        count += 1
    return count, characters


def split_words(text: str) -> list[str]:
    """Return the words of a text, as every rule sees them."""
    data = np.frombuffer(text.encode(), np.uint8)
    size = data.size
    begins, ends = np.empty(size, np.int64), np.empty(size, np.int64)
    scratch = np.empty(size, np.int32), np.empty(size, np.uint64), np.empty(size, np.uint8)
    count, _ = split(data, 0, size, character_classes(), begins, ends, *scratch)
    raw = data.tobytes()
    return [raw[a:b].decode() for a, b in zip(begins[:count].tolist(), ends[:count].tolist(), strict=True)]


def hash_words(words: list[str]) -> np.ndarray:
    """Return the hashes that `split` gives these words, uint64[len(words)]."""
    encoded = [np.frombuffer(word.encode(), np.uint8) for word in words]
    return np.array([_hash_whole(data) for data in encoded], dtype=np.uint64)


@kernel
def _hash_whole(data):
    return hash_bytes(data, 0, data.size)
