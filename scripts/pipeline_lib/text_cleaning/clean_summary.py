"""The numbers that stage 02 puts on its card, from the results of its units."""

from collections import Counter
from typing import Any

from pipeline_lib.stage import Stage

from .copied_records import COPIED_RECORDS
from .corpus import DUPLICATES
from .pieces import Shard, pieces_of


def summarise(stage: Stage, shards: list[Shard]) -> dict[str, Any]:
    """Return the numbers for the card: documents in and out, removals per rule, personal data replaced."""
    removed: Counter[str] = Counter()
    replaced: Counter[str] = Counter()
    cleaned = [stage.unit_result(piece.unit) for piece in pieces_of(shards)]
    final = [stage.unit_result(shard.name) for shard in shards]
    for result in cleaned:
        for _, kind, finds in result["tally"]["replaced"]:
            replaced[kind] += finds
    for dropped in [result["tally"]["dropped"] for result in cleaned] + [result["dropped"] for result in final]:
        for _, rule, measure, amount in dropped:
            removed[rule] += amount if measure == "documents" else 0
    kept = sum(amount for result in final for _, measure, amount in result["kept"] if measure == "documents")
    return {
        "documents_in": sum(result["documents"] for result in cleaned),
        "documents_kept": kept,
        "removed": dict(removed.most_common()),
        "personal_data_replaced": dict(replaced.most_common()),
        "evaluation_records": _spell_contamination(stage),
        "deduplication": _spell_deduplication(stage),
    }


def _spell_contamination(stage: Stage) -> str:
    """Return the card's line on the evaluation records: how many were compared, came in, and stay."""
    if not stage.settings.contamination.enabled:
        return "not compared (clean.contamination.enabled is false)"
    numbers = stage.unit_result(COPIED_RECORDS)
    return (
        f"{numbers['compared']:,} compared, {numbers['found']:,} found in what came in,"
        f" {numbers['kept']:,} in what is kept"
    )


def _spell_deduplication(stage: Stage) -> str:
    """Return the card's line on how good deduplication was on these very documents."""
    if not stage.settings.dedup.enabled:
        return "off"
    result = stage.unit_result(DUPLICATES)
    parts = [f"{result['fuzzy']:,} near duplicates, all verified"]
    if "lowest_jaccard" in result:
        parts = [f"precision 1.00: {parts[0]} on the real shingle sets, lowest Jaccard {result['lowest_jaccard']:.3f}"]
    measured = result.get("recall")
    if measured is None:
        parts.append("recall not measured (clean.dedup.planted_copies was 0)")
    elif measured["recall"] is None:
        none = f"none of {measured['planted']} planted copies reached the threshold"
        parts.append(f"recall not measurable: {none}{_spell_fewer(measured)}")
    else:
        parts.append(
            f"recall {measured['recall']:.3f} measured: {measured['found']} of {measured['duplicates']} planted copies"
            f" at or above the threshold were found{_spell_fewer(measured)}"
        )
    return "; ".join(parts)


def _spell_fewer(measured: dict[str, Any]) -> str:
    """Return how many copies were planted, where those are fewer than `clean.dedup.planted_copies` asks for."""
    if measured["planted"] == measured["asked"]:
        return ""
    return f" ({measured['planted']} of {measured['asked']} copies could be planted)"
