"""The rules of C4 (Raffel et al. 2020, section 2.2), which work on lines: a web page keeps those that read as prose.

A line goes when it has a word beyond any language, does not end like a sentence, is too short, or speaks of javascript,
cookies or terms of use. A document goes when a line that stayed so far has filler text or a curly bracket, or when too
few sentences remain. Unlike the other groups this one rewrites the text; it runs before any score is computed.
Sentences are counted by their ends: a run of final punctuation, with closing quotes or brackets, before a space or the
end of the line; a line that stays without one counts as one sentence. Punkt and spaCy, which other tools use, differ on
abbreviations.
"""

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipeline_lib.config.clean import C4Settings

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_SENTENCE_END = re.compile(r"[.!?。！？।؟]+[\"'”’)\]]*(?=\s|$)")
_LINE_ENDS = (".", "?", "!", '"', "'")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")

C4_COLUMNS = ("sentences", "lorem_ipsum", "curly_bracket")


class C4Result(NamedTuple):
    """The text that stays and the scores of the document rules, in the order of C4_COLUMNS."""

    text: str
    sentences: int
    lorem_ipsum: int
    curly_bracket: int


def count_sentences(line: str) -> int:
    """Return the number of sentences in a line that is not empty, at least one."""
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    rest = line[ends[-1] :] if ends else line
    return len(ends) + bool(rest.strip())


def apply_c4(text: str, settings: "C4Settings") -> C4Result:
    """Return what stays of a document, and its scores. Lines that stay lose their outer spaces."""
    kept: list[str] = []
    sentences = lorem_ipsum = curly_bracket = 0
    for line in text.split("\n"):
        line = line.strip()
        words = line.split()
        if any(len(word) > settings.max_word_characters for word in words):
            continue
        if settings.citations:
            line = _CITATION.sub("", line)
        if settings.terminal_punctuation and (not line.endswith(_LINE_ENDS) or line.endswith("...")):
            continue
        if len(words) < settings.min_line_words:
            continue
        lower = line.lower()
        if settings.lorem_ipsum and "lorem ipsum" in lower:
            lorem_ipsum += 1
        if settings.javascript and "javascript" in lower:
            continue
        if settings.curly_bracket and "{" in line:
            curly_bracket += 1
        if settings.policy and any(phrase in lower for phrase in _POLICY):
            continue
        sentences += count_sentences(line) if line else 0
        kept.append(line)
    return C4Result("\n".join(kept).strip(), sentences, lorem_ipsum, curly_bracket)
