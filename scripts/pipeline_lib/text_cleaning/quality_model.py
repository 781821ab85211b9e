"""More like this: a linear classifier on hashed words that learns from examples in seconds and scores every document.

What: the logarithms of how often each word and each pair of neighbouring words occurs, hashed into 2^18 buckets and
scaled to length one; a weight per bucket; the logistic function of their product. That is what fastText's classifiers
come to without a hidden layer (Joulin et al. 2016), the kind that chose the text of DCLM (Li et al. 2024).
How: AdaGrad over the examples in a seeded order, compiled; both classes weigh the same whatever their numbers.
Cost: about a second per 10 MB of examples, 1 MB for the model.
Trap: it learns whatever tells the examples apart, also their source or layout. Give examples of both sides that come
from where your corpus comes from: labels of people on the corpus's own pages are worth more than any other example.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline_lib.compiled import kernel
from pipeline_lib.stage import UserError

from .arrow_text import text_buffers
from .characters import character_classes
from .words import mix, split

if TYPE_CHECKING:
    import pyarrow

BUCKETS = 1 << 18
PASSES = 20
LEARNING_RATE = 0.5
SHRINKAGE = 1e-5
"""How far a weight moves towards zero each time its bucket occurs, as a share of it."""
_PAIR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class QualityModel:
    """A trained classifier: weights float32[BUCKETS + 1], the last one the constant."""

    weights: np.ndarray

    def score(self, texts: "pyarrow.Array") -> np.ndarray:
        """Return, per text, how likely it is one of the examples, float64[documents] in 0..1."""
        data, offsets = text_buffers(texts)
        scores = np.zeros(len(texts))
        _score_batch(data, offsets, character_classes(), self.weights, scores)
        return scores

    def save(self, path: Path) -> None:
        """Write the weights as a .npy file."""
        with open(path, "wb") as stream:
            np.save(stream, self.weights, allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> "QualityModel":
        """Read what `save` wrote. Raises UserError for another file."""
        try:
            weights = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is no quality model ({error}); run stage 02 again with --force") from None
        if weights.shape != (BUCKETS + 1,) or weights.dtype != np.float32:
            raise UserError(f"{path} is no quality model of this version; run stage 02 again with --force")
        return cls(weights)


def train(wanted: "pyarrow.Array", unwanted: "pyarrow.Array", seed: int) -> QualityModel:
    """Learn to tell `wanted` texts from `unwanted` ones. Raises UserError when a side has no words."""
    sides = [_features(texts) for texts in (wanted, unwanted)]
    for name, (buckets, _, _) in zip(("examples", "contrast"), sides, strict=True):
        if not len(buckets):
            raise UserError(f"the {name} of clean.quality_model hold no words; name other files")
    counts = [len(starts) - 1 for _, _, starts in sides]
    buckets, values = (np.concatenate([side[part] for side in sides]) for part in (0, 1))
    starts = np.concatenate([sides[0][2], sides[1][2][1:] + sides[0][2][-1]])
    labels = np.repeat([1.0, 0.0], counts)
    importance = np.repeat([sum(counts) / (2 * count) for count in counts], counts)
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(len(labels)) for _ in range(PASSES)])
    weights = np.zeros(BUCKETS + 1)
    _descend(buckets, values, starts, labels, importance, orders, weights)
    return QualityModel(weights.astype(np.float32))


def _features(texts: "pyarrow.Array") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (buckets int64[n], values float64[n], starts int64[documents + 1]) of all texts."""
    data, offsets = text_buffers(texts)
    room = 2 * int(offsets[-1] - offsets[0]) + 1
    buckets, values = np.empty(room, np.int64), np.empty(room)
    starts = np.zeros(len(texts) + 1, np.int64)
    _features_of_batch(data, offsets, character_classes(), buckets, values, starts)
    return buckets[: starts[-1]].copy(), values[: starts[-1]].copy(), starts


@kernel
def _longest(offsets):
    longest = 1
    for i in range(offsets.size - 1):
        longest = max(longest, offsets[i + 1] - offsets[i])
    return longest


@kernel
def _document(data, start, end, classes, begins, ends, lengths, hashes, flags, counts, touched):
    """Count words and pairs of data[start:end] per bucket; return (how many buckets, length of the vector)."""
    words, _ = split(data, start, end, classes, begins, ends, lengths, hashes, flags)
    found = 0
    for i in range(words):
        for pair in range(2):
            if pair and i + 1 == words:
                break
            value = mix(hashes[i] * _PAIR + hashes[i + 1]) if pair else hashes[i]
            bucket = np.int64(value & np.uint64(BUCKETS - 1))
            if counts[bucket] == 0:
                touched[found] = bucket
                found += 1
            counts[bucket] += 1
    total = 0.0
    for k in range(found):
        total += np.log1p(counts[touched[k]]) ** 2
    return found, np.sqrt(total)


@kernel
def _features_of_batch(data, offsets, classes, buckets, values, starts):
    longest = _longest(offsets)
    begins, ends = np.empty(longest, np.int64), np.empty(longest, np.int64)
    lengths, hashes, flags = np.empty(longest, np.int32), np.empty(longest, np.uint64), np.empty(longest, np.uint8)
    counts, touched = np.zeros(BUCKETS, np.int32), np.empty(2 * longest, np.int64)
    filled = 0
    for i in range(offsets.size - 1):
        found, norm = _document(
            data, offsets[i], offsets[i + 1], classes, begins, ends, lengths, hashes, flags, counts, touched
        )
        for k in range(found):
            buckets[filled] = touched[k]
            values[filled] = np.log1p(counts[touched[k]]) / norm
            counts[touched[k]] = 0
            filled += 1
        starts[i + 1] = filled


@kernel
def _score_batch(data, offsets, classes, weights, scores):
    longest = _longest(offsets)
    begins, ends = np.empty(longest, np.int64), np.empty(longest, np.int64)
    lengths, hashes, flags = np.empty(longest, np.int32), np.empty(longest, np.uint64), np.empty(longest, np.uint8)
    counts, touched = np.zeros(BUCKETS, np.int32), np.empty(2 * longest, np.int64)
    for i in range(offsets.size - 1):
        found, norm = _document(
            data, offsets[i], offsets[i + 1], classes, begins, ends, lengths, hashes, flags, counts, touched
        )
        product = 0.0
        for k in range(found):
            product += weights[touched[k]] * np.log1p(counts[touched[k]])
            counts[touched[k]] = 0
        scores[i] = _logistic(weights[BUCKETS] + (product / norm if norm else 0.0))


@kernel
def _logistic(value):
    if value >= 0:
        return 1.0 / (1.0 + np.exp(-value))
    return np.exp(value) / (1.0 + np.exp(value))


@kernel
def _descend(buckets, values, starts, labels, importance, orders, weights):
    """Minimise the logistic loss by AdaGrad (Duchi et al. 2011), one document at a time."""
    squares = np.full(weights.size, 1e-8)
    for turn in range(orders.shape[0]):
        for document in orders[turn]:
            first, last = starts[document], starts[document + 1]
            value = weights[BUCKETS]
            for k in range(first, last):
                value += weights[buckets[k]] * values[k]
            slope = (_logistic(value) - labels[document]) * importance[document]
            for k in range(first, last):
                bucket = buckets[k]
                gradient = slope * values[k] + SHRINKAGE * weights[bucket]
                squares[bucket] += gradient * gradient
                weights[bucket] -= LEARNING_RATE * gradient / np.sqrt(squares[bucket])
            squares[BUCKETS] += slope * slope
            weights[BUCKETS] -= LEARNING_RATE * slope / np.sqrt(squares[BUCKETS])
