"""Which format a data set is in: the handlers themselves are asked, on a sample of its records.

Several formats may read one record. `{"question", "answer"}` is read by orca-math, and by gsm8k too where the answer
ends in "#### 4"; MathInstruct's rows are Alpaca's with a "source". So the formats stand in an order from the specific
to the general, and the first of those that read about as many records as any does is the one. A few handlers do not
insist on what their data set is known by, and read what another is meant for; their records are told by a mark.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .record import MalformedRecord, has_entries
from .tables import FORMAT_HANDLERS, Handler

SPECIFIC_TO_GENERAL = (
    "openai-preference", "ultrafeedback", "stack-exchange", "orca-dpo", "sharegpt-preference", "preference", "hh-rlhf",
    "oasst", "glaive", "xlam", "gorilla", "toolbench", "hermes",
    "arc", "logiqa", "aqua", "openorca", "cot-collection",
    "gsm8k", "math", "metamath", "mathinstruct", "orca-math",
    "dolly", "alpaca", "sharegpt", "messages",
)  # fmt: skip
"""Pairs come first: a data set of pairs often has its better answer as a conversation beside them."""

ABOUT_AS_MANY = 0.9
"""A format reads about as many records as the best does: a few bad records must not hand the rest to a general one."""


def _says(record: dict[str, Any], *marks: str) -> bool:
    """Return whether a turn of a record's "conversations" has one of the marks in its text."""
    turns = record.get("conversations")
    turns = turns if isinstance(turns, list) else []
    texts = [turn.get("value", turn.get("content")) for turn in turns if isinstance(turn, dict)]
    return any(isinstance(text, str) and mark in text for text in texts for mark in marks)


def _of_hermes(record: dict[str, Any]) -> bool:
    return _says(record, "<tool_call>", "<tools>")


def _of_toolbench(record: dict[str, Any]) -> bool:
    if "query" in record:
        return has_entries(record.get("tools"))
    return "answer_generation" in record or _says(record, "\nAction Input:")


def _of_mathinstruct(record: dict[str, Any]) -> bool:
    source = record.get("source")
    return isinstance(source, str) and source.startswith("data/")


MARKS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "hermes": _of_hermes,
    "toolbench": _of_toolbench,
    "mathinstruct": _of_mathinstruct,
}
"""Of formats whose handlers also read what sharegpt, metamath or alpaca is meant for: whether a record is theirs."""


def records_read(records: Iterable[Any], handlers: Mapping[str, Handler] = FORMAT_HANDLERS) -> dict[str, int]:
    """Return how many of the records each format reads, in the order from specific to general."""
    names = sorted(handlers, key=_place)
    counts = dict.fromkeys(names, 0)
    for record in records:
        for name in names:
            try:
                handlers[name](record, "record")
                counts[name] += 1
            except MalformedRecord:
                continue
    return counts


def detect_dataset_format(records: Iterable[Any], handlers: Mapping[str, Handler] = FORMAT_HANDLERS) -> str | None:
    """Return the format that reads all or most of a sample of records, None when none reads more than half of them.

    Some hundred records of a data set are enough. `handlers`: the formats to choose from, all by default. Where several
    read about as many, the most specific is named (SPECIFIC_TO_GENERAL).
    """
    sample = list(records)
    counts = records_read(sample, handlers)
    for name in counts.keys() & MARKS.keys():
        marked = [record for record in sample if isinstance(record, dict) and MARKS[name](record)]
        counts[name] = records_read(marked, {name: handlers[name]})[name]
    most = max(counts.values(), default=0)
    if 2 * most <= len(sample):
        return None
    return next(name for name, count in counts.items() if count >= ABOUT_AS_MANY * most)


def _place(name: str) -> tuple[int, str]:
    """Where a format stands in the order; one that is not declared there is more general than all."""
    order = SPECIFIC_TO_GENERAL.index(name) if name in SPECIFIC_TO_GENERAL else len(SPECIFIC_TO_GENERAL)
    return order, name
