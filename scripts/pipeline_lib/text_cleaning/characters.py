"""What each code point is, as one byte of flags in a table that compiled code can index.

The sets of punctuation and of sentence-ending marks are datatrove's, because the thresholds of the quality rules were
chosen with them; letters, marks and spaces are what Python's `str` methods and unicodedata say; scripts without spaces
between words are those that deduplication treats so.
Cost: the table covers the assigned planes (0 to 3) and takes about 0.1 s to build, once per process. What lies beyond
(tags, variation selectors, private use) has no flags and counts as a symbol.
"""

import unicodedata
from functools import cache

import numpy as np

SPACE = 1  # str.isspace()
WORD = 2  # letters, digits, marks and the underscore
LETTER = 4  # str.isalpha()
PUNCTUATION = 8
SINGLE = 16  # a word of its own: scripts that are written without spaces
TERMINAL = 32  # ends a sentence
COMBINES = 64  # not certain to be normalised (UAX #15, NFC quick check): it decomposes or can join what stands before
DIGIT = 128  # str.isdecimal()

TABLE_SIZE = 0x33480


@cache
def character_classes() -> np.ndarray:
    """Return the flags of every code point below TABLE_SIZE, uint8[TABLE_SIZE]."""
    from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION

    from dedup.unicode_fold import SPACELESS_BLOCKS

    flags = bytearray(TABLE_SIZE)
    for code_point in range(TABLE_SIZE):
        character = chr(code_point)
        if character.isalnum():
            flags[code_point] = WORD | LETTER if character.isalpha() else WORD
            flags[code_point] |= DIGIT if character.isdecimal() else 0
        elif character.isspace():
            flags[code_point] = SPACE
        elif unicodedata.category(character)[0] == "M":
            flags[code_point] = WORD
    table = np.frombuffer(flags, np.uint8)
    table[ord("_")] |= WORD
    table[[ord(character) for character in PUNCTUATION_SET if ord(character) < TABLE_SIZE]] |= PUNCTUATION
    table[[ord(character) for character in TERMINAL_PUNCTUATION if ord(character) < TABLE_SIZE]] |= TERMINAL
    for first, last in SPACELESS_BLOCKS:
        block = table[first : min(last + 1, TABLE_SIZE)]
        block[(block & WORD) != 0] |= SINGLE
    table[sorted(_combining())] |= COMBINES
    return table


def _combining() -> set[int]:
    """Return the code points that may change under NFC, alone or after another: quick check No or Maybe."""
    found = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # Hangul vowels and final consonants
    for code_point in range(0x80, TABLE_SIZE):
        character = chr(code_point)
        if unicodedata.combining(character) or not unicodedata.is_normalized("NFC", character):
            found.add(code_point)
        decomposed = unicodedata.decomposition(character)
        if decomposed and not decomposed.startswith("<"):
            found.update(int(part, 16) for part in decomposed.split()[1:])
    return found
