"""The first sentence of a docstring, and whether it can stand alone as a description of its name.

The rules look at form only (length, characters, public names), never at how well a description fits its name: a
filter that preferred easy items would flatter every model that is later measured on them.
"""

from __future__ import annotations

import re

from .extraction import Item

FEWEST_WORDS = 5
MOST_WORDS = 30
LONGEST_NAME = 90

_ROLE = re.compile(r":[a-zA-Z][\w+-]*(?::[a-zA-Z][\w+-]*)?:(?=`)")
_MARKUP = re.compile(r"``?|\*\*|(?<!\w)~(?=\w)")
_EMPHASIS = re.compile(r"(?<![\w*])\*(\w[^*]*\w|\w)\*(?![\w*])")
_SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z0-9(\"'`]|$)")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|eg|ie|approx|resp|Fig|Eq|Dr|Mr|St|No|al|[A-Z])\.$")
_WORD = re.compile(r"[a-z0-9]+")
_IDENTIFIER = re.compile(r"\w+")
_NOT_PROSE = re.compile(r"[^\x20-\x7e]|[{}<>|\\=@#$%^~\[\]]|::|->|>>>|https?:|\bTODO\b|\bFIXME\b")


def without_roles(text: str) -> str:
    """Text without Sphinx role names: they are markup, and they would split a sentence when words are compared."""
    return _ROLE.sub("", text) if "`" in text else text


def words(text: str) -> list[str]:
    """Lower-case letters-and-digits words without markup: what "the same text" means everywhere in this package."""
    return _WORD.findall(without_roles(text).lower())


def first_sentence(docstring: str) -> str:
    """The first sentence of the first paragraph, on one line, without markup, ending in a full stop; "" if none.

    A first paragraph without any full stop counts as a sentence when it is one line, as is the custom in one-line
    docstrings; longer ones are lists or headings. Its `words` are the first words of the docstring: where taking markup
    away would join two words into a new one, there is no sentence.
    """
    paragraph = docstring.split("\n\n", 1)[0].strip()
    plain = _EMPHASIS.sub(r"\1", _MARKUP.sub("", without_roles(paragraph)))
    sentence = _cut_sentence(" ".join(plain.split()), one_line="\n" not in paragraph)
    found = words(sentence)
    return sentence if found == words(paragraph)[: len(found)] else ""


def _cut_sentence(line: str, one_line: bool) -> str:
    for end in _SENTENCE_END.finditer(line):
        sentence = line[: end.end()]
        if not _ABBREVIATION.search(sentence):
            return sentence
    return line + "." if one_line and line and line[-1].isalnum() else ""


def describes(item: Item, module: str, summary: str) -> bool:
    """Whether `summary` is a plain description of a public name, fit for questions and answers."""
    path = item.name.removeprefix(module + ".").split(".")
    if len(item.name) > LONGEST_NAME or any(part.startswith("_") or len(part) < 3 for part in path):
        return False
    if any(not part.isidentifier() or part.startswith("_vendor") for part in module.split(".")):
        return False
    if not summary or not summary[0].isupper() or not summary.endswith(".") or _NOT_PROSE.search(summary):
        return False
    if _names_itself(path[-1], summary):
        return False
    return FEWEST_WORDS <= len(summary.split()) <= MOST_WORDS and len(words(summary)) >= FEWEST_WORDS


def _names_itself(name: str, summary: str) -> bool:
    """Whether a name that is no ordinary word stands in its own description, which would give the answer away."""
    ordinary = name.isalpha() and name.islower()
    return not ordinary and name in _IDENTIFIER.findall(summary)
