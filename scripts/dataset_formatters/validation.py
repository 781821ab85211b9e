"""Is a file of records fit for training, and in which format?"""

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline_lib.stage import UserError, json_digest

from .detect import detect_dataset_format
from .record import MalformedRecord
from .record_files import NOT_JSON, NOT_UTF8, records_of_file
from .tables import FORMAT_HANDLERS, unknown_format

SAMPLE = 500
"""Records from the beginning of a file by which its format is told."""

MOST_LINES = 10
FEWEST_WORDS, MOST_WORDS = 3, 1000
"""Answers of fewer or more words are worth a look."""

_SHORTEST = 10
"""Characters; a text of as many is not short, however few words it has: some scripts write none."""


@dataclass(frozen=True)
class DatasetValidationResult:
    """What `validate_dataset` found; `errors` and `warnings` are at most ten lines each.

    is_valid: every record was read; format_type: the format that they were read by, None when none fits;
    total_samples: all records of the file; refused: how many of them were refused for each reason; sample_preview: the
    first conversation or preference pair.
    """

    is_valid: bool
    format_type: str | None
    total_samples: int
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    sample_preview: dict[str, Any] | None
    refused: dict[str, int]


def validate_dataset(path: Path | str, format_type: str | None = None) -> DatasetValidationResult:
    """Read every record of a file (JSON Lines, a JSON array or Parquet) with one format, the detected one by default.

    A refused record is an error. Warnings tell of answers that are very short or long, of records that come again and
    of pairs whose answers are the same. Raises UserError for a file that cannot be read and for an unknown format.
    """
    path = Path(path)
    if format_type is None:
        format_type = detect_dataset_format(value for _, value in islice(records_of_file(path), SAMPLE))
    elif format_type not in FORMAT_HANDLERS:
        raise UserError(unknown_format(format_type))
    handler = FORMAT_HANDLERS.get(format_type)
    found = _Findings()
    for where, value in records_of_file(path):
        found.total += 1
        if handler is None:
            continue
        try:
            if value is NOT_JSON:
                raise MalformedRecord("not_json", where, "the line is not JSON")
            if value is NOT_UTF8:
                raise MalformedRecord("not_utf8", where, "half of a surrogate pair, which no UTF-8 file can hold")
            found.add(handler(value, where), where)
        except MalformedRecord as refusal:
            found.refuse(refusal)
    if not found.total:
        found.errors.append(f"{path}: no records")
    elif handler is None:
        found.errors.append(_says_no_format(path, min(found.total, SAMPLE)))
    return DatasetValidationResult(
        is_valid=not found.errors,
        format_type=format_type,
        total_samples=found.total,
        errors=tuple(found.errors[:MOST_LINES]),
        warnings=tuple(found.warnings()[:MOST_LINES]),
        sample_preview=found.first,
        refused=dict(found.refused.most_common()),
    )


def _says_no_format(path: Path, sample: int) -> str:
    where, first = next(records_of_file(path))
    fields = ", ".join(sorted(first)) if isinstance(first, dict) else "no fields"
    return f"{where}: no format reads more than half of the first {sample} records; this one has {fields}"


class _Findings:
    """What the records of a file show one after the other."""

    def __init__(self) -> None:
        self.total = 0
        self.errors: list[str] = []
        self.refused: Counter[str] = Counter()
        self.first: dict[str, Any] | None = None
        self._seen: set[str] = set()
        self._remarks: Counter[str] = Counter()
        self._place: dict[str, str] = {}

    def refuse(self, refusal: MalformedRecord) -> None:
        self.refused[refusal.reason] += 1
        if len(self.errors) < MOST_LINES:
            self.errors.append(f"{refusal} ({refusal.reason})")

    def add(self, made: dict[str, Any], where: str) -> None:
        """Take note of one conversation or preference pair."""
        self.first = self.first or made
        digest = json_digest(made)
        if digest in self._seen:
            self._remark("come again", where)
        self._seen.add(digest)
        if "chosen" in made and made["chosen"] == made["rejected"]:
            self._remark("have the same answer on both sides", where)
        last = made["chosen" if "chosen" in made else "messages"][-1]
        if last.get("tool_calls"):
            return
        answer = last["content"]
        words = len(answer.split())
        if words < FEWEST_WORDS and len(answer) < _SHORTEST:
            self._remark(f"have an answer of fewer than {FEWEST_WORDS} words", where)
        if words > MOST_WORDS:
            self._remark(f"have an answer of more than {MOST_WORDS} words", where)

    def warnings(self) -> list[str]:
        return [
            f"{number} of {self.total} records {remark}, the first is {self._place[remark]}"
            for remark, number in self._remarks.most_common()
        ]

    def _remark(self, remark: str, where: str) -> None:
        self._remarks[remark] += 1
        self._place.setdefault(remark, where)
