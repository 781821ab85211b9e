"""Program code and tables, told from prose by the shape of their lines, for those who want them compared exactly only.

Why: two tables of one form, or two generated sources, share most of their words and differ in the few that matter (a
number, a name); a Jaccard similarity of words calls them duplicates.
What: a document is a *table* when at least two thirds of its lines that are not blank stand in runs of RUN or more with
the same number (two at least) of the same separator: `|`, tab, comma, semicolon, or a gap of two and more spaces. It is
*code* when it is no table, has at least LEAST_CODE_LINES lines that are not blank, and at least half of them look like
a statement: the line ends in `{`, `}` or `;`, consists of closing brackets, begins as a statement or comment does
(BEGINNINGS), has an `=` between blanks, or has a word with `(` or `[` right after it and ends in a bracket, quote,
comma or colon. A line with a backslash is never one, and for the last two no `$` may be in it: both are LaTeX.
Cost: one pass over the bytes as given, because the normal form has no lines any more. Counts are whole numbers, so the
answer is the same everywhere.
Traps: this is a rule of thumb about layout, not a parser. Code that is mostly docstrings is prose to it (a quarter of
Python's standard library), an interface described by its signatures alone is code, minified code has too few lines to
be told. Sources that are known to be code or tables are better named in `exact_sources`.
"""

import numpy as np

from pipeline_lib.compiled import kernel

from .normalise import TextBatch

PROSE, CODE, TABLE = 0, 1, 2
KINDS = {"code": CODE, "table": TABLE}

RUN = 4
LEAST_CODE_LINES = 5
BEGINNINGS = (
    "import ", "def ", "class ", "return ", "return;", "if (", "for (", "while (", "} else", "else:", "elif ", "try:",
    "except ", "except:", "raise ", "async ", "public ", "private ", "protected ", "static ", "const ", "let ", "var ",
    "function ", "func ", "fn ", "package ", "using ", "namespace ", "@", "//", "/*", "*/", "#include", "#define",
    "#if", "#end", "#!",
)  # fmt: skip

# What a byte is to the scan of a line; 0 is everything else.
_SEPARATORS = b"|\t,;"  # numbered from 1; the fifth is a gap
_GAP, _BACKSLASH, _DOLLAR, _EQUALS, _OPENER = 5, 6, 7, 8, 9
_SPACE, _LINE_FEED = 32, 10


def _scan_table() -> np.ndarray:
    table = np.zeros(256, np.uint8)
    for number, separator in enumerate(_SEPARATORS, 1):
        table[separator] = number
    for characters, number in ((b" ", _GAP), (b"\\", _BACKSLASH), (b"$", _DOLLAR), (b"=", _EQUALS), (b"([", _OPENER)):
        table[list(characters)] = number
    return table


def _byte_table(characters: bytes) -> np.ndarray:
    table = np.zeros(256, np.bool_)
    table[list(characters)] = True
    return table


_SCAN = _scan_table()
_BLANK = _byte_table(b" \t\r\f\v")
_STATEMENT_ENDS = _byte_table(b"{};")
_CLOSERS = _byte_table(b")]},;")
_CALL_ENDS = _byte_table(b")]({[:,'\"")
_WORD = _byte_table(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_BEGINNINGS = np.array([list(word.encode().ljust(max(map(len, BEGINNINGS)), b"\0")) for word in BEGINNINGS], np.uint8)


@kernel
def _begins_a_statement(data, begin, end, beginnings):
    for number in range(len(beginnings)):
        for offset in range(beginnings.shape[1]):
            wanted = beginnings[number, offset]
            if wanted == 0:
                return True
            if begin + offset >= end or data[begin + offset] != wanted:
                break
        else:
            return True
    return False


@kernel
def _only_closers(data, begin, end, closers):
    at = begin
    while at < end and closers[data[at]]:
        at += 1
    return at == end


@kernel
def _scan_line(data, begin, end, beginnings, classes, counts):
    """Count the separators of one line without the blanks around it; returns whether it looks like code."""
    scan, statement_ends, closers, call_ends, word = classes
    counts[:] = 0
    has_assignment, has_call, has_dollar, has_backslash = False, False, False, False
    spaces = 0
    for at in range(begin, end):
        found = scan[data[at]]
        if found == _GAP:
            spaces += 1
            continue
        if spaces:
            counts[_GAP] += spaces >= 2
            spaces = 0
        if found == 0:
            continue
        if found < _GAP:
            counts[found] += 1
        elif found == _OPENER:
            has_call = has_call or (at > begin and word[data[at - 1]])
        elif found == _EQUALS:
            blanks = begin < at < end - 1 and data[at - 1] == _SPACE and data[at + 1] == _SPACE
            has_assignment = has_assignment or blanks
        elif found == _DOLLAR:
            has_dollar = True
        else:
            has_backslash = True
    if has_backslash:
        return False
    last = data[end - 1]
    if statement_ends[last] or _only_closers(data, begin, end, closers):
        return True
    if _begins_a_statement(data, begin, end, beginnings):
        return True
    return not has_dollar and (has_assignment or (has_call and call_ends[last]))


@kernel
def _kinds(data, starts, blank, beginnings, classes, out):
    counts = np.zeros(_GAP + 1, np.int64)
    before, run, in_runs = np.zeros_like(counts), np.zeros_like(counts), np.zeros_like(counts)
    for document in range(len(out)):
        before[:], run[:], in_runs[:] = 0, 0, 0
        lines, code_lines = 0, 0
        here, end = starts[document], starts[document + 1]
        while here < end:
            line_end = here
            while line_end < end and data[line_end] != _LINE_FEED:
                line_end += 1
            begin, stop = here, line_end
            while begin < stop and blank[data[begin]]:
                begin += 1
            while stop > begin and blank[data[stop - 1]]:
                stop -= 1
            here = line_end + 1
            if begin == stop:
                continue
            lines += 1
            code_lines += _scan_line(data, begin, stop, beginnings, classes, counts)
            for number in range(len(counts)):
                if counts[number] != before[number]:
                    if before[number] >= 2 and run[number] >= RUN:
                        in_runs[number] += run[number]
                    before[number], run[number] = counts[number], 0
                run[number] += 1
        for number in range(len(counts)):
            if before[number] >= 2 and run[number] >= RUN:
                in_runs[number] += run[number]
        if lines > 0 and 3 * in_runs.max() >= 2 * lines:
            out[document] = TABLE
        elif lines >= LEAST_CODE_LINES and 2 * code_lines >= lines:
            out[document] = CODE
        else:
            out[document] = PROSE


def text_kinds(batch: TextBatch) -> np.ndarray:
    """Return uint8[documents]: PROSE, CODE or TABLE, from the texts as given (not normalised)."""
    out = np.empty(len(batch.starts) - 1, np.uint8)
    classes = (_SCAN, _STATEMENT_ENDS, _CLOSERS, _CALL_ENDS, _WORD)
    _kinds(batch.data, batch.starts, _BLANK, _BEGINNINGS, classes, out)
    return out
