"""The part of cleaning that needs all documents: duplicates, and the shards and receipts that leave the stage.

Three kinds of units, each resumable: `clean/<shard>/<piece>` (some row groups of a shard, in parallel), `duplicates`,
`<shard>` (the final shard and the receipts of its duplicates). What a unit hands to a later one is scratch: it lies in
the work folder and goes with it; its digest is in the unit's result and is checked when it is read.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib import engines
from pipeline_lib.stage import Ledger, Stage, StageFailure, file_digest, link_or_copy, ordered_map, ordered_threads

from .copied_records import COPIED_RECORDS, CopiedRecords, compared_sets, count_in_shards, write_copied_records
from .duplicate_table import DuplicateTable
from .memory_share import fitting_workers, memory_limit
from .pieces import SCRATCH, Piece, Shard, pieces_of, verified
from .receipts import RECEIPTS, write_receipts

if TYPE_CHECKING:
    from dedup.job import DedupJob
    from dedup.parameters import DedupParameters
    from pipeline_lib.config.clean import DedupSettings

DUPLICATES = "duplicates"
DEDUP = "dedup"
QUALITY_MODEL = "quality_model.npy"
FLOW = "text"
WARM_CLEANER = "pipeline_lib.text_cleaning.warm_cleaner"
WORKER_BYTES = 8_000_000  # of text for which another process (1 s to start) pays off


def evaluation_files(stage: Stage) -> list[Path]:
    """Return the evaluation sets that documents are compared with, none when that is switched off."""
    if not stage.settings.contamination.enabled:
        return []
    sets = compared_sets(stage)
    if not sets.files:
        stage.note("contamination was not checked: 01_download has no records of the tasks in evaluate.tasks")
    elif sets.tasks_without_records:
        tasks = ", ".join(sets.tasks_without_records)
        stage.note(f"contamination: 01_download has no records of the tasks {tasks}, so none were compared")
    if sets.files_without_task:
        files = ", ".join(sets.files_without_task)
        stage.note(f"contamination: not compared, because no task in evaluate.tasks asks them: {files}")
    return [stage.input("01_download").file(name) for name in sets.files]


def check_inputs(stage: Stage, shards: list[Shard]) -> None:
    """Refuse what cannot be used, before any work is done: languages that nobody can tell, settings of deduplication,
    shards without the columns of a document, ids that repeat. Sources that no document has are noted."""
    from .document_ids import check_ids
    from .language import check_kept_languages
    from .shard import check_columns

    if stage.settings.language.keep:
        check_kept_languages(stage.settings.language)
    if stage.settings.dedup.enabled:
        _check_dedup(stage)
    _note_unknown_sources(stage)
    for key in stage.todo(["ids"], "checking ids", "passes"):
        with stage.unit(key):
            for shard in shards:
                check_columns(shard.source)
            room = memory_limit(stage.settings).room() // 2
            check_ids([shard.source for shard in shards], stage.work / SCRATCH / "ids", room)


def _note_unknown_sources(stage: Stage) -> None:
    """Note each source that a setting names and no document has: a mistyped name would do nothing, without a word."""
    ledger = stage.input("01_download").ledger
    found = {source for flow, source, entry in ledger.items() if flow == FLOW and any(entry.kept)}
    named = {"clean.exempt_sources": stage.settings.exempt_sources}
    if stage.settings.dedup.enabled:
        named["clean.dedup.exact_sources"] = stage.settings.dedup.exact_sources
        named["clean.dedup.source_rank"] = stage.settings.dedup.source_rank
    for setting, sources in named.items():
        for source in sorted(set(sources) - found):
            stage.note(f"{setting} names {source}, and no document has that source")


def _check_dedup(stage: Stage) -> None:
    from dedup import gpu_device

    parameters = dedup_parameters(stage.settings.dedup, stage.seed)
    if parameters.device == "gpu" and not engines.works_elsewhere(stage):  # whose machines can have other devices
        gpu_device.require()


def train_quality_model(stage: Stage, shards: list[Shard]) -> Path | None:
    """Train the classifier on the examples that the settings name; return its file, None without examples."""
    if not stage.settings.quality_model.examples:
        return None
    from .quality_examples import train_on_examples

    for key in stage.todo([QUALITY_MODEL], "training the quality model"):
        with stage.unit(key) as unit:
            files = [shard.source for shard in shards]
            model, unit.result = train_on_examples(stage.settings, files, stage.seed, stage.note)
            model.save(unit.path(QUALITY_MODEL))
    return stage.work / QUALITY_MODEL


def clean_shards(stage: Stage, shards: list[Shard], quality_model: Path | None) -> None:
    """Clean every piece that is not finished, on up to `stage.threads` cores or by the engine."""
    from .shard import ShardJob
    from .toxicity_backend import describe_backend

    if (judge := describe_backend(stage.settings.toxicity)["backend"]) != "off":
        stage.note(f"toxicity is judged by {judge}")

    jobs = {
        piece.unit: ShardJob(shard.source, piece.groups, piece.candidates, piece.receipts, piece.scores, piece.copies)
        for shard in shards
        for piece in shard.pieces
    }
    waiting = [piece for piece in pieces_of(shards) if not stage.finished(piece.unit)]
    with closing(_cleaned(stage, waiting, jobs, quality_model)) as results:
        for key, result in zip(stage.todo(list(jobs), "cleaning", "pieces"), results, strict=True):
            with stage.unit(key) as unit:
                unit.result = result
                _enter(unit.ledger, result["tally"])
    _stop_if_nothing_is_left(stage, shards)


def _cleaned(
    stage: Stage, waiting: list[Piece], jobs: dict[str, Any], quality_model: Path | None
) -> Iterator[dict[str, Any]]:
    """Yield the result of each piece in order."""
    from .shard import clean_shard, start_cleaner, wrote_everything

    limit = memory_limit(stage.settings)
    known = (stage.settings, evaluation_files(stage), stage.seed, quality_model, limit)
    if engines.works_elsewhere(stage):
        mine = {piece.unit: jobs[piece.unit] for piece in waiting}
        return engines.results_of(stage, "clean", clean_shard, mine, wrote_everything, start_cleaner, known)
    worth = 1 + sum(piece.bytes for piece in waiting) // WORKER_BYTES
    wanted = min(stage.threads, len(waiting), worth) or 1
    workers = fitting_workers(wanted, limit, stage.settings)
    if workers < wanted:
        stage.note(f"clean.max_ram {stage.settings.max_ram}: {workers} of {wanted} cleaning processes fit")
    todo = [jobs[piece.unit] for piece in waiting]
    return ordered_map(clean_shard, todo, workers, start_cleaner, known, preload=(WARM_CLEANER,))


def _enter(ledger: Ledger, tally: dict[str, Any]) -> None:
    for source, measure, amount in tally["entered"]:
        ledger.enter(FLOW, source, **{"documents": 0, measure: amount})
    for source, rule, measure, amount in tally["dropped"]:
        ledger.drop(FLOW, source, rule, **{"documents": 0, measure: amount})
    for source, amount in tally["rewritten"]:
        ledger.drop(FLOW, source, "rewritten", documents=0, bytes=amount)
    for source, kind, finds in tally["replaced"]:
        ledger.count(FLOW, source, kind, finds)


def _stop_if_nothing_is_left(stage: Stage, shards: list[Shard]) -> None:
    results = [stage.unit_result(piece.unit) for piece in pieces_of(shards)]
    documents = sum(result["documents"] for result in results)
    if sum(result["removed"] for result in results) < documents:
        return
    if not documents:
        raise StageFailure("01_download has no text documents; give `download.sources` a source of kind text")
    from .rules import active_rules

    thresholds = {rule.name: rule.threshold for rule in active_rules(stage.settings)}
    removed: Counter[str] = Counter()
    for result in results:
        for _, rule, measure, amount in result["tally"]["dropped"]:
            removed[rule] += amount if measure == "documents" else 0
    most = ", ".join(f"{rule} ({thresholds[rule]:g}): {n}" for rule, n in removed.most_common(3))
    raise StageFailure(
        f"cleaning removed all {documents} documents; most by {most}. Loosen that threshold in the `clean` section, or"
        " take its group out of `clean.quality_rules`"
    )


def find_duplicates(stage: Stage, shards: list[Shard]) -> DuplicateTable:
    """Deduplicate over all candidates; return what was found."""
    table = DuplicateTable.below(stage.work / SCRATCH)
    for key in stage.todo([DUPLICATES], "deduplication", "passes"):
        files = [verified(stage, piece.unit, "candidates", piece.candidates) for piece in pieces_of(shards)]
        with stage.unit(key) as unit:
            found = _write_duplicates(stage, files, sum(_candidates(stage, shard) for shard in shards), table)
            unit.result = found | {"digests": {"rows": file_digest(table.rows), "copies": file_digest(table.copies)}}
    _clear_dedup(stage)
    for name in ("rows", "copies"):
        verified(stage, DUPLICATES, name, getattr(table, name))
    return table


def _candidates(stage: Stage, shard: Shard) -> int:
    results = [stage.unit_result(piece.unit) for piece in shard.pieces]
    return sum(result["documents"] - result["removed"] for result in results)


def _write_duplicates(stage: Stage, files: list[Path], candidates: int, table: DuplicateTable) -> dict[str, Any]:
    """Write one row per duplicate, and return how sure that is: recall measured, precision verified."""
    from dedup.corpus import Corpus
    from dedup.job import DedupJob
    from dedup.planted_copies import measure_recall
    from dedup.removals import identified_removals

    settings = stage.settings.dedup
    if not settings.enabled:
        table.write(None, candidates)
        return {"duplicates": 0}
    job = DedupJob(
        Corpus(tuple(files), quality_column="quality_model"),
        dedup_parameters(settings, stage.seed),
        stage.work / SCRATCH / DEDUP,
        memory_limit(stage.settings),
        stage.threads,
    )
    removals = identified_removals(job, stage.stop_if_interrupted, _who_does_dedup_steps(stage))
    table.write(removals, candidates)
    fuzzy = removals.jaccard[~removals.is_exact]
    result: dict[str, Any] = {"duplicates": len(removals), "fuzzy": len(fuzzy)}
    if len(fuzzy):
        result["lowest_jaccard"] = float(fuzzy.min())
    if settings.planted_copies:
        result["recall"] = measure_recall(job, removals, settings.planted_copies).to_json()
    return result


def _clear_dedup(stage: Stage) -> None:
    """Delete what deduplication left on disk: only now, when the journal says that nobody needs it again."""
    from dedup.removals import finished

    finished(stage.work / SCRATCH / DEDUP)


def _who_does_dedup_steps(stage: Stage) -> Callable[["DedupJob", str], None] | None:
    if not engines.works_elsewhere(stage):
        return None
    from .dedup_elsewhere import do_step

    return partial(do_step, stage)


def dedup_parameters(settings: "DedupSettings", seed: int) -> "DedupParameters":
    """Return the settings in dedup's own terms."""
    from dedup.parameters import DedupParameters

    return DedupParameters(
        ngram=settings.ngram,
        bands=settings.bands,
        rows=settings.rows,
        jaccard=settings.jaccard,
        containment=settings.containment,
        seed=seed,
        exact_sources=tuple(settings.exact_sources),
        exact_kinds=tuple(settings.exact_kinds),
        source_rank=tuple(settings.source_rank),
        max_removed_fraction=settings.max_removed_fraction,
        guard_minimum=settings.guard_minimum,
        max_cluster=settings.max_cluster,
        device=settings.device,
    )


def write_final_shards(stage: Stage, shards: list[Shard], duplicates: DuplicateTable) -> None:
    """Write every shard without its duplicates, and account for what was kept."""
    by_name = {shard.name: shard for shard in shards}
    with closing(_written(stage, shards, duplicates)) as results:
        for key, result in zip(stage.todo(list(by_name), "writing", "shards"), results, strict=True):
            with stage.unit(key) as unit:
                link_or_copy(by_name[key].final, unit.path(f"{key}.parquet"))  # a kill must not lose it
                unit.result = result
                for source, measure, amount in result["kept"]:
                    unit.ledger.keep(FLOW, source, **{"documents": 0, measure: amount})
                for source, rule, measure, amount in result["dropped"]:
                    unit.ledger.drop(FLOW, source, rule, **{"documents": 0, measure: amount})


def _written(stage: Stage, shards: list[Shard], duplicates: DuplicateTable) -> Iterator[dict[str, Any]]:
    """Yield the result of each unfinished shard in order; `stage.threads` cores or the engine write them."""
    from .final_shards import FinalJob, write_final_shard, wrote_everything

    starts = accumulate((_candidates(stage, shard) for shard in shards), initial=0)
    jobs = {
        shard.name: FinalJob(
            tuple(piece.candidates for piece in shard.pieces),
            tuple(stage.unit_result(piece.unit)["digests"]["candidates"] for piece in shard.pieces),
            duplicates,
            first,
            shard.final,
            shard.duplicate_receipts,
            stage.settings.dedup.jaccard,
        )
        for shard, first in zip(shards, starts, strict=False)
        if not stage.finished(shard.name)
    }
    if engines.works_elsewhere(stage):
        return engines.results_of(stage, "final", write_final_shard, jobs, wrote_everything)
    return ordered_threads(write_final_shard, jobs.values(), stage.threads)  # nearly all Arrow, outside the lock


def write_all_receipts(stage: Stage, shards: list[Shard]) -> None:
    """Join the receipts of all shards into removed.parquet."""
    for key in stage.todo(["receipts"], "receipts", "files"):
        with stage.unit(key) as unit:
            parts = []
            for shard in shards:
                parts += [verified(stage, piece.unit, "receipts", piece.receipts) for piece in shard.pieces]
                parts.append(verified(stage, shard.name, "receipts", shard.duplicate_receipts))
            unit.result = {"rows": write_receipts(parts, unit.path(RECEIPTS))}


def write_scores(stage: Stage, shards: list[Shard], duplicates: DuplicateTable) -> None:
    """Join the scores of all documents into scores.parquet, with the rule that removed each one, also duplicates."""
    from .score_table import SCORES, write_scores_file

    for key in stage.todo(["scores"], "scores", "files"):
        with stage.unit(key) as unit:
            parts = [verified(stage, piece.unit, "scores", piece.scores) for piece in pieces_of(shards)]
            unit.result = {"rows": write_scores_file(parts, duplicates, unit.path(SCORES), stage.settings)}


def write_contamination(stage: Stage, shards: list[Shard]) -> None:
    """Write contamination.parquet, unless nothing was compared: which evaluation records came in, and which stay."""
    if not stage.settings.contamination.enabled:
        return
    from .contamination import build_index
    from .shard import rewrites_of_records

    for key in stage.todo([COPIED_RECORDS], "contamination", "files"):
        with stage.unit(key) as unit:
            rewrites = rewrites_of_records(stage.settings, stage.seed)
            index = build_index(evaluation_files(stage), stage.settings.contamination.ngram, rewrites)
            found = CopiedRecords(index)
            for piece in pieces_of(shards):
                found.read(verified(stage, piece.unit, "copies", piece.copies))
            kept = count_in_shards(index, [stage.work / f"{shard.name}.parquet" for shard in shards])
            unit.result = write_copied_records(index, found, kept, compared_sets(stage), unit.path(COPIED_RECORDS))
