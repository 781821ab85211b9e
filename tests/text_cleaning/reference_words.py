"""The definition of a word, written once more without compiled code: slow, plain, and used only to check."""

import unicodedata

from dedup.unicode_fold import SPACELESS_BLOCKS

CONNECTORS = "'’.-/@"
ADDRESS_STOPS = "\"'()<>[]{}"


def is_plain(character: str) -> bool:
    """A word character of a script with spaces."""
    wordlike = (
        character.isalnum()
        or character == "_"
        or (not character.isspace() and unicodedata.category(character)[0] == "M")
    )
    return wordlike and ord(character) < 0x33480 and not in_spaceless_script(character)


def in_spaceless_script(character: str) -> bool:
    """Whether the character's script is written without spaces."""
    return any(first <= ord(character) <= last for first, last in SPACELESS_BLOCKS)


def is_single(character: str) -> bool:
    """A word character that is a word of its own."""
    wordlike = character.isalnum() or unicodedata.category(character)[0] == "M"
    return wordlike and in_spaceless_script(character) and ord(character) < 0x33480


def reference_words(text: str) -> list[str]:
    """Split by the rules in the head of words.py."""
    words, at = [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        start = at
        if is_single(text[at]):
            at += 1
        elif is_plain(text[at]):
            at = _end_of_word(text, at)
        else:
            while at < len(text) and text[at] == text[start]:
                at += 1
        words.append(text[start:at])
    return words


def _end_of_word(text: str, at: int) -> int:
    while at < len(text):
        if is_plain(text[at]):
            at += 1
        elif text[at : at + 3] == "://":
            return _end_of_address(text, at)
        elif (
            text[at] in CONNECTORS
            and at + 1 < len(text)
            and is_plain(text[at + 1])
            or text[at] == ","
            and text[at - 1] in "0123456789"
            and text[at + 1 : at + 2] in tuple("0123456789")
        ):
            at += 1
        else:
            return at
    return at


def _end_of_address(text: str, at: int) -> int:
    end = at
    while at < len(text) and not (text[at].isspace() or text[at] in ADDRESS_STOPS or is_single(text[at])):
        at += 1
        if is_plain(text[at - 1]) or text[at - 1] == "/":
            end = at
    return end
