"""Records in, files out: text becomes Parquet shards, every other kind JSON lines, and each unit a ledger entry.

    part-00000.parquet ...         id, text, source, url, origin, license (zstd); numbered through all text sources
    <kind>/<name>.jsonl            original records; `<name>-00000.jsonl` ... when the source has several units
    sources.json                   what there is: one entry per source

The files of a unit depend on its records alone and are committed together, so a killed run repeats at most one unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

from .. import engines
from ..stage import Stage, Unit, UserError, write_json_atomic
from .base import CATALOG, Dropped, ReadsAhead, Record, Source
from .registry import OpenedSource
from .sinks import totals
from .unit_files import EXAMPLES_SHOWN, Fill, parts_of, sink_of, write_unit


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
        closing(_fills(stage, opened, waiting, shard_bytes)) as fills,
    ):
        for number, key in enumerate(keys):
            if not (before := stage.finished(key)):
                if kept == opened.max_documents:
                    stage.note(f"{source.name}: {len(units) - number} of {len(units)} units not read (max_documents)")
                    break
                room = None if opened.max_documents is None else opened.max_documents - kept
                with stage.unit(key) as unit:
                    unit.result = next(fills)(unit, first_shard + shards, room)
            results.append(stage.unit_result(key))
            kept += results[-1]["documents"]
            shards += len(results[-1]["files"])
            if number == 0 and len(units) > 1 and results[0]["unstated_licenses"].get("documents") == kept:
                field = results[0]["unstated_licenses"]["field"]
                stage.say(f"  {source.name}: so far no document states a licence in the field '{field}'")
            bar.skip(1) if before else bar.advance(1)
    if kept == 0:
        raise UserError(f"download.sources '{source.name}' gave no records{_reasons(results)}; correct or remove it")
    _account_for_licenses(stage, source, results)
    described = {"name": source.name, "kind": source.kind, "format": source.format, "license": source.license}
    return {**described, **totals(results), "provenance": source.provenance()}


def _account_for_licenses(stage: Stage, source: Source, results: list[dict[str, Any]]) -> None:
    """Note how many documents state no licence in the field that the source names.

    Raises UserError when none states one: then it is the field that is wrong.
    """
    unstated = [result["unstated_licenses"] for result in results if result["unstated_licenses"]]
    if not unstated:
        return
    number, all_of_them = sum(each["documents"] for each in unstated), totals(results)["documents"]
    where, field, fields = (unstated[0][name] for name in ("where", "field", "fields"))
    if number == all_of_them:
        raise UserError(
            f"download.sources '{source.name}': none of its {number:,} documents states a licence in the field"
            f" '{field}'; the first, {where}, has {', '.join(fields)}; correct or remove `license_field`"
        )
    stage.note(
        f"{source.name}: {number:,} of {all_of_them:,} documents state no licence in the field '{field}' (the first is"
        f" {where}) and stand under that of the source, {source.license or 'not stated'}"
    )


def _fills(stage: Stage, opened: OpenedSource, waiting: Sequence[str], shard_bytes: int) -> Iterator[Fill]:
    """What fills each of the waiting units, in order: their records, or the files that the engine's tasks made of them.

    A single unit is read here, whatever the engine.
    """
    if engines.works_elsewhere(stage) and len(waiting) > 1:
        from .read_elsewhere import fills_of_tasks

        yield from fills_of_tasks(stage, opened.source, waiting, shard_bytes)
        return
    source = opened.source
    parts = parts_of(source.units())
    with closing(_contents(source, waiting)) as contents:
        for name, records in zip(waiting, contents, strict=True):

            def fill(unit: Unit, first_shard: int, room: int | None, name=name, records=records) -> dict[str, Any]:
                sink = sink_of(unit, source, first_shard, shard_bytes, parts[name])
                return write_unit(unit, sink, source, records, room, stage.say)

            yield fill


def _contents(source: Source, units: Sequence[str]) -> Iterator[Iterable[Record | Dropped]]:
    """The records of each unit, several units ahead where the source can."""
    if isinstance(source, ReadsAhead):
        yield from source.read_all(units)
    else:
        for unit in units:
            yield source.read(unit)


def _reasons(results: list[dict[str, Any]]) -> str:
    """The most frequent drop reasons in words, for the error about an empty source."""
    total: Counter[str] = Counter()
    for result in results:
        total.update(result["dropped"])
    named = [f"{number} x {reason}" for reason, number in total.most_common(EXAMPLES_SHOWN) if number]
    return f" ({', '.join(named)})" if named else ""
