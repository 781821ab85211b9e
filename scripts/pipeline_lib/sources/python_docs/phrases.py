"""Phrases: every run of five words in the training documents, as numbers, so that a leak can be ruled out.

An evaluation answer must not stand in any training document, not even inside another docstring (packages list their
functions with one-line descriptions). Searching a thousand sentences in 50 MB takes minutes; comparing the numbers
of their five-word phrases takes milliseconds. If any phrase of a sentence is missing from the documents, the
sentence is not in them: an exact guarantee, up to a collision of 64-bit hashes, and one on the safe side.

Cost: 10 MB/s per core and 8 bytes per distinct phrase, a number about the size of the text itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash

from .summaries import words

LENGTH = 5
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5, 0x85EBCA77C2B2AE63], np.uint64
)

_word_numbers: dict[str, int] = {}


def phrase_numbers(text: str) -> np.ndarray:
    """uint64 [number of words - 4]: one number per run of five words of `text`."""
    numbers = np.array([_number(word) for word in words(text)], np.uint64)
    count = len(numbers) - LENGTH + 1
    if count < 1:
        return np.empty(0, np.uint64)
    result = np.zeros(count, np.uint64)
    for offset, multiplier in enumerate(_MULTIPLIERS):
        result += numbers[offset : offset + count] * multiplier
        result ^= result >> np.uint64(29)
    return result


def distinct_phrases(texts: Iterable[str]) -> np.ndarray:
    """uint64, sorted and distinct: the phrases of all the texts."""
    # Sort and compare neighbours: numpy's own unique hashes first and takes five times as long.
    every = np.sort(np.concatenate([np.empty(0, np.uint64), *(phrase_numbers(text) for text in texts)]))
    first = np.ones(len(every), bool)
    first[1:] = every[1:] != every[:-1]
    return every[first]


def occur_in(phrases: np.ndarray, known: np.ndarray) -> np.ndarray:
    """bool [number of phrases]: which of them stand in the sorted array `known`."""
    if not len(known):
        return np.zeros(len(phrases), bool)
    return known[np.searchsorted(known, phrases).clip(max=len(known) - 1)] == phrases


def _number(word: str) -> int:
    number = _word_numbers.get(word)
    if number is None:
        if len(_word_numbers) > 1_000_000:  # bounds the memory of a long-lived worker
            _word_numbers.clear()
        number = _word_numbers[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8"))
    return number
