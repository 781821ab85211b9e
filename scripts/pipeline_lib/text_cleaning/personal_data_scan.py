"""Where personal data could be: one compiled pass over UTF-8 bytes that names the few places worth a closer look.

What: for each place the byte range and what to look for there. The scan knows necessary conditions only (an @ between
the right characters, enough digits in one stretch, a known prefix), so every find of the expressions in
`personal_data_kinds.py` lies at a place that is named here; a test compares it with the expressions alone.
How: a table of 256 entries says which bytes can begin something; nearly all bytes of a text cannot and cost one load.
Cost: about 300 MB/s of English on one core; long tables of numbers are slower, because each stretch of them is a place.
"""

import numpy as np

from pipeline_lib.compiled import kernel

EMAIL, NUMBER, IPV6, IBAN, SECRET = 0, 1, 2, 3, 4
"""What to look for at a place. EMAIL: from the first byte of the local part; NUMBER: one stretch of digits and the
signs that group them; the others: from the first byte."""

WIDE_SPACES, WIDE_HYPHENS = "\u00a0\u2007\u2009\u202f", "\u2010\u2011"
"""Spaces and hyphens that keep a number on one line: none of them is one byte."""
GROUPED = frozenset({NUMBER, IBAN})
"""Places where such signs count as the plain ones."""

FEWEST_NUMBER_DIGITS = 7
_LONGEST_LOCAL = 64
_LOCAL, _WORD, _DIGIT, _UPPER, _HEX, _GROUPS, _WIDE_SPACE = 1, 2, 4, 8, 16, 32, 64
_AT, _NUMBER_START, _COLON, _CAPITAL, _JOINT = 1, 2, 3, 4, 5

SECRET_PREFIXES = {
    "-----BEGIN": 5, "AKIA": 1, "ASIA": 1, "AIza": 1, "AGE-SECRET-KEY-1": 1, "AWS_SECRET_ACCESS_KEY": 1, "GOCSPX-": 1,
    "SG.": 1, "aws_secret_access_key": 3, "dop_v1_": 6, "eyJ": 2, "ghp_": 3, "gho_": 3, "ghu_": 3, "ghs_": 3, "ghr_": 3,
    "github_pat_": 10, "glpat-": 5, "hf_": 2, "npm_": 3, "pypi-": 4, "rk_live_": 2, "sk_live_": 2, "sk-": 2,
    "shpat_": 5, "xoxa-": 4, "xoxb-": 4, "xoxe-": 4, "xoxo-": 4, "xoxp-": 4, "xoxr-": 4, "xoxs-": 4,
}  # fmt: skip
"""What credentials begin with, and the place in it of the capital, hyphen or underscore at which the scan stops to
compare: lower-case letters are most of a text and cost nothing. `personal_data_kinds.py` has the expression for each.
"""


def with_plain_signs(text: str) -> str:
    """Return as many characters, with plain spaces and hyphens for WIDE_SPACES and WIDE_HYPHENS."""
    for sign in WIDE_SPACES:  # ten times as fast as str.translate
        text = text.replace(sign, " ")
    for sign in WIDE_HYPHENS:
        text = text.replace(sign, "-")
    return text


def _classes() -> np.ndarray:
    table = np.zeros(256, np.uint8)
    for byte in range(256):
        character = chr(byte)
        if byte < 128 and character.isalnum():
            table[byte] |= _WORD | _LOCAL
            table[byte] |= _DIGIT | _GROUPS if character.isdigit() else 0
            table[byte] |= _UPPER if character.isupper() else 0
            table[byte] |= _HEX if character in "0123456789abcdefABCDEF" else 0
        if character in "_.+-":
            table[byte] |= _LOCAL
        if character in " .()/-+":
            table[byte] |= _GROUPS
    table[ord("_")] |= _WORD
    table[list(WIDE_SPACES.encode())] = _WIDE_SPACE
    return table


def _triggers() -> np.ndarray:
    table = np.zeros(256, np.uint8)
    table[[ord(character) for character in "0123456789+("]] = _NUMBER_START
    table[[ord(character) for character in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]] = _CAPITAL
    table[[ord("-"), ord("_")]] = _JOINT
    table[ord("@")] = _AT
    table[ord(":")] = _COLON
    return table


def _prefix_table() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (prefixes uint8[n, longest], lengths, stops, bool[65536]: pairs of bytes that end at some stop)."""
    table = np.zeros((len(SECRET_PREFIXES), max(map(len, SECRET_PREFIXES))), np.uint8)
    pairs = np.zeros(1 << 16, np.bool_)
    for row, (prefix, stop) in zip(table, SECRET_PREFIXES.items(), strict=True):
        row[: len(prefix)] = np.frombuffer(prefix.encode(), np.uint8)
        pairs[ord(prefix[stop - 1]) << 8 | ord(prefix[stop])] = True
    return table, np.array([len(prefix) for prefix in SECRET_PREFIXES]), np.array([*SECRET_PREFIXES.values()]), pairs


_CLASSES, _TRIGGERS, _PREFIXES = _classes(), _triggers(), _prefix_table()


def find_places(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return int64[places, 4]: document, what, first byte, byte after the last one known; in the order of the text.

    data: uint8[...], UTF-8; offsets: int64[documents + 1] into it.
    """
    room = 1024
    while True:
        places = np.empty((room, 4), np.int64)
        count = _scan(data, offsets, _CLASSES, _TRIGGERS, *_PREFIXES, places)
        if count <= room:
            return places[:count]
        room = count


@kernel
def _scan(data, offsets, classes, triggers, prefixes, lengths, stops, pairs, places):
    """Fill `places` as far as it reaches; return how many there are."""
    count = 0
    for document in range(offsets.size - 1):
        start, end = offsets[document], offsets[document + 1]
        i = start
        while i < end:
            trigger = triggers[data[i]]
            if trigger == 0:
                i += 1
                continue
            what = -1
            first, last, resume = i, i + 1, i + 1
            if trigger >= _CAPITAL:
                if i > start and pairs[np.int64(data[i - 1]) << 8 | np.int64(data[i])]:
                    first, last = _prefix_around(data, start, i, end, prefixes, lengths, stops)
                    if last > first:
                        what, resume = SECRET, last
                if what < 0 and trigger == _CAPITAL and _iban_may_start(data, start, i, end, classes):
                    what, first, last = IBAN, i, i + 4
            elif trigger == _NUMBER_START:
                last, enough = _number_stretch(data, i, end, classes)
                resume = last
                if enough:
                    what = NUMBER
            elif trigger == _AT:
                first = _local_part(data, start, i, classes)
                if first < i and i + 1 < end and classes[data[i + 1]] & _WORD:
                    what = EMAIL
            else:
                first, last = _hexadecimal_run(data, start, i, end, classes)
                if _has_ipv6_colons(data, first, last):
                    what, resume = IPV6, last
            if what >= 0:
                if count < places.shape[0]:
                    places[count, 0] = document
                    places[count, 1] = what
                    places[count, 2] = first
                    places[count, 3] = last
                count += 1
            i = resume
    return count


@kernel
def _prefix_around(data, start, stop, end, prefixes, lengths, stops):
    """Return (first byte, byte after the last) of the prefix whose stop is at `stop`; an empty range without one."""
    for row in range(lengths.size):
        first, last = stop - stops[row], stop - stops[row] + lengths[row]
        if first < start or last > end:
            continue
        same = 0
        while same < lengths[row] and data[first + same] == prefixes[row, same]:
            same += 1
        if same == lengths[row]:
            return first, last
    return stop, stop


@kernel
def _iban_may_start(data, start, position, end, classes):
    """A word of two capitals, two digits, and ten more capitals or digits, in groups that single spaces may part.

    Wide spaces pass byte by byte: exact widths here cost a third of the scan's speed, and the expression looks again.
    """
    if position + 14 > end or (position > start and classes[data[position - 1]] & _WORD):
        return False
    if not (classes[data[position]] & _UPPER and classes[data[position + 1]] & _UPPER):
        return False
    if not (classes[data[position + 2]] & _DIGIT and classes[data[position + 3]] & _DIGIT):
        return False
    found = 0
    i = position + 4
    while i < end and found < 10:
        if classes[data[i]] & (_UPPER | _DIGIT):
            found += 1
        elif not classes[data[i]] & _WIDE_SPACE and (data[i] != 0x20 or data[i - 1] == 0x20):
            return False
        i += 1
    return found == 10


@kernel
def _wide_sign(data, i, end):
    """Return the bytes of the wide space or hyphen at `i`; 0 where there is none."""
    if data[i] == 0xC2:
        return 2 if i + 1 < end and data[i + 1] == 0xA0 else 0
    if data[i] != 0xE2 or i + 2 >= end or data[i + 1] != 0x80:
        return 0
    third = data[i + 2]
    return 3 if third == 0x87 or third == 0x89 or third == 0xAF or third == 0x90 or third == 0x91 else 0


@kernel
def _number_stretch(data, position, end, classes):
    """Return (end of the stretch, whether it has digits enough for a number or three dots for an address).

    More than three signs in a row end a stretch: no written number has that many.
    """
    digits, dots, signs = 0, 0, 0
    last = position
    i = position
    while i < end:
        width = 1 if classes[data[i]] & _GROUPS else _wide_sign(data, i, end)
        if width == 0:
            break
        if classes[data[i]] & _DIGIT:
            digits += 1
            signs = 0
            last = i + 1
        else:
            signs += 1
            if signs > 3:
                break
            dots += data[i] == 0x2E
        i += width
    return max(last, position + 1), digits >= FEWEST_NUMBER_DIGITS or (digits >= 4 and dots >= 3)


@kernel
def _local_part(data, start, at, classes):
    """Return where the mailbox before an @ begins, the @ itself where none can; see the expression for mailboxes.

    That is the first letter, digit or underscore of the run, after a sign at most, or one after two signs in a row
    ("Office.....jane"), whichever comes first among the last _LONGEST_LOCAL bytes.
    """
    run = at
    while run > start and classes[data[run - 1]] & _LOCAL:
        run -= 1
    handle = run > start and data[run - 1] == 0x40  # @name@host
    for i in range(max(run, at - _LONGEST_LOCAL), at):
        if not classes[data[i]] & _WORD:
            continue
        if i <= run + 1:
            if not handle and (i == run or not classes[data[run]] & _WORD):
                return i
        elif not (classes[data[i - 1]] | classes[data[i - 2]]) & _WORD:
            return i
    return at


@kernel
def _hexadecimal_run(data, start, colon, end, classes):
    """Return the run of hexadecimal digits and colons around the first colon of it; an empty one for a later colon."""
    first, last = colon, colon + 1
    while first > start and classes[data[first - 1]] & _HEX:
        first -= 1
    if first > start and data[first - 1] == 0x3A:
        return colon, colon
    while last < end and (classes[data[last]] & _HEX or data[last] == 0x3A):
        last += 1
    return first, last


@kernel
def _has_ipv6_colons(data, first, last):
    """Seven colons, or a double one with at least one more sign of an address: a first group of four digits."""
    if last - first < 6 or (data[first] != 0x32 and data[first] != 0x33) or data[first + 4] != 0x3A:  # 2xxx: or 3xxx:
        return False
    colons, double = 0, False
    for i in range(first, last):
        if data[i] == 0x3A:
            colons += 1
            double = double or (i + 1 < last and data[i + 1] == 0x3A)
    return double or colons == 7
