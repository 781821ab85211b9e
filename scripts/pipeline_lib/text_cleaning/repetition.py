"""Repeated n-grams (Gopher, table A1), in one pass per n over the hashes of the words.

top n-gram: the most frequent n-gram (the first one among equals), the characters of all its occurrences with single
spaces between the words. duplicate n-grams: walk through the text; an n-gram that occurred before is counted and
stepped over whole, so that no character counts twice. Both are divided by the characters of the document.
How: hash(n-gram) = mix(hash((n-1)-gram) * odd ^ hash(last word)), so going from n to n+1 costs one operation per word;
characters come from a running sum of word lengths.
Difference from datatrove: it compares duplicate n-grams after joining the words without spaces, so that "a bc" repeats
"ab c"; here the words themselves must repeat.
"""

import numpy as np

from pipeline_lib.compiled import kernel

from .hash_set import find_or_add
from .words import mix

_ODD = np.uint64(0x9E3779B97F4A7C15)

TOP_SIZES = (2, 3, 4)
DUPLICATE_SIZES = (5, 6, 7, 8, 9, 10)


@kernel
def extend_ngrams(grams, words, count, n):
    """Turn grams[i] from the hash of n - 1 words into that of the n words that start at word i, where there are n."""
    for i in range(count - n + 1):
        grams[i] = mix(grams[i] * _ODD ^ words[i + n - 1])


@kernel
def top_characters(grams, n, count, sums, keys, stamps, mask, stamp, occurrences, firsts):
    """Return the characters in all occurrences of the most frequent n-gram; 0 for fewer than n words."""
    best = 0
    best_first = 0
    for i in range(count - n + 1):
        slot, added = find_or_add(keys, stamps, mask, stamp, grams[i])
        if added:
            occurrences[slot] = 0
            firsts[slot] = i
        occurrences[slot] += 1
        if occurrences[slot] > best or (occurrences[slot] == best and firsts[slot] < best_first):
            best = occurrences[slot]
            best_first = firsts[slot]
    if best == 0:
        return 0
    return best * (sums[best_first + n] - sums[best_first] + n - 1)


@kernel
def duplicate_characters(grams, n, count, sums, keys, stamps, mask, stamp):
    """Return the characters in n-grams that occurred before, stepping over each one found."""
    total = 0
    i = 0
    while i < count - n + 1:
        _, added = find_or_add(keys, stamps, mask, stamp, grams[i])
        if added:
            i += 1
        else:
            total += sums[i + n] - sums[i]
            i += n
    return total


@kernel
def repetition_scores(
    words, lengths, count, characters, keys, stamps, stamp, mask, grams, sums, occurrences, firsts, out
):
    """Fill out[0:9] with the top 2-4-gram and duplicate 5-10-gram fractions; uses the nine stamps from `stamp` on.

    words uint64[count], lengths int32[count]; grams uint64, sums int64 (one longer), occurrences and firsts per slot
    are scratch.
    """
    sums[0] = 0
    for i in range(count):
        grams[i] = words[i]
        sums[i + 1] = sums[i] + lengths[i]
    for n in range(2, 11):
        extend_ngrams(grams, words, count, n)
        if n <= 4:
            found = top_characters(grams, n, count, sums, keys, stamps, mask, stamp + n - 2, occurrences, firsts)
        else:
            found = duplicate_characters(grams, n, count, sums, keys, stamps, mask, stamp + n - 2)
        out[n - 2] = found / characters
