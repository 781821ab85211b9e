"""What of the text a run has read: counted exactly, from the packing plan, without looking at a token again.

While training reads, it keeps *spans*: [context, epoch, parts, first, stop] says that the sequences first..stop-1 of an
epoch were read, which began when the cache had so many parts. A span names its sequences for ever: parts that are added
later come after what an epoch began with (packing/reading_order.py). The spans are part of the data position in every
checkpoint, so kills and resumes cannot lose or double them; a run of one context has one span per epoch.

At the end the plan turns them into intervals of tokens. A token may lie in several intervals: in a later epoch, in the
plan of another context length of the curriculum, in a copy that the mixture asked for. What was read at least once is
the length of the *union* of the intervals, read again is the rest. The same with the first token of each interval left
off, which nothing predicts, gives the tokens that were predicted for the first time.

Cost: a few sorts of the pieces (0.15 s per million each), nothing per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.packing.reading_order import ReadingOrder
from pipeline_lib.stage import Ledger, StageFailure
from pipeline_lib.stage.ledger import NOT_REACHED, SET_ASIDE

from .meters import TokenCounts

FLOW = "text"
LEFT_OUT = "left out of the mixture"

Span = list[int]


def extend_spans(spans: list[Span], order: ReadingOrder, before: dict[str, Any], rows: int) -> list[Span]:
    """Return `spans` and the next `rows` sequences of `order` after the data position `before`."""
    spans, size = [list(span) for span in spans], order.sequences
    epoch, parts, offset = before["epoch"], before["parts"], before["offset"]
    while rows:
        if offset >= size:
            epoch, parts, offset = epoch + 1, len(order.parts) - 1, 0
        taken = min(rows, size - offset)
        if spans and spans[-1][:3] == [before["context"], epoch, parts] and spans[-1][4] == offset:
            spans[-1][4] += taken
        else:
            spans.append([before["context"], epoch, parts, offset, offset + taken])
        rows, offset = rows - taken, offset + taken
    return spans


def times_read(spans: list[Span], order: ReadingOrder, context: int) -> np.ndarray:
    """Return how often each sequence of a context's plan was read, int64 [sequences]."""
    times = np.zeros(order.sequences, np.int64)
    for span_context, epoch, parts, first, stop in spans:
        if span_context != context:
            continue
        begin = 0
        for chunks in order.epoch_windows(epoch, parts):
            end = begin + int(sum(order.bounds[chunk + 1] - order.bounds[chunk] for chunk in chunks))
            if first <= begin and end <= stop:
                for chunk in chunks:
                    times[order.bounds[chunk] : order.bounds[chunk + 1]] += 1
            elif first < end and begin < stop:
                times[order.window_sequences(epoch, chunks)[max(0, first - begin) : stop - begin]] += 1
            begin = end
    return times


@dataclass(frozen=True)
class Pieces:
    """Intervals of tokens; document: number of the document among those of all chunks; start: first token among those
    of all chunks; times: how often it was read; int64 [pieces] each.
    """

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    times: np.ndarray

    def read(self) -> Pieces:
        """Return those that were read."""
        chosen = self.times > 0
        return Pieces(self.document[chosen], self.start[chosen], self.length[chosen], self.times[chosen])

    def union(self, without_first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return (documents, tokens), int64 [pieces] each: by whole the union grows with each interval.

        without_first: so many tokens at the start of each interval do not count.
        """
        by_start = np.argsort(self.start, kind="stable")
        start = self.start[by_start] + without_first
        stop = self.start[by_start] + self.length[by_start]
        reached = np.concatenate([[0], np.maximum.accumulate(stop)[:-1]]) if len(stop) else stop
        return self.document[by_start], np.maximum(0, stop - np.maximum(start, reached))


def joined(parts: list[Pieces]) -> Pieces:
    """Return the pieces of several plans as one."""
    columns = zip(*((part.document, part.start, part.length, part.times) for part in parts), strict=True)
    return Pieces(*(np.concatenate(column) for column in columns))


class TextRead:
    """The text of a packed cache as a run read it, up to the data position `state`."""

    def __init__(self, cache: PackedCache, state: dict[str, Any], contexts: list[int], validation_context: int):
        """`contexts`: the lengths whose plans the run trains on; validation_context: the one it validates on."""
        self._cache = cache
        chunks = cache.index["chunks"]
        self._documents = np.concatenate([[0], np.cumsum([chunk["documents"] for chunk in chunks], dtype=np.int64)])
        self._tokens = np.concatenate([[0], np.cumsum([chunk["tokens"] for chunk in chunks], dtype=np.int64)])
        self.sources = sorted({source for chunk in chunks for source in chunk["sources"]})
        files = [cache.chunk(number) for number in range(len(chunks))]
        codes = [np.array([self.sources.index(name) for name in file.header["sources"]], np.int64) for file in files]
        self._source = np.concatenate([code[file.source] for code, file in zip(codes, files, strict=True)])
        self._lengths = np.concatenate([file.lengths for file in files]).astype(np.int64)
        self._training = np.repeat([chunk["split"] == "train" for chunk in chunks], np.diff(self._documents))
        orders = {context: cache.order(context, state["seed"]) for context in contexts}
        times = {context: times_read(state["read"], order, context) for context, order in orders.items()}
        self._offered = joined([self._pieces(context, "train", times[context]) for context in contexts])
        self._read = self._offered.read()
        validation = np.zeros(cache.sequences(validation_context, "val"), np.int64)
        self._validation = self._pieces(validation_context, "val", validation)
        mixtures = [plan["mixture"] for plan in cache.index["plans"] if plan["context"] in contexts]
        self._mixed = any(mixture["weights"] or mixture["rehydration"] for mixture in mixtures)

    def _pieces(self, context: int, split: str, times: np.ndarray) -> Pieces:
        table = self._cache.table(context, split)
        return Pieces(
            self._documents[table.chunk] + table.document,
            self._tokens[table.chunk] + table.position,
            table.length.astype(np.int64),
            np.repeat(times, np.diff(table.pieces)),
        )

    @property
    def predicted_once(self) -> int:
        """Tokens that were predicted at least once."""
        return int(self._read.union(without_first=1)[1].sum())

    @property
    def tokens_read(self) -> dict[str, int]:
        """Tokens read at least once, and how many times more one of them was read."""
        once, uses = int(self._read.union()[1].sum()), int((self._read.length * self._read.times).sum())
        return {"once": once, "again": uses - once}

    def check(self, counts: TokenCounts) -> None:
        """Raise StageFailure unless the plan says that as many tokens were read and predicted as the loop counted."""
        read = int((self._read.length * self._read.times).sum())
        predicted = read - int(self._read.times.sum())
        if (read, predicted) != (counts.total - counts.padding, counts.predicted):
            raise StageFailure(
                f"training counted {counts.total - counts.padding:,} tokens of text and {counts.predicted:,} predicted,"
                f" by the packing plan it read {read:,} and predicted {predicted:,}; nothing was published"
            )

    def account(self, ledger: Ledger) -> None:
        """Enter in the ledger, per source, what came in, what was trained on, and why the rest was not.

        A document is kept when a token of it was read, its unread tokens are not reached. What came in is what the
        index says was packed, so a token that no plan holds leaves the ledger out of balance.
        """
        for chunk in self._cache.index["chunks"]:
            for source, amounts in chunk["sources"].items():
                ledger.enter(FLOW, source, amounts["documents"], tokens=amounts["tokens"])
        kept, offered = self._by_source(self._read), self._by_source(self._offered)
        set_aside = self._by_source(self._validation)
        left_out = self._left_out() if self._mixed else np.zeros((len(self.sources), 2), np.int64)
        uses = self._sum(self._source[self._read.document], self._read.length * self._read.times)
        for number, source in enumerate(self.sources):
            ledger.keep(FLOW, source, kept[number][0], tokens=kept[number][1])
            dropped = {
                SET_ASIDE: set_aside[number],
                NOT_REACHED: offered[number] - kept[number],
                LEFT_OUT: left_out[number],
            }
            for reason, (documents, tokens) in dropped.items():
                if documents or tokens:
                    ledger.drop(FLOW, source, reason, documents, tokens=tokens)
            if again := int(uses[number] - kept[number][1]):
                ledger.count(FLOW, source, "tokens read again", again)

    def _by_source(self, pieces: Pieces) -> np.ndarray:
        """Return documents and distinct tokens of some pieces, int64 [sources, 2]."""
        document, tokens = pieces.union()
        documents = np.bincount(self._source[np.unique(document)], minlength=len(self.sources))
        return np.stack([documents, self._sum(self._source[document], tokens)], 1)

    def _left_out(self) -> np.ndarray:
        """Return documents and tokens of the training split that are in no plan, int64 [sources, 2]."""
        missing = self._training.copy()
        missing[self._offered.document] = False
        source = self._source[missing]
        documents = np.bincount(source, minlength=len(self.sources))
        return np.stack([documents, self._sum(source, self._lengths[missing])], 1)

    def _sum(self, source: np.ndarray, amounts: np.ndarray) -> np.ndarray:
        total = np.zeros(len(self.sources), np.int64)
        np.add.at(total, source, amounts)
        return total
