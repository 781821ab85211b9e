"""One unit of a source: its records into a sink, each one counted, with the first few drops of a reason shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

from ..stage import Ledger, Unit
from .base import Dropped, Record, Source, UnstatedLicense
from .sinks import LineSink, ShardSink, Sink

BEYOND_LIMIT = "beyond max_documents (reading stopped)"
NOT_UNICODE = "not valid Unicode (lone surrogates)"
EXAMPLES_SHOWN = 3

Say = Callable[[str], None]
Fill = Callable[[Unit, int, int | None], dict[str, Any]]
"""Fills a unit of the stage, given the number of its first shard and the room for records; returns its result."""


def sink_of(unit: Unit, source: Source, first_shard: int, shard_bytes: int, part: int | None) -> Sink:
    """Return what writes the records of a unit, which is a part of its source unless that has no other."""
    if source.kind == "text":
        return ShardSink(unit, source.name, source.license, first_shard, shard_bytes)
    suffix = "" if part is None else f"-{part:05d}"
    return LineSink(unit, source.name, f"{source.kind}/{source.name}{suffix}.jsonl")


def parts_of(units: Sequence[str]) -> dict[str, int | None]:
    """Return the number of each unit in its source, None for one that is the only one."""
    return {unit: number if len(units) > 1 else None for number, unit in enumerate(units)}


def write_unit(
    unit: Unit, sink: Sink, source: Source, records: Iterable[Record | Dropped], room: int | None, say: Say
) -> dict[str, Any]:
    """Write at most `room` records; return the unit's result.

    documents, bytes, files; dropped: documents per reason; unstated_licenses: how many documents state none in the
    field that their source names, and what the first of them says; empty without any.
    """
    counts = _Counts(unit.ledger, source, say)
    with closing(sink):
        for record in records:
            if isinstance(record, Dropped):
                counts.drop(record)
            elif counts.documents == room:
                counts.drop(Dropped(BEYOND_LIMIT, _text_bytes(record)))
                break
            else:
                try:
                    counts.keep(record, sink.add(record))
                except UnicodeEncodeError:
                    counts.drop(Dropped(NOT_UNICODE, _text_bytes(record)))
    return {
        "documents": counts.documents,
        "bytes": counts.bytes,
        "files": sink.files,
        "dropped": dict(counts.dropped),
        "unstated_licenses": counts.unstated_licenses,
    }


def _text_bytes(record: Record) -> int:
    return len(record["text"].encode("utf-8", "surrogatepass")) if "text" in record and "key" in record else 0


class _Counts:
    """The ledger entries of one unit: documents for every kind, bytes for text only.

    The original records of chat data have no byte count that a formatter could find again, so none is promised.
    """

    def __init__(self, ledger: Ledger, source: Source, say: Say):
        self.documents = self.bytes = 0
        self.dropped: Counter[str] = Counter()
        self.unstated_licenses: dict[str, Any] = {}
        self._ledger, self._say = ledger, say
        self._flow, self._name = source.kind, source.name
        self._shown: Counter[str] = Counter()

    def keep(self, record: Record, size: int) -> None:
        measured = size if self._flow == "text" else 0
        self._ledger.enter(self._flow, self._name, 1, measured)
        self._ledger.keep(self._flow, self._name, 1, measured)
        self.documents += 1
        self.bytes += size
        unstated = record.get("unstated_license")
        if isinstance(unstated, UnstatedLicense):  # an original record may have a field of that name
            self.unstated_licenses = self.unstated_licenses or {"documents": 0, **vars(unstated)}
            self.unstated_licenses["documents"] += 1

    def drop(self, dropped: Dropped) -> None:
        measured = dropped.bytes if self._flow == "text" else 0
        self._ledger.enter(self._flow, self._name, dropped.documents, measured)
        self._ledger.drop(self._flow, self._name, dropped.reason, dropped.documents, measured)
        self.dropped[dropped.reason] += dropped.documents
        if dropped.where and self._shown[dropped.reason] < EXAMPLES_SHOWN:
            self._shown[dropped.reason] += 1
            self._say(f"  {self._name}: {dropped.where}: {dropped.reason}")
