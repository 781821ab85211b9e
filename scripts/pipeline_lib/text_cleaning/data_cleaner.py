"""Stage 02's judgement of single documents as a class, for texts in memory: notebooks, other pipelines, a quick look.

Duplicates need the whole corpus and are not its business; nor are the evaluation sets, unless their files are given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline_lib.config.clean import CleanSettings


@dataclass(frozen=True)
class CleanedText:
    """What became of one text: rewritten text, the rule that removed it (None: it stays), every score."""

    text: str
    removed_by: str | None
    scores: dict[str, Any]


class DataCleaner:
    """Repairs, replaces personal data, scores (toxicity too, where it is switched on) and judges, as stage 02 does."""

    def __init__(
        self, settings: "CleanSettings", evaluation_files: Sequence[Path] = (), seed: int = 0,
        quality_model: Path | None = None,
    ):  # fmt: skip
        """evaluation_files: sets to compare with; quality_model: what stage 02 trained. Raises UserError."""
        from .shard import DocumentCleaner
        from .toxicity_backend import describe_backend

        self.toxicity_backend = describe_backend(settings.toxicity)["backend"]  # as on the card
        self._cleaner = DocumentCleaner(settings, list(evaluation_files), seed, quality_model)

    def clean(self, texts: Sequence[str]) -> list[CleanedText]:
        """Return what becomes of each text, in order. Raises UnicodeEncodeError for a lone surrogate."""
        import pyarrow as pa

        from .shard import INPUT_COLUMNS, Tally

        ids = [str(number) for number in range(len(texts))]
        columns = {name: pa.array([""] * len(texts), pa.string()) for name in INPUT_COLUMNS}
        columns |= {"id": pa.array(ids, pa.string()), "text": pa.array(list(texts), pa.string())}
        cleaned = self._cleaner.clean(pa.table(columns).select(INPUT_COLUMNS), Tally())
        found: dict[str, CleanedText] = {}
        for row in cleaned.kept.to_pylist():
            scores = {name: value for name, value in row.items() if name not in INPUT_COLUMNS}
            found[row["id"]] = CleanedText(row["text"], None, scores)
        for row in cleaned.receipts.to_pylist():
            found[row["id"]] = CleanedText(row["preview"], row["rule"], {row["rule"]: row["score"]})
        return [found[identity] for identity in ids]
