"""What one document decides for itself: repair, replacement, scores, verdict. Any piece of a shard, in any process.

The output of a piece depends on its documents, the settings and the evaluation sets only, so pieces can be done by any
number of workers in any order.
Trap: a parquet reader's batches follow row groups, never the machine, so batch limits cannot show in the output.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.stage import UserError, atomic_path, file_digest

from .c4 import C4_COLUMNS, apply_c4_batch
from .contamination import NOBODY, EvaluationIndex, build_index
from .document_scores import score_documents
from .language import LANGUAGE_COLUMNS, LanguageIdentifier
from .normalise import normalise_batch
from .personal_data import PersonalData
from .quality_model import QualityModel
from .receipts import PREVIEW_CHARACTERS, receipt_schema
from .rules import KEPT, active_rules, first_broken
from .symbol_lines import remove_symbol_lines
from .toxicity import load_scorer

if TYPE_CHECKING:
    from pipeline_lib.config.clean import CleanSettings

ROWS_PER_BATCH = 1024
INPUT_COLUMNS = ("id", "text", "source", "url", "license")


@dataclass
class Tally:
    """What happened in a shard: per source (documents, bytes), JSON-able through `to_json`."""

    entered: Counter = field(default_factory=Counter)  # (source, measure)
    rewritten: Counter = field(default_factory=Counter)  # source -> bytes taken out by rewriting
    dropped: Counter = field(default_factory=Counter)  # (source, rule, measure)
    replaced: Counter = field(default_factory=Counter)  # (source, kind of personal data) -> finds

    def to_json(self) -> dict[str, Any]:
        """Return nested lists in a fixed order."""
        return {
            "entered": [[source, measure, n] for (source, measure), n in sorted(self.entered.items())],
            "rewritten": sorted(map(list, self.rewritten.items())),
            "dropped": [[*key, n] for key, n in sorted(self.dropped.items())],
            "replaced": [[*key, n] for key, n in sorted(self.replaced.items())],
        }


@dataclass(frozen=True)
class Cleaned:
    """A batch after cleaning: the documents that stay, with score columns, and receipts of the others."""

    kept: pa.Table
    receipts: pa.Table


class DocumentCleaner:
    """Everything that is loaded once per process: rules, expressions, language model, evaluation index."""

    def __init__(
        self, settings: "CleanSettings", evaluation_files: list[Path], seed: int, quality_model: Path | None = None
    ):
        self.settings = settings
        self.rules = active_rules(settings)
        self._exempt = frozenset(settings.exempt_sources)
        self._personal_data = PersonalData(settings.personal_data.kinds, settings.personal_data.replacement, seed)
        self._language = LanguageIdentifier(settings.language) if settings.language.keep else None
        self._quality_model = QualityModel.load(quality_model) if quality_model else None
        self.toxicity = load_scorer(settings.toxicity)
        self._index: EvaluationIndex | None = None
        if settings.contamination.enabled:
            self._index = build_index(evaluation_files, settings.contamination.ngram)

    def clean(self, batch: pa.Table, tally: Tally) -> Cleaned:
        """Clean one batch with INPUT_COLUMNS and count what happened."""
        batch = batch.set_column(1, batch.schema.field("text"), batch["text"].combine_chunks().fill_null(""))
        exempt = pc.is_in(batch["source"], pa.array(sorted(self._exempt), pa.string())).to_numpy()
        array, extra = self._rewrite(batch, exempt, tally)
        columns: dict[str, Any] = score_documents(
            array, self.settings.gopher_quality.stop_words, self.settings.fineweb.short_line_characters
        )
        columns |= extra
        if self._language:
            columns |= self._identify(array.to_pylist())
        if self._quality_model:
            columns["quality_model"] = self._quality_model.score(array)
        if self.toxicity:
            columns[self.toxicity.column] = self.toxicity.score(array)
        copied_from = [None] * len(array)
        if self._index:
            columns["contamination"], owners = self._index.matches(array)
            copied_from = [None if owner == NOBODY else self._index.records[owner] for owner in owners.tolist()]
        verdicts = first_broken(columns, self.rules, exempt)
        table = batch.set_column(1, "text", array.cast(batch.schema.field("text").type))
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values, pa.string() if values.dtype == object else None))
        self._count(batch, array, verdicts, tally)
        return Cleaned(table.filter(pa.array(verdicts == KEPT)), self._receipts(table, verdicts, copied_from))

    def _rewrite(self, batch: pa.Table, exempt: np.ndarray, tally: Tally) -> tuple[pa.Array, dict[str, np.ndarray]]:
        texts, invalid = normalise_batch(batch["text"].combine_chunks(), self.settings.normalise)
        columns = {"invalid_utf8": invalid.astype(np.int8)}
        if self.settings.remove_symbol_lines:
            texts = remove_symbol_lines(texts, self.settings.symbol_line_replacement, exempt)
        texts, finds = self._personal_data.replace_batch(texts)
        self._count_finds(batch["source"].to_pylist(), finds, tally)
        columns["personal_data"] = finds.sum(axis=1, dtype=np.int32)
        if "c4" in self.settings.quality_rules:
            texts, c4_scores = apply_c4_batch(texts, self.settings.c4, exempt)
            columns |= {name: c4_scores[:, k] for k, name in enumerate(C4_COLUMNS)}
        return texts, columns

    def _count_finds(self, sources: list[str], finds: np.ndarray, tally: Tally) -> None:
        for document, kind in np.argwhere(finds).tolist():
            tally.replaced[sources[document], self._personal_data.kinds[kind]] += int(finds[document, kind])

    def _identify(self, texts: list[str]) -> dict[str, np.ndarray]:
        found = [self._language.identify(text) for text in texts]
        languages, scores, kept = zip(*found, strict=True) if found else ((), (), ())
        values = (np.array(languages, dtype=object), np.array(scores, np.float64), np.array(kept, np.float64))
        return dict(zip(LANGUAGE_COLUMNS, values, strict=True))

    def _count(self, before: pa.Table, after: pa.Array, verdicts: np.ndarray, tally: Tally) -> None:
        entered = pc.binary_length(before["text"]).to_pylist()
        left = pc.binary_length(after).to_pylist()
        for source, size, new_size, verdict in zip(
            before["source"].to_pylist(), entered, left, verdicts.tolist(), strict=True
        ):
            tally.entered[source, "documents"] += 1
            tally.entered[source, "bytes"] += size
            tally.rewritten[source] += size - new_size
            if verdict != KEPT:
                tally.dropped[source, self.rules[verdict].name, "documents"] += 1
                tally.dropped[source, self.rules[verdict].name, "bytes"] += new_size

    def _receipts(self, table: pa.Table, verdicts: np.ndarray, copied_from: list[str | None]) -> pa.Table:
        removed = np.flatnonzero(verdicts != KEPT)
        rows = table.take(pa.array(removed))
        rules = [self.rules[index] for index in verdicts[removed].tolist()]
        nothing = pa.nulls(len(removed), pa.float64())
        columns = {
            "id": rows["id"],
            "source": rows["source"],
            "rule": [rule.name for rule in rules],
            "score": [float(rows[rule.column][i].as_py()) for i, rule in enumerate(rules)],
            "threshold": [float(rule.threshold) for rule in rules],
            "preview": pc.utf8_slice_codeunits(rows["text"], 0, PREVIEW_CHARACTERS),
            "survivor_id": [copied_from[i] if rule.name == "contamination" else None
                            for i, rule in zip(removed.tolist(), rules, strict=True)],
            "jaccard": nothing,
            "containment": nothing,
        }  # fmt: skip
        return pa.Table.from_pydict(columns, schema=receipt_schema())


@dataclass(frozen=True)
class ShardJob:
    """Some row groups of a shard, and the two scratch files that are written."""

    source: Path
    groups: tuple[int, ...]
    candidates: Path
    receipts: Path


_cleaner: DocumentCleaner


def start_cleaner(
    settings: "CleanSettings", evaluation_files: list[Path], seed: int, quality_model: Path | None
) -> None:
    """Prepare this process for `clean_shard` (the initializer of the worker pool)."""
    global _cleaner
    _cleaner = DocumentCleaner(settings, evaluation_files, seed, quality_model)


def clean_shard(job: ShardJob) -> dict[str, Any]:
    """Clean one piece; return its tally, row counts and the digests of both files. Raises UserError for bad input."""
    tally = Tally()
    rows = removed = 0
    with (
        pq.ParquetFile(job.source) as shard,
        atomic_path(job.candidates) as kept_path,
        atomic_path(job.receipts) as gone,
    ):
        _check_columns(job.source, shard.schema_arrow)
        kept_schema = _cleaner.clean(shard.schema_arrow.empty_table().select(INPUT_COLUMNS), tally).kept.schema
        with (
            pq.ParquetWriter(kept_path, kept_schema, compression="zstd") as kept_writer,
            pq.ParquetWriter(gone, receipt_schema(), compression="zstd") as receipt_writer,
        ):
            for batch in shard.iter_batches(ROWS_PER_BATCH, list(job.groups), list(INPUT_COLUMNS), use_threads=False):
                cleaned = _cleaner.clean(pa.Table.from_batches([batch]).select(INPUT_COLUMNS), tally)
                kept_writer.write_table(cleaned.kept)
                receipt_writer.write_table(cleaned.receipts)
                rows += batch.num_rows
                removed += cleaned.receipts.num_rows
    digests = {"candidates": file_digest(job.candidates), "receipts": file_digest(job.receipts)}
    return {"documents": rows, "removed": removed, "tally": tally.to_json(), "digests": digests}


def _check_columns(path: Path, schema: pa.Schema) -> None:
    missing = [name for name in INPUT_COLUMNS if name not in schema.names]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r} (it has {', '.join(schema.names)}); run stage 01 with --force"
        )
