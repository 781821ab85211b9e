"""fastText's prediction of labels, compiled: the bytes of a line in, its likeliest labels out, without a Python object.

What: Joulin et al. 2016, "Bag of tricks for efficient text classification". A line is cut into words at ASCII spaces
and NUL. A word gives the row of its own, if the dictionary has it, and those of its character n-grams, "<" and ">" put
around it (Bojanowski et al. 2017). The mean of all rows goes down a Huffman tree, at each node a logistic regression
says how likely the right branch is, and the probability of a label is the product along its path.
How: an n-gram is a 32-bit FNV-1a hash, continued byte by byte from the n-gram that is one character shorter, modulo the
number of buckets. Most buckets were pruned to make the model small, which one bit per bucket tells (250 KB, where the
rows' numbers take 8 MB). The rows of the dictionary's words are listed when it is loaded.
Cost: hashing n-grams is half of it: 1,000 characters of English have 2,400, of which 250 have a row. Listing also the
rows of other words when they are first met saved a tenth and is not worth its code.
Traps: the package hashes bytes as signed characters, so bytes from 0x80 on set the upper 24 bits too. "</s>" written
out in a text ends the line; a word that begins with __label__ is none. A sum of floats depends on its order: rows are
added one by one in the order of the text, and logarithms are taken with 1e-5 added and rounded to 32 bits, as the
package does, so that both give the same bits on a machine without fused multiply-add.
"""

import math
from typing import NamedTuple

import numpy as np

from pipeline_lib.compiled import kernel

FNV_START = np.uint32(2166136261)
FNV_PRIME = np.uint32(16777619)
BEGINNING, END = 0x3C, 0x3E  # < and >, put around a word
LABEL_PREFIX = np.frombuffer(b"__label__", np.uint8)
_ONE, _SIX, _LOW_SIX = np.uint64(1), np.uint64(6), np.uint64(63)  # places of bits in kept
LOG_OFFSET = 1e-5
LOWEST_SCORE = np.float32(math.log(LOG_OFFSET))
"""Branches below this logarithm are not entered."""


class Words(NamedTuple):
    """Words and the rows that each of them stands for: a hash table with linear probing."""

    data: np.ndarray
    """uint8[...]: the words, one after the other."""
    offsets: np.ndarray
    """int64[words + 1]"""
    rows: np.ndarray
    """int32[...]: the rows of the words, one after the other."""
    row_offsets: np.ndarray
    """int64[words + 1]"""
    slots: np.ndarray
    """int32[power of two]: numbers of words by hash; -1 = free."""


class Buckets(NamedTuple):
    """Where n-grams go: hash modulo the number of buckets."""

    kept: np.ndarray
    """uint64[buckets / 64]: one bit per bucket, set when it was not pruned."""
    rows: np.ndarray
    """int32[buckets]: the row of a bucket; -1 = pruned."""
    reciprocal: np.uint64
    shift: np.uint64
    """reciprocal: 2^shift / number of buckets, rounded down; at most 2^32."""
    min_ngram: int
    max_ngram: int
    """Shortest and longest n-gram, in characters."""


class Tables(NamedTuple):
    """A model as plain arrays. Rows: of the dictionary's words first, then of the buckets that were not pruned."""

    words: Words
    buckets: Buckets
    vectors: np.ndarray
    """float32[rows, dimension]"""
    nodes: np.ndarray
    """float32[labels - 1, dimension]: weights of the inner nodes; the last one is the root."""
    left: np.ndarray
    """int32[labels - 1]: a label, or labels + inner node."""
    right: np.ndarray
    """int32[labels - 1]"""
    line_end: int
    """The word "</s>", which ends every line."""


@kernel(inline="always")
def hash_step(value, byte):
    """Return the FNV-1a hash continued by one byte, which counts as a signed character."""
    return np.uint32((value ^ np.uint32(np.int8(byte))) * FNV_PRIME)


@kernel(inline="always")
def _separates(byte):
    return byte <= 0x20 and (byte == 0x20 or byte == 0 or (byte >= 0x09 and byte <= 0x0D))


@kernel(inline="always")
def bucket_of(value, reciprocal, shift, number):
    """Return value modulo the number of buckets, by multiplication: the quotient is at most one too small."""
    value = np.uint64(value)
    rest = value - ((value * reciprocal) >> shift) * number
    return rest - number if rest >= number else rest


@kernel
def subword_rows(word, size, buckets, rows, count):
    """Append to rows[count:] the rows of the n-grams of word[:size] ("<" and ">" included); return the new count."""
    number = np.uint64(buckets.rows.size)
    for first in range(size):
        if word[first] & 0xC0 == 0x80:
            continue
        value = FNV_START
        position = first
        for length in range(1, buckets.max_ngram + 1):
            if position == size:
                break
            value = hash_step(value, word[position])
            position += 1
            while position < size and word[position] & 0xC0 == 0x80:
                value = hash_step(value, word[position])
                position += 1
            if length >= buckets.min_ngram and not (length == 1 and (first == 0 or position == size)):
                bucket = bucket_of(value, buckets.reciprocal, buckets.shift, number)
                if (buckets.kept[bucket >> _SIX] >> (bucket & _LOW_SIX)) & _ONE:
                    rows[count] = buckets.rows[bucket]
                    count += 1
    return count


@kernel
def _begins_with(word, size, wanted, start, stop):
    """Whether word[1:size] begins with wanted[start:stop]."""
    length = stop - start
    same = 0
    while same < length and same < size - 1 and word[1 + same] == wanted[start + same]:
        same += 1
    return same == length


@kernel
def _find_word(words, word, size, value):
    """Return the number of the word that is word[1:size], whose hash is `value`, or -1."""
    mask = words.slots.size - 1
    slot = np.int64(value) & mask
    while words.slots[slot] >= 0:
        candidate = words.slots[slot]
        start, stop = words.offsets[candidate], words.offsets[candidate + 1]
        if stop - start == size - 1 and _begins_with(word, size, words.data, start, stop):
            return np.int64(candidate)
        slot = (slot + 1) & mask
    return np.int64(-1)


@kernel
def add_word(words, number, word, size, value, rows, first, last):
    """Make word[1:size], whose hash is `value`, the word `number`; it stands for rows[first:last]."""
    start, row_start = words.offsets[number], words.row_offsets[number]
    for k in range(size - 1):
        words.data[start + k] = word[1 + k]
    for k in range(last - first):
        words.rows[row_start + k] = rows[first + k]
    words.offsets[number + 1] = start + size - 1
    words.row_offsets[number + 1] = row_start + last - first
    mask = words.slots.size - 1
    slot = np.int64(value) & mask
    while words.slots[slot] >= 0:
        slot = (slot + 1) & mask
    words.slots[slot] = number


@kernel
def line_rows(data, begin, end, tables, word, rows):
    """Fill `rows` with those of the words of data[begin:end], in their order, and of the line's end; return how many.

    word: scratch, uint8[end - begin + 2]. rows: int32[row_room(end - begin)].
    """
    count = 0
    position = begin
    word[0] = BEGINNING
    while position < end:
        if _separates(data[position]):
            position += 1
            continue
        size = 1
        value = FNV_START
        while position < end and not _separates(data[position]):
            byte = data[position]
            value = hash_step(value, byte)
            word[size] = byte
            size += 1
            position += 1
        known = _find_word(tables.words, word, size, value)
        if known >= 0:
            for k in range(tables.words.row_offsets[known], tables.words.row_offsets[known + 1]):
                rows[count] = tables.words.rows[k]
                count += 1
            if known == tables.line_end:
                return count
        elif not _begins_with(word, size, LABEL_PREFIX, 0, LABEL_PREFIX.size):
            word[size] = END
            count = subword_rows(word, size + 1, tables.buckets, rows, count)
    rows[count] = tables.line_end
    return count + 1


@kernel
def row_room(size, max_ngram):
    """Return the greatest number of rows that `size` bytes can have: a word of n bytes has n + 2 with its brackets."""
    return 3 * size * max_ngram + size + 1


@kernel
def _mean(vectors, rows, count, hidden):
    """Fill hidden float32[dimension] with the mean of the rows, added one by one."""
    for d in range(hidden.size):
        hidden[d] = 0.0
    for k in range(count):
        row = rows[k]
        for d in range(hidden.size):
            hidden[d] += vectors[row, d]
    scale = np.float32(1.0 / count)
    for d in range(hidden.size):
        hidden[d] *= scale


@kernel
def _log(probability):
    return np.float32(math.log(np.float64(probability) + LOG_OFFSET))


@kernel
def best_labels(hidden, nodes, left, right, labels, probabilities, stack, scores):
    """Fill `labels` (int32) and `probabilities` (float32) with the likeliest labels, in no order; return how many.

    The search goes left first and leaves a branch that is less likely than all labels found, once these are as many as
    asked for. stack (int32) and scores (float32): scratch with room for twice the number of labels.
    """
    leaves = nodes.shape[0] + 1
    wanted = labels.size
    found = 0
    worst = 0  # place of the least likely label found
    stack[0] = 2 * leaves - 2
    scores[0] = 0.0
    depth = 1
    while depth:
        depth -= 1
        node, score = stack[depth], scores[depth]
        if score < LOWEST_SCORE or (found == wanted and score < probabilities[worst]):
            continue
        if node < leaves:
            place = worst if found == wanted else found
            found = min(found + 1, wanted)
            labels[place] = node
            probabilities[place] = score
            worst = 0
            for k in range(1, found):
                if probabilities[k] < probabilities[worst]:
                    worst = k
            continue
        inner = node - leaves
        product = np.float32(0.0)
        for d in range(hidden.size):
            product += nodes[inner, d] * hidden[d]
        to_right = np.float32(1.0 / np.float64(np.float32(1.0) + math.exp(-product)))
        stack[depth] = right[inner]
        scores[depth] = score + _log(to_right)
        stack[depth + 1] = left[inner]
        scores[depth + 1] = score + _log(np.float32(1.0 - np.float64(to_right)))
        depth += 2
    for k in range(found):
        probabilities[k] = math.exp(probabilities[k])
    return found


@kernel
def predict_line(data, begin, end, tables, word, rows, hidden, labels, probabilities, stack, scores):
    """Fill `labels` and `probabilities` with the likeliest labels of data[begin:end]; return how many.

    A line end inside counts as a space. The other arrays are scratch: see `line_rows` and `best_labels`.
    """
    count = line_rows(data, begin, end, tables, word, rows)
    _mean(tables.vectors, rows, count, hidden)
    return best_labels(hidden, tables.nodes, tables.left, tables.right, labels, probabilities, stack, scores)
