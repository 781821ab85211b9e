"""Repeated n-grams (Gopher, table A1), over the hashes of the words.

top n-gram: the most frequent n-gram (the first one among equals), the characters of all its occurrences with single
spaces between the words. duplicate n-grams: walk through the text; an n-gram that occurred before is counted and
stepped over whole, so that no character counts twice. Both are divided by the characters of the document.
How: an n-gram can only repeat where both of its (n-1)-grams do (Agrawal and Srikant 1994, "apriori"). So all pairs of
words are counted, and from then on only the places that are left: in ordinary prose a tenth of the text for n = 3 and
nearly nothing for n = 5. hash(n-gram) = mix(hash((n-1)-gram) * odd ^ hash(last word)); characters come from a running
sum of word lengths.
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
def count_occurrences(grams, places, count, keys, stamps, mask, stamp, slots, occurrences):
    """Count the n-grams at places[0:count]; fill slots[k], where the n-gram of place k is counted in occurrences."""
    for k in range(count):
        slot, added = find_or_add(keys, stamps, mask, stamp, grams[places[k]])
        slots[k] = slot
        occurrences[slot] = 1 if added else occurrences[slot] + 1


@kernel
def keep_repeated(places, count, slots, occurrences):
    """Move the places whose n-gram occurs more than once to the front; return how many there are."""
    kept = 0
    for k in range(count):
        if occurrences[slots[k]] > 1:
            places[kept] = places[k]
            slots[kept] = slots[k]
            kept += 1
    return kept


@kernel
def keep_extendable(grams, words, places, count, n):
    """Keep the places where an n-gram can repeat, and turn their (n-1)-gram hashes into n-gram hashes.

    Those are the places whose right neighbour is left as well.
    """
    kept = 0
    for k in range(count - 1):
        place = places[k]
        if places[k + 1] == place + 1:
            grams[place] = mix(grams[place] * _ODD ^ words[place + n - 1])
            places[kept] = place
            kept += 1
    return kept


@kernel
def top_characters(places, count, slots, occurrences, n, sums):
    """Return the characters in all occurrences of the most frequent n-gram; places[0:count] hold the repeated ones.

    Without any, the first n-gram of the text is the most frequent one.
    """
    best = 1
    first = 0
    for k in range(count):
        if occurrences[slots[k]] > best:
            best = occurrences[slots[k]]
            first = places[k]
    return best * (sums[first + n] - sums[first] + n - 1)


@kernel
def duplicate_characters(places, count, slots, seen, stamp, n, sums):
    """Return the characters in n-grams that occurred before, stepping over each one found.

    seen int32[slots]: holds `stamp` where the walk has met an n-gram.
    """
    total = 0
    next_place = 0
    for k in range(count):
        place = places[k]
        if place < next_place:
            continue
        if seen[slots[k]] == stamp:
            total += sums[place + n] - sums[place]
            next_place = place + n
        else:
            seen[slots[k]] = stamp
    return total


@kernel
def repetition_scores(
    words, lengths, count, characters, keys, stamps, stamp, mask, grams, sums, places, slots, occurrences, seen, out
):
    """Fill out[0:9] with the top 2-4-gram and duplicate 5-10-gram fractions; uses the nine stamps from `stamp` on.

    words uint64[count], lengths int32[count]; scratch per word: grams uint64, sums int64 (one longer), places and slots
    int32; per slot of the hash set: occurrences and seen int32 (seen zero at first, as `stamps`).
    """
    sums[0] = 0
    for i in range(count):
        sums[i + 1] = sums[i] + lengths[i]
    left = max(count - 1, 0)
    for i in range(left):
        grams[i] = mix(words[i] * _ODD ^ words[i + 1])
        places[i] = i
    for n in range(2, 11):
        if n > 2:
            left = keep_extendable(grams, words, places, left, n)
        count_occurrences(grams, places, left, keys, stamps, mask, stamp + n - 2, slots, occurrences)
        left = keep_repeated(places, left, slots, occurrences)
        if count < n:
            found = 0
        elif n <= 4:
            found = top_characters(places, left, slots, occurrences, n, sums)
        else:
            found = duplicate_characters(places, left, slots, seen, stamp + n - 2, n, sums)
        out[n - 2] = found / characters
