"""Records in, files out: text becomes Parquet shards, every other kind JSON lines, and each unit a ledger entry.

    part-00000.parquet ...         id, text, source, url, license (zstd); numbered through all text sources
    <kind>/<name>.jsonl            original records; `<name>-00000.jsonl` ... when the source has several units
    sources.json                   what there is: one entry per source

The files of a unit depend on its records alone and are committed together, so a killed run repeats at most one unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

from ..stage import Ledger, Stage, Unit, UserError, write_json_atomic
from .base import Dropped, ReadsAhead, Record, Source
from .registry import OpenedSource
from .sinks import LineSink, ShardSink, Sink, totals

BEYOND_LIMIT = "beyond max_documents (reading stopped)"
NOT_UNICODE = "not valid Unicode (lone surrogates)"
EXAMPLES_SHOWN = 3
CATALOG = "sources.json"


def write_sources(stage: Stage, opened: Sequence[OpenedSource], shard_bytes: int) -> list[dict[str, Any]]:
    """Write every source and `sources.json`; return its entries. Raises UserError for a source without records."""
    entries: list[dict[str, Any]] = []
    shards = 0
    for item in opened:
        entry = _write_source(stage, item, shards, shard_bytes)
        shards += len(entry["files"]) if item.source.kind == "text" else 0
        entries.append(entry)
    write_json_atomic(stage.work / CATALOG, {"sources": entries})
    stage.adopt(CATALOG)
    return entries


def _write_source(stage: Stage, opened: OpenedSource, first_shard: int, shard_bytes: int) -> dict[str, Any]:
    source = opened.source
    units = source.units()
    keys = [f"{source.kind}/{source.name}/{unit}" for unit in units]
    waiting = [unit for unit, key in zip(units, keys, strict=True) if not stage.finished(key)]
    if (done := len(units) - len(waiting)) and waiting:
        stage.say(f"  {source.kind}/{source.name}: {done} of {len(units)} units were finished before, continuing")
    results: list[dict[str, Any]] = []
    kept = shards = 0
    with (
        stage.progress(len(units), f"{source.kind}/{source.name}") as bar,
        closing(_contents(source, waiting)) as contents,
    ):
        for number, key in enumerate(keys):
            if not (before := stage.finished(key)):
                if kept == opened.max_documents:
                    stage.note(f"{source.name}: {len(units) - number} of {len(units)} units not read (max_documents)")
                    break
                room = None if opened.max_documents is None else opened.max_documents - kept
                with stage.unit(key) as unit:
                    sink = _sink(unit, source, first_shard + shards, shard_bytes, number if len(units) > 1 else None)
                    unit.result = _write_unit(unit, sink, source, next(contents), room, stage)
            results.append(stage.unit_result(key))
            kept += results[-1]["documents"]
            shards += len(results[-1]["files"])
            bar.skip(1) if before else bar.advance(1)
    if kept == 0:
        raise UserError(f"download.sources '{source.name}' gave no records{_reasons(results)}; correct or remove it")
    described = {"name": source.name, "kind": source.kind, "format": source.format, "license": source.license}
    return {**described, **totals(results), "provenance": source.provenance()}


def _contents(source: Source, units: Sequence[str]) -> Iterator[Iterable[Record | Dropped]]:
    """The records of each unit, several units ahead where the source can."""
    if isinstance(source, ReadsAhead):
        yield from source.read_all(units)
    else:
        for unit in units:
            yield source.read(unit)


def _sink(unit: Unit, source: Source, first_shard: int, shard_bytes: int, part: int | None) -> Sink:
    if source.kind == "text":
        return ShardSink(unit, source.name, source.license, first_shard, shard_bytes)
    suffix = "" if part is None else f"-{part:05d}"
    return LineSink(unit, source.name, f"{source.kind}/{source.name}{suffix}.jsonl")


def _write_unit(
    unit: Unit, sink: Sink, source: Source, records: Iterable[Record | Dropped], room: int | None, stage: Stage
) -> dict[str, Any]:
    """Write at most `room` records; return the unit's result: documents, bytes, files, and drops per reason."""
    counts = _Counts(unit.ledger, source, stage)
    with closing(sink):
        for record in records:
            if isinstance(record, Dropped):
                counts.drop(record)
            elif counts.documents == room:
                counts.drop(Dropped(BEYOND_LIMIT, _text_bytes(record)))
                break
            else:
                try:
                    counts.keep(sink.add(record))
                except UnicodeEncodeError:
                    counts.drop(Dropped(NOT_UNICODE, _text_bytes(record)))
    return {"documents": counts.documents, "bytes": counts.bytes, "files": sink.files, "dropped": dict(counts.dropped)}


def _text_bytes(record: Record) -> int:
    return len(record["text"].encode("utf-8", "surrogatepass")) if "text" in record and "key" in record else 0


class _Counts:
    """The ledger entries of one unit: documents for every kind, bytes for text only.

    The original records of chat data have no byte count that a formatter could find again, so none is promised.
    """

    def __init__(self, ledger: Ledger, source: Source, stage: Stage):
        self.documents = self.bytes = 0
        self.dropped: Counter[str] = Counter()
        self._ledger, self._stage = ledger, stage
        self._flow, self._name = source.kind, source.name
        self._shown: Counter[str] = Counter()

    def keep(self, size: int) -> None:
        measured = size if self._flow == "text" else 0
        self._ledger.enter(self._flow, self._name, 1, measured)
        self._ledger.keep(self._flow, self._name, 1, measured)
        self.documents += 1
        self.bytes += size

    def drop(self, dropped: Dropped) -> None:
        measured = dropped.bytes if self._flow == "text" else 0
        self._ledger.enter(self._flow, self._name, dropped.documents, measured)
        self._ledger.drop(self._flow, self._name, dropped.reason, dropped.documents, measured)
        self.dropped[dropped.reason] += dropped.documents
        if dropped.where and self._shown[dropped.reason] < EXAMPLES_SHOWN:
            self._shown[dropped.reason] += 1
            self._stage.say(f"  {self._name}: {dropped.where}: {dropped.reason}")


def _reasons(results: list[dict[str, Any]]) -> str:
    """The most frequent drop reasons in words, for the error about an empty source."""
    total: Counter[str] = Counter()
    for result in results:
        total.update(result["dropped"])
    named = [f"{number} x {reason}" for reason, number in total.most_common(EXAMPLES_SHOWN) if number]
    return f" ({', '.join(named)})" if named else ""
