"""What one document decides for itself: repair, replacement, scores, verdict. Any piece of a shard, in any process.

The output of a piece depends on its documents, the settings and the evaluation sets only, so pieces can be done by any
number of workers in any order.
Trap: a parquet reader's batches follow row groups, never the machine, so batch limits cannot show in the output.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dedup.memory_limit import MemoryLimit
from pipeline_lib.stage import UserError, atomic_path, file_digest

from .c4 import C4_COLUMNS, apply_c4_batch, cut_citations
from .contamination import EvaluationIndex, Matches, Rewrite, build_index
from .copied_records import CopiedRecords
from .datatrove_filter import GROUPS as DATATROVE_GROUPS
from .datatrove_filter import DatatroveQualityFilter
from .document_scores import score_again_for_fineweb, score_documents
from .language import load_identifier
from .normalise import normalise_batch
from .personal_data import PersonalData
from .quality_model import QualityModel
from .receipts import PREVIEW_CHARACTERS, receipt_schema
from .rules import KEPT, Rule, active_rules, first_broken
from .score_table import scores_table
from .symbol_lines import remove_symbol_lines
from .toxicity import load_scorer
from .url_lists import UrlLists

if TYPE_CHECKING:
    from pipeline_lib.config.clean import CleanSettings

ROWS_PER_BATCH = 1024
BATCH_BYTES = 4_000_000
INPUT_COLUMNS = ("id", "text", "source", "url", "origin", "license")
_ENDLESS = np.iinfo(np.int64).max


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
    """A batch after cleaning: the documents that stay, receipts of the others, the scores and the copies of all."""

    kept: pa.Table
    receipts: pa.Table
    scores: pa.Table
    copies: Matches | None


def personal_data(settings: "CleanSettings", seed: int) -> PersonalData:
    """Return what replaces personal data under these settings."""
    return PersonalData(settings.personal_data.kinds, settings.personal_data.replacement, seed)


def rewrites_of_records(settings: "CleanSettings", seed: int) -> list[Rewrite]:
    """Return what evaluation records go through, in turn, to read as documents do when they are compared with them.

    What C4 does to whole lines is left out: lines of a record are seldom those of the page that quotes it.
    """
    replaced = personal_data(settings, seed)
    rewrites: list[Rewrite] = [
        lambda texts: normalise_batch(texts, settings.normalise)[0],
        lambda texts: replaced.replace_batch(texts)[0],
    ]
    if "c4" in settings.quality_rules and settings.c4.citations:
        rewrites.append(cut_citations)
    return rewrites


class DocumentCleaner:
    """Everything that is loaded once per process: rules, expressions, language model, evaluation index."""

    def __init__(
        self, settings: "CleanSettings", evaluation_files: list[Path], seed: int, quality_model: Path | None = None
    ):
        self.settings = settings
        self.rules = active_rules(settings)
        self._exempt = frozenset(settings.exempt_sources)
        self._personal_data = personal_data(settings, seed)
        self._language = load_identifier(settings.language) if settings.language.keep else None
        self._quality_model = QualityModel.load(quality_model) if quality_model else None
        self.toxicity = load_scorer(settings.toxicity)
        self._urls = UrlLists(settings.url) if "url" in settings.quality_rules else None
        self._reference = DatatroveQualityFilter(settings) if settings.quality_engine == "datatrove" else None
        self._c4_reasons: dict[int, str] = {}  # of the batch in hand
        self.index: EvaluationIndex | None = None
        if settings.contamination.enabled:
            rewrites = rewrites_of_records(settings, seed)
            self.index = build_index(evaluation_files, settings.contamination.ngram, rewrites)

    def clean(self, batch: pa.Table, tally: Tally) -> Cleaned:
        """Clean one batch with INPUT_COLUMNS and count what happened."""
        batch = batch.set_column(1, batch.schema.field("text"), batch["text"].combine_chunks().fill_null(""))
        sizes = pc.binary_length(batch["text"]).to_numpy()
        batch = self._cut(batch, sizes)
        exempt = pc.is_in(batch["source"], pa.array(sorted(self._exempt), pa.string())).to_numpy()
        uncut, array, extra = self._rewrite(batch, exempt, tally)
        previews = pc.utf8_slice_codeunits(uncut, 0, PREVIEW_CHARACTERS)
        columns: dict[str, Any] = self._scores(uncut, array)
        for values in columns.values():
            values[sizes > (self.settings.max_document_bytes or _ENDLESS)] = np.nan  # only their beginning was read
        columns |= {"bytes": sizes} | extra
        if self._urls:
            columns |= self._urls.score(batch["url"].to_pylist())
        if self._language:
            columns |= self._language.identify_batch(uncut)
        if self._quality_model:
            columns["quality_model"] = self._quality_model.score(array)
        if self.toxicity:
            columns[self.toxicity.column] = self.toxicity.score(array)
        copies = self.index.matches(array) if self.index else None
        copied_from: list[str | None] = [None] * len(array)
        if copies:
            columns["contamination"] = copies.counts
            copied_from = self.index.first_record(copies)
        verdicts = first_broken(columns, self.rules, exempt, self._judge(uncut, array, exempt))
        table = batch.set_column(1, "text", array.cast(batch.schema.field("text").type))
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values, pa.string() if values.dtype == object else None))
        self._count(batch, sizes, array, verdicts, tally)
        names = pa.array([rule.name for rule in self.rules], pa.string())
        rules = names.take(pa.array(verdicts, mask=verdicts == KEPT))
        return Cleaned(
            table.filter(pa.array(verdicts == KEPT)),
            self._receipts(table, verdicts, copied_from, previews),
            scores_table(table, previews, list(columns), rules),
            copies,
        )

    def _cut(self, batch: pa.Table, sizes: np.ndarray) -> pa.Table:
        """Leave of a document beyond the greatest length only what its receipt shows; it is removed unread."""
        limit = self.settings.max_document_bytes
        if limit is None or not (sizes > limit).any():
            return batch
        column = batch["text"].combine_chunks()
        pieces, end = [], 0  # joined, they copy the texts that stay and never a long one
        for place in np.flatnonzero(sizes > limit).tolist():
            start = column[place].as_buffer()[: 4 * PREVIEW_CHARACTERS].to_pybytes().decode("utf-8", "ignore")
            pieces += [column[end:place], pa.array([start], column.type)]
            end = place + 1
        return batch.set_column(1, batch.schema.field("text"), pa.concat_arrays([*pieces, column[end:]]))

    def _scores(self, uncut: pa.Array, texts: pa.Array) -> dict[str, np.ndarray]:
        """Return the score columns in FineWeb's order: Gopher's of a page before C4 cuts it, FineWeb's of the rest."""
        short = self.settings.fineweb.short_line_characters
        columns = score_documents(uncut, self.settings.gopher_quality.stop_words, short)
        if "c4" in self.settings.quality_rules:
            score_again_for_fineweb(columns, texts, np.flatnonzero(pc.not_equal(uncut, texts)), short)
        return columns

    def _judge(self, uncut: pa.Array, texts: pa.Array, exempt: np.ndarray) -> dict[str, np.ndarray] | None:
        """Return what datatrove's filters say, where they are chosen: {rule: bool[documents]}."""
        if self._reference is None:
            return None
        ours = {rule.name for rule in self.rules if rule.name.split(".")[0] in DATATROVE_GROUPS}
        judged = {name: np.zeros(len(texts), np.bool_) for name in sorted(ours)}
        for place, (whole, text) in enumerate(zip(uncut.to_pylist(), texts.to_pylist(), strict=True)):
            reason = None
            if not exempt[place]:
                reason = self._c4_reasons.get(place) or self._reference.broken_rule(whole, text)
            if reason in judged:
                judged[reason][place] = True
        return judged

    def _rewrite(self, batch: pa.Table, exempt: np.ndarray, tally: Tally) -> tuple[pa.Array, pa.Array, dict]:
        """Return (texts before C4 took lines out, texts, columns)."""
        texts, invalid = normalise_batch(batch["text"].combine_chunks(), self.settings.normalise)
        columns = {"invalid_utf8": invalid.astype(np.int8)}
        if self.settings.remove_symbol_lines:
            texts = remove_symbol_lines(texts, self.settings.symbol_line_replacement, exempt)
        texts, finds = self._personal_data.replace_batch(texts)
        self._count_finds(batch["source"].to_pylist(), finds, tally)
        columns["personal_data"] = finds.sum(axis=1, dtype=np.int32)
        uncut = texts
        if "c4" in self.settings.quality_rules:
            texts, c4_scores = apply_c4_batch(uncut, self.settings.c4, exempt)
            if self._reference:
                texts = self._rewrite_as_datatrove(uncut, exempt)
            columns |= {name: c4_scores[:, k] for k, name in enumerate(C4_COLUMNS)}
        return uncut, texts, columns

    def _rewrite_as_datatrove(self, texts: pa.Array, exempt: np.ndarray) -> pa.Array:
        rewritten = texts.to_pylist()
        self._c4_reasons = {}
        for place, text in enumerate(rewritten):
            if not exempt[place]:
                rewritten[place], reason = self._reference.rewrite(text)
                if reason:
                    self._c4_reasons[place] = reason
        return pa.array(rewritten, pa.large_string())

    def _count_finds(self, sources: list[str], finds: np.ndarray, tally: Tally) -> None:
        for document, kind in np.argwhere(finds).tolist():
            tally.replaced[sources[document], self._personal_data.kinds[kind]] += int(finds[document, kind])

    def _count(self, before: pa.Table, sizes: np.ndarray, after: pa.Array, verdicts: np.ndarray, tally: Tally) -> None:
        unread = sizes > (self.settings.max_document_bytes or _ENDLESS)
        entered = sizes.tolist()
        left = np.where(unread, sizes, pc.binary_length(after).to_numpy()).tolist()
        for source, size, new_size, verdict in zip(
            before["source"].to_pylist(), entered, left, verdicts.tolist(), strict=True
        ):
            tally.entered[source, "documents"] += 1
            tally.entered[source, "bytes"] += size
            tally.rewritten[source] += size - new_size
            if verdict != KEPT:
                tally.dropped[source, self.rules[verdict].name, "documents"] += 1
                tally.dropped[source, self.rules[verdict].name, "bytes"] += new_size

    def _receipts(
        self, table: pa.Table, verdicts: np.ndarray, copied_from: list[str | None], previews: pa.Array
    ) -> pa.Table:
        removed = np.flatnonzero(verdicts != KEPT)
        rows = table.take(pa.array(removed))
        rules = [self.rules[index] for index in verdicts[removed].tolist()]
        nothing = pa.nulls(len(removed), pa.float64())
        columns = {
            "id": rows["id"],
            "source": rows["source"],
            "origin": rows["origin"],
            "rule": [rule.name for rule in rules],
            "score": [self._score_of(rule, rows, i) for i, rule in enumerate(rules)],
            "threshold": [float(rule.threshold) for rule in rules],
            "preview": previews.take(pa.array(removed)),
            "survivor_id": [copied_from[i] if rule.name == "contamination" else None
                            for i, rule in zip(removed.tolist(), rules, strict=True)],
            "jaccard": nothing,
            "containment": nothing,
            "bands": nothing.cast(pa.int32()),
            "survivor_preview": nothing.cast(pa.large_string()),
        }  # fmt: skip
        return pa.Table.from_pydict(columns, schema=receipt_schema())

    def _score_of(self, rule: Rule, rows: pa.Table, place: int) -> float | None:
        judged_elsewhere = self._reference and rule.name.split(".")[0] in DATATROVE_GROUPS
        return None if judged_elsewhere else float(rows[rule.column][place].as_py())


@dataclass(frozen=True)
class ShardJob:
    """Some row groups of a shard, and the four scratch files that are written."""

    source: Path
    groups: tuple[int, ...]
    candidates: Path
    receipts: Path
    scores: Path
    copies: Path


_cleaner: DocumentCleaner


def start_cleaner(
    settings: "CleanSettings",
    evaluation_files: list[Path],
    seed: int,
    quality_model: Path | None,
    limit: MemoryLimit | None = None,
) -> None:
    """Prepare this process for `clean_shard` (the initializer of the worker pool)."""
    global _cleaner
    if limit is not None:
        limit.prepare()
    _cleaner = DocumentCleaner(settings, evaluation_files, seed, quality_model)


def clean_shard(job: ShardJob) -> dict[str, Any]:
    """Clean one piece; return its tally, row counts and the digests of its files. Raises UserError for bad input."""
    tally = Tally()
    copied = CopiedRecords(_cleaner.index) if _cleaner.index else None
    rows = removed = 0
    with (
        _opened(job.source) as shard,
        atomic_path(job.candidates) as kept_path,
        atomic_path(job.receipts) as gone,
        atomic_path(job.scores) as scored,
    ):
        check_columns(job.source)
        empty = _cleaner.clean(shard.schema_arrow.empty_table().select(INPUT_COLUMNS), tally)
        with (
            pq.ParquetWriter(kept_path, empty.kept.schema, compression="zstd") as kept_writer,
            pq.ParquetWriter(gone, receipt_schema(), compression="zstd") as receipt_writer,
            pq.ParquetWriter(scored, empty.scores.schema, compression="zstd") as score_writer,
        ):
            for batch in _batches(shard, job):
                cleaned = _cleaner.clean(batch, tally)
                kept_writer.write_table(cleaned.kept)
                receipt_writer.write_table(cleaned.receipts)
                score_writer.write_table(cleaned.scores)
                if copied:
                    copied.add(cleaned.copies, batch["id"])
                rows += batch.num_rows
                removed += cleaned.receipts.num_rows
    digests = {name: file_digest(getattr(job, name)) for name in ("candidates", "receipts", "scores")}
    if copied:
        with atomic_path(job.copies) as path:
            copied.write(path)
        digests["copies"] = file_digest(job.copies)
    return {"documents": rows, "removed": removed, "tally": tally.to_json(), "digests": digests}


def wrote_everything(job: ShardJob, result: dict[str, Any]) -> bool:
    """Whether the files that the result of a piece names are there."""
    return all(getattr(job, name).is_file() for name in result["digests"])


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is no readable Parquet file ({error}); run stage 01 with --force") from None


def _batches(shard: pq.ParquetFile, job: ShardJob) -> Iterator[pa.Table]:
    """Yield the rows of the job in batches that hold about BATCH_BYTES, whatever the length of the documents.

    Raises UserError, with the file and the row group, for data that cannot be read, and for a document without id or
    source.
    """
    for group in job.groups:
        metadata = shard.metadata.row_group(group)
        mean = max(metadata.total_byte_size // max(metadata.num_rows, 1), 1)
        rows = max(1, min(ROWS_PER_BATCH, BATCH_BYTES // mean))
        first = sum(shard.metadata.row_group(earlier).num_rows for earlier in range(group))
        try:
            for batch in shard.iter_batches(rows, [group], list(INPUT_COLUMNS), use_threads=False):
                table = pa.Table.from_batches([batch]).select(INPUT_COLUMNS)
                _check_present(job.source, table, first)
                first += table.num_rows
                yield table
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{job.source}: row group {group}, from row {first}, cannot be read ({error}); run stage 01"
                " with --force"
            ) from None


def _check_present(path: Path, table: pa.Table, first: int) -> None:
    for name in ("id", "source"):
        if table[name].null_count:
            row = first + pc.index(pc.is_null(table[name]), True).as_py()
            raise UserError(f"{path}: row {row} has no {name}; every document needs one; run stage 01 with --force")


def check_columns(path: Path) -> None:
    """Raise UserError unless the shard has all INPUT_COLUMNS, as text."""
    with _opened(path) as shard:
        schema = shard.schema_arrow
    missing = [name for name in INPUT_COLUMNS if name not in schema.names]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r} (it has {', '.join(schema.names)}); run stage 01 with --force"
        )
    for name in INPUT_COLUMNS:
        kind = schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{path}: column {name!r} is {kind}, not text; run stage 01 with --force")
