"""The frozen Unicode tables behind normalisation: what a code point folds to, and what kind of token it belongs to.

What: `fold` replaces every code point by NFKD(casefold(NFKD(.))), repeated until nothing changes: "É", "é" and
"e" + acute become the same two code points, "ﬁ" becomes "fi", full-width letters become plain ones, Hangul syllables
become their jamo. Unlike NFKC it needs no context (composition does), so it is one table look-up per code point.
Why frozen: Python 3.11 knows Unicode 14, Python 3.12 knows Unicode 15, and a corpus must keep the same documents on
both. The tables are built once (`python -m dedup.unicode_fold`, under Unicode 14) and shipped as `unicode_fold.npz`;
a code point that was unassigned then stays a separator that folds to itself, for ever.
Form: two levels. `page[cp >> 8]` names a block of 256 entries; equal blocks are stored once, so the tables fit in the
second-level cache. A `fold` entry is UNCHANGED, a code point, DROPPED, or `EXPANDS | offset << 5 | length` into
`expansion`.
Trap: combining marks in another order than the canonical one are not reordered (needs context); such a word differs.
"""

import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

SEPARATOR, WORD, SINGLE, MARK, SPACE = 0, 1, 2, 3, 4
UNCHANGED = 0
EXPANDS = 1 << 31
DROPPED = 0xFFFFFFFF
CODE_POINTS = 0x110000
FROZEN_VERSION = "14.0.0"
TABLE_FILE = Path(__file__).with_name("unicode_fold.npz")

SPACELESS_BLOCKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer symbols
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x2E80, 0x2FDF),  # CJK radicals
    (0x3005, 0x3007),  # ideographic iteration mark, closing mark, number zero
    (0x3021, 0x303C),  # Hangzhou numerals, kana repeat marks
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),  # Bopomofo extended, Katakana extensions
    (0x3400, 0x4DBF),  # CJK extension A
    (0x4E00, 0xA4CF),  # CJK unified, Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar extended B
    (0xAA60, 0xAADF),  # Myanmar extended A, Tai Viet
    (0xF900, 0xFAFF),  # CJK compatibility
    (0x1AFF0, 0x1B16F),  # Kana supplements
    (0x20000, 0x3FFFF),  # the two ideographic planes, assigned or not
)
"""Blocks of the scripts that are written without spaces between words: each letter is a token of its own."""

VARIATION_SELECTORS = ((0x180B, 0x180D), (0x180F, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
COMBINING_GRAPHEME_JOINER = 0x034F


class UnicodeTables(NamedTuple):
    """Two-level tables over all code points; see the head of this file for the entries' form."""

    page: np.ndarray  # uint16[0x1100]: block number of each group of 256 code points
    fold: np.ndarray  # uint32[blocks * 256]
    kind: np.ndarray  # uint8[blocks * 256]
    expansion: np.ndarray  # uint32[...]


def _in_blocks(code_point: int, blocks: tuple[tuple[int, int], ...]) -> bool:
    return any(low <= code_point <= high for low, high in blocks)


def folded(character: str) -> str:
    """Return the fold of one character by `unicodedata` (the definition that the tables freeze)."""
    code_point = ord(character)
    category = unicodedata.category(character)
    if category == "Cc" or character.isspace():
        return " "
    if category == "Cf" or code_point == COMBINING_GRAPHEME_JOINER or _in_blocks(code_point, VARIATION_SELECTORS):
        return ""
    previous, current = "", character
    while current != previous:
        previous = current
        current = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", current).casefold())
    return current


def kind_of(character: str) -> int:
    """Return the token kind of one already folded character."""
    category = unicodedata.category(character)
    if character == " ":
        return SPACE
    if category[0] == "M":
        return MARK
    if _in_blocks(ord(character), SPACELESS_BLOCKS) and (category[0] in "LN" or ord(character) >= 0x20000):
        return SINGLE
    return WORD if category[0] in "LN" or character == "_" else SEPARATOR


def build_tables() -> UnicodeTables:
    """Build the tables from the running Python's `unicodedata`; takes a few seconds."""
    fold = np.zeros(CODE_POINTS, np.uint32)
    kind = np.zeros(CODE_POINTS, np.uint8)
    offsets: dict[str, int] = {}
    expansion: list[int] = []
    for code_point in range(CODE_POINTS):
        character = chr(code_point)
        target = folded(character)
        kind[code_point] = kind_of(character)
        if target == character:
            fold[code_point] = UNCHANGED
        elif len(target) == 1:
            fold[code_point] = ord(target)
        elif not target:
            fold[code_point] = DROPPED
        else:
            if target not in offsets:
                offsets[target] = len(expansion)
                expansion += map(ord, target)
            fold[code_point] = EXPANDS | offsets[target] << 5 | len(target)
    both = np.stack([fold, kind.astype(np.uint32)]).reshape(2, -1, 256).transpose(1, 0, 2)
    blocks, page = np.unique(both.reshape(len(both), -1), axis=0, return_inverse=True)
    return UnicodeTables(
        page.astype(np.uint16).ravel(),
        np.ascontiguousarray(blocks[:, :256]).ravel().astype(np.uint32),
        np.ascontiguousarray(blocks[:, 256:]).ravel().astype(np.uint8),
        np.array(expansion, np.uint32),
    )


def load_tables() -> UnicodeTables:
    """Read the frozen tables (a few milliseconds)."""
    with np.load(TABLE_FILE, allow_pickle=False) as stored:
        return UnicodeTables(stored["page"], stored["fold"], stored["kind"], stored["expansion"])


if __name__ == "__main__":
    if unicodedata.unidata_version != FROZEN_VERSION:
        raise SystemExit(f"the tables are those of Unicode {FROZEN_VERSION}, not {unicodedata.unidata_version}")
    np.savez_compressed(TABLE_FILE, **build_tables()._asdict())
