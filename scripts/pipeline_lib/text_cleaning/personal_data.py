"""Personal data and credentials, found by shape, validated, and replaced in place, over Arrow's own bytes.

How: a compiled scan names the places (`personal_data_scan.py`), expressions and validators look at those alone
(`personal_data_kinds.py`), and the bytes around the finds are copied. A document without a find is not touched; no
Python object is made for it.
Two ways to replace: a tag such as [EMAIL], or a stand-in that is the same wherever the same value occurs
(user04212391@example.com), so that who wrote to whom survives. Stand-ins lie in the ranges that are reserved for
examples, so a second pass finds nothing. They are pseudonyms, not anonymity: who has a value and the seed can compute
its stand-in.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import xxhash

from .arrow_text import text_buffers
from .personal_data_kinds import CONTEXT, KINDS, Kind, Search
from .personal_data_scan import GROUPED, NUMBER, find_places, with_plain_signs

if TYPE_CHECKING:
    import pyarrow

Replacement = Literal["tag", "stable"]


@dataclass(frozen=True, slots=True)
class Find:
    """One find: `kind` is a position in PersonalData.kinds; `first` and `last` are bytes of the batch's buffer."""

    document: int
    kind: int
    first: int
    last: int


class PersonalData:
    """Replaces the chosen kinds; `kinds` has them in their order of precedence."""

    def __init__(self, kinds: Iterable[str], replacement: Replacement = "tag", seed: int = 0):
        """Raises ValueError for a kind that does not exist."""
        chosen = set(kinds)
        if unknown := sorted(chosen - KINDS.keys()):
            raise ValueError(f"there is no kind of personal data {unknown[0]!r}; there are {', '.join(KINDS)}")
        self.kinds = tuple(name for name in KINDS if name in chosen)
        self._kinds: list[Kind] = [KINDS[name] for name in self.kinds]
        self._stable = replacement == "stable"
        self._seed = seed
        self._searches: dict[int, list[tuple[int, Search]]] = {}
        for number, kind in enumerate(self._kinds):
            for search in kind.searches:
                self._searches.setdefault(search.place, []).append((number, search))
        self._reach = {place: max(s.reach for _, s in found) for place, found in self._searches.items()}

    def replace_batch(self, texts: "pyarrow.Array") -> tuple["pyarrow.Array", np.ndarray]:
        """Return (the texts with every find replaced, finds int32[documents, kinds]).

        texts: a string or large_string array without nulls; the result is large_string, and the same buffers when
        nothing was found. Raises ValueError for nulls.
        """
        import pyarrow as pa

        texts = texts.cast(pa.large_string())
        data, offsets = text_buffers(texts)
        counts = np.zeros((len(texts), len(self.kinds)), np.int32)
        pieces: list[bytes | memoryview] = []
        grown = np.zeros(len(texts) + 1, np.int64)
        view, copied = memoryview(data), int(offsets[0])
        for find in self.find(data, offsets):
            instead = self._instead(find, view).encode()
            pieces += (view[copied : find.first], instead)
            copied = find.last
            counts[find.document, find.kind] += 1
            grown[find.document + 1] += len(instead) - (find.last - find.first)
        if not pieces:
            return texts, counts
        pieces.append(view[copied : int(offsets[-1])])
        moved = offsets - offsets[0] + np.cumsum(grown)
        buffers = [None, pa.py_buffer(moved), pa.py_buffer(b"".join(pieces))]
        return pa.Array.from_buffers(pa.large_string(), len(texts), buffers), counts

    def replace(self, text: str) -> tuple[str, dict[str, int]]:
        """Return one text with every find replaced, and how many there were of each kind that occurred."""
        import pyarrow as pa

        replaced, counts = self.replace_batch(pa.array([text], pa.large_string()))
        found = {kind: count for kind, count in zip(self.kinds, counts[0].tolist(), strict=True) if count}
        return (replaced[0].as_py() if found else text), found

    def find(self, data: np.ndarray, offsets: np.ndarray) -> Iterator[Find]:
        """Yield the finds in the order of the text, none overlapping another."""
        document, found = -1, []
        for number, what, first, last in find_places(data, offsets).tolist():
            if number != document:
                yield from _without_overlaps(found)
                document, found = number, []
            if what in self._searches:
                found += self._look(data, int(offsets[number]), int(offsets[number + 1]), number, what, first, last)
        yield from _without_overlaps(found)

    def _look(
        self, data: np.ndarray, start: int, end: int, document: int, what: int, first: int, last: int
    ) -> Iterator[Find]:
        """Yield what the searches for one place accept; the expressions see the place and what is around it."""
        before = data[max(start, first - 4 * CONTEXT) : first].tobytes().decode("utf-8", "ignore")
        here = data[first : min(end, last + self._reach[what])].tobytes().decode("utf-8", "ignore")
        text = read = before + here
        at, stop = len(before), len(before) + (last - first if what == NUMBER else 1)
        if what in GROUPED and not text.isascii():
            read = with_plain_signs(text)
            if what == NUMBER:
                stop = at + len(data[first:last].tobytes().decode("utf-8", "ignore"))
        for kind, search in self._searches[what]:
            known, byte = at, first  # of the last find: a stretch of addresses can be as long as the document
            match = search.expression.search(read, at) if what == NUMBER else search.expression.match(read, at)
            while match and match.start() < stop:
                span, next_at = search.accept(match), match.end()
                if span is not None:
                    begin = byte + _bytes(text, known, span[0])
                    known, byte = span[1], begin + _bytes(text, *span)
                    next_at = span[1]  # an expression reads on into the next number when one blank is between them
                    yield Find(document, kind, begin, byte)
                match = search.expression.search(read, next_at) if what == NUMBER else None

    def _instead(self, find: Find, data: memoryview) -> str:
        kind = self._kinds[find.kind]
        if not self._stable:
            return kind.tag
        written = with_plain_signs(str(data[find.first : find.last], "utf-8"))
        value = written.encode().translate(None, b" -.()/").lower()
        return kind.stand_in(xxhash.xxh3_64_intdigest(value, self._seed))


def _bytes(text: str, at: int, to: int) -> int:
    """Return how many bytes of UTF-8 lie between two positions; negative when `to` comes first."""
    return len(text[at:to].encode()) if to >= at else -len(text[to:at].encode())


def _without_overlaps(found: list[Find]) -> list[Find]:
    """Return one document's finds in text order; of overlapping ones that of the first kind, then the earlier one."""
    if len(found) < 2:
        return found
    free: list[Find] = []
    cluster: list[Find] = []  # finds that overlap one another, directly or through others: a handful
    end = -1
    for find in sorted(found, key=lambda f: f.first):
        if find.first >= end:
            free += _by_precedence(cluster)
            cluster = []
        cluster.append(find)
        end = max(end, find.last)
    return free + _by_precedence(cluster)


def _by_precedence(cluster: list[Find]) -> list[Find]:
    taken: list[Find] = []
    for find in sorted(cluster, key=lambda f: (f.kind, f.first, -f.last)):
        if all(find.last <= other.first or find.first >= other.last for other in taken):
            taken.append(find)
    return sorted(taken, key=lambda f: f.first)
