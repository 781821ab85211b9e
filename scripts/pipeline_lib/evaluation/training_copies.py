"""Clean and dirty items: would the score be the same without the items whose text stood in the training data?

Stage 02 compares documents with the records of exactly the tasks that are asked here and writes what it found
(02_clean/contamination.parquet). An item is *dirty* when a document of the raw text has n consecutive words of it
(13 by default), else *clean*. Stage 02 normally removes such documents, so a dirty item has usually not been read;
`in_training` counts the items of which a document stayed (`clean.contamination.action: mark`, or `max_matches`).
Traps: an item without n words in a row cannot be found. Such items are among the clean ones; `too_short` counts them.
A record is named by file and line, which may be another item once stage 01 has been made again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import Stage
from pipeline_lib.text_cleaning.copied_records import COPIED_RECORDS

if TYPE_CHECKING:
    from .questionnaire import Questionnaire
    from .results import Scores

DOWNLOADED, CLEANED = "01_download", "02_clean"


@dataclass(frozen=True)
class TrainingCopies:
    """What stage 02 found: {record: row of contamination.parquet} and the files it compared.

    absent: why nothing is known, None when it is.
    """

    absent: str | None
    ngram: int
    files: tuple[str, ...]
    rows: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, stage: Stage) -> "TrainingCopies":
        """Read what stage 02 of this run wrote, verified. Raises UserError when that stage has not finished."""
        if CLEANED not in stage.needs:
            return cls("the run starts from a packed cache, whose text was cleaned elsewhere", 0, (), {})
        cleaned = stage.input(CLEANED)
        if COPIED_RECORDS not in cleaned.manifest.files:
            return cls(f"{CLEANED} has no {COPIED_RECORDS}: clean.contamination.enabled was false", 0, (), {})
        if cleaned.manifest.fingerprint["inputs"].get(DOWNLOADED) != stage.input(DOWNLOADED).digest:
            return cls(f"{CLEANED} was made from another {DOWNLOADED} than the one that is there now", 0, (), {})
        return cls.of_file(cleaned.file(COPIED_RECORDS))

    @classmethod
    def of_file(cls, path: Path) -> "TrainingCopies":
        """Read one contamination.parquet."""
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        about = table.schema.metadata
        rows = {row["record"]: row for row in table.to_pylist()}
        return cls(None, int(about[b"ngram"]), tuple(json.loads(about[b"files"])), rows)

    def of_task(self, files: Sequence[str], places: dict[str, str]) -> dict[str, Any]:
        """Return the entry of one task in results.json, without scores.

        files: of the task's source; places: {item that is asked: its record, `eval/<file>:<line>`}, in order.
        """
        missing = [file for file in files if file not in self.files]
        if self.absent or missing:
            return {"compared": False, "why": self.absent or f"stage 02 did not compare {', '.join(missing)}"}
        rows = {item: self.rows[place] for item, place in places.items()}
        dirty = [
            {
                "item": item,
                "record": row["record"],
                "documents": row["documents"],
                "documents_in_training": row["documents_kept"],
                "example": row["example"],
            }
            for item, row in rows.items()
            if row["documents"]
        ]
        return {
            "compared": True,
            "ngram": self.ngram,
            "items": len(rows),
            "dirty": len(dirty),
            "in_training": sum(1 for entry in dirty if entry["documents_in_training"]),
            "too_short": sum(1 for row in rows.values() if not row["ngrams"]),
            "dirty_items": dirty,
        }


def tell_apart(
    copies: TrainingCopies, questions: "Questionnaire", scores: "Scores", confidence: float
) -> dict[str, dict[str, Any]]:
    """Return {task: entry}; a task with dirty items also has `scores`: {model: {metric: {clean, dirty}}}.

    A group without items has no score (null), and the interval of a single item has no bounds.
    """
    found = {}
    for name in questions.tasks:
        found[name] = copies.of_task(questions.files[name], questions.places(name))
        if found[name].get("dirty"):
            dirty = {entry["item"] for entry in found[name]["dirty_items"]}
            found[name]["scores"] = scores.clean_and_dirty(name, dirty, questions.metrics()[name], confidence)
    return found


def notes(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return what the card must say: nothing for a task that was compared and has no dirty item."""
    lines = []
    unknown: dict[str, list[str]] = {}
    for task, entry in found.items():
        if not entry["compared"]:
            unknown.setdefault(entry["why"], []).append(task)
        elif entry["dirty"]:
            lines.append(
                f"{task}: {entry['dirty']} of {entry['items']} items stand in the raw text,"
                f" {entry['in_training']} in what was trained on; clean and dirty scores are in results.json"
            )
    return lines + [f"not compared with the training text ({why}): {', '.join(t)}" for why, t in unknown.items()]
