"""A deduplicated collection that grows: sources are added one after the other, each paid for when it comes.

What: a folder with the sketches of every source, what was removed of it and in whose favour, and sorted tables of the
keys of what stayed. A new source is compared with the kept documents of all earlier ones and with itself; what was kept
before stays, whatever the new copy's quality. Its text is read; of earlier text only the candidates' row groups are.
Undo: the source goes, and the sources added after it are decided again from their sketches, so that the index is the
one that would have come about without it.
One writer: who changes an index holds its lock, and begins by reading the record again, which another process may have
written since the index was opened.
Cost: 0.6 KB on disk per document; opening verifies the checksum of every file of the index, about 10 GB/s, and adding
reads every input file once more, for its digest.
Traps: the input files are not copied. One that was moved or changed is found out (by its size and, where its time of
modification is another, its digest; every text that is read again must have the digest it had) and refused by name.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.stage import UserError, file_digest
from pipeline_lib.stage.atomic import fsync_folder, fsync_tree
from pipeline_lib.stage.lock import LOCK, StageLock

from . import steps
from .array_files import load_arrays, save_arrays
from .corpus import Corpus, Piece
from .cpu_dedup import RECEIPTS_NAME, check_outputs, write_kept_shards
from .guard import check_limits
from .index_record import RECORD, IndexRecord, check_files, check_inputs, read_record, with_digest
from .job import DedupJob
from .known import Known, Table
from .leftovers import clear_results
from .look_up_tables import write_tables
from .memory_limit import MemoryLimit
from .parameters import DedupParameters
from .receipts import Removals
from .removals import collect
from .sketch import SketchSet, band_name
from .weights import DUPLICATES, own_counts, refuse_other_columns

WORK = "work"


@dataclass(frozen=True)
class Run:
    """How to work, which never changes a result."""

    workers: int = 1
    max_ram: int | None = None
    say: Callable[[str], None] = lambda line: None


class DedupIndex:
    """An index in a folder. Sources are dicts as they stand in index.json, in the order in which they were added."""

    def __init__(self, folder: Path, parameters: DedupParameters, record: IndexRecord):
        self.folder = folder
        self.parameters = parameters
        self.record = record

    @property
    def sources(self) -> list[dict[str, Any]]:
        """What was added and decided."""
        return self.record.sources

    # Opening ---------------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: str | Path, parameters: DedupParameters) -> "DedupIndex":
        """Open or begin an index. Raises UserError for damage (which file, and what to do) and for other parameters."""
        folder = Path(folder)
        if not (folder / RECORD).exists():
            return cls(folder, parameters, IndexRecord(parameters.decisive()))
        index = cls(folder, parameters, read_record(folder, parameters))
        for source in index.sources:
            check_files(folder, source, index.record.parameters)
        return index

    @contextmanager
    def _alone(self, run: Run) -> Iterator[None]:
        """Keep other processes from changing the index, and know what they have changed."""
        lock = StageLock(self.folder / LOCK, run.say)
        try:
            if self.record.sources or self.record.pending or (self.folder / RECORD).exists():
                seen = self.sources
                self.record = read_record(self.folder, self.parameters)
                for source in self.sources:
                    if source not in seen:
                        check_files(self.folder, source, self.record.parameters)
            yield
        finally:
            lock.release()

    def _commit(self, sources: list[dict[str, Any]], pending: list[dict[str, Any]]) -> None:
        record = IndexRecord(self.record.parameters, sources, pending)
        record.write(self.folder)
        self.record = record

    # What is known ---------------------------------------------------------------------------------------------------

    def known(self) -> Known:
        """Return the kept documents of all sources, for a job to compare new ones with."""
        names = ["digest_high", *(band_name(band) for band in range(self.parameters.bands))]
        pieces, sketches, eras, rows = [], [], [], 0
        tables: dict[str, list[Table]] = {name: [] for name in names}
        for source in self.sources:
            corpus = _corpus(source)
            pieces += [(corpus, _shifted(_piece(piece), rows)) for piece in source["pieces"]]
            sketches += [self.folder / name for name in source["sketches"]]
            for name in names:
                stem = self._folder(source["name"]) / "tables" / name
                keys, kept = (np.load(f"{stem}.{part}.npy", mmap_mode="r") for part in ("keys", "rows"))
                tables[name].append(Table(keys, kept, rows))
            eras.append(rows)
            rows += source["documents"]
        return Known(tuple(pieces), tuple(sketches), tuple(eras), rows, tables)

    def _folder(self, name: str) -> Path:
        return self.folder / "sources" / name

    def _source(self, name: str) -> int:
        return self._place(name, self.sources)

    def _place(self, name: str, sources: list[dict[str, Any]]) -> int:
        for number, source in enumerate(sources):
            if source["name"] == name:
                return number
        have = ", ".join(source["name"] for source in sources) or "none"
        raise UserError(f"dedup: {self.folder} has no source {name!r}; it has {have}")

    # Changing --------------------------------------------------------------------------------------------------------

    def add(self, name: str, corpus: Corpus, run: Run = Run(), *, keep_all: bool = False) -> dict[str, Any]:
        """Deduplicate a new source against all before it and within itself; returns its entry in index.json.

        `keep_all` only enters it: nothing of it is removed. A call that was interrupted goes on when it is repeated.
        Raises UserError for a name that is taken and for a file that changes meanwhile, StageFailure from the guard
        (nothing is added then).
        """
        if not name or name != Path(name).name or name.startswith("."):
            raise UserError(f"dedup: {name!r} cannot be the name of a source; use letters, digits, - and _")
        with self._alone(run):
            self._decide_pending(run)
            if any(source["name"] == name for source in self.sources):
                raise UserError(
                    f"dedup: {self.folder} has a source {name!r} already; undo it first or choose another name"
                )
            entry = self._decide(name, corpus, run, keep_all)
            self._commit([*self.sources, entry], [])
            clear_results(self.folder / WORK)
        return entry

    def _decide(
        self, name: str, corpus: Corpus, run: Run, keep_all: bool, before: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Decide a source and return its entry.

        `before`: its entry of an earlier time. Its sketches count, whatever the times of its files, which must have
        been checked; and as it was accepted once, it is not put before the guard again.
        """
        folder = self._folder(name)
        job = DedupJob(
            corpus,
            self.parameters,
            self.folder / WORK,
            MemoryLimit(run.max_ram),
            run.workers,
            self.known(),
            sketch_folder=folder / "sketches",
            recorded=tuple(before["inputs"]) if before else (),
        )
        if keep_all:
            steps.sketch_all(job)
            removals = no_removals(job)
        else:
            steps.run(job, run.say)
            removals = collect(job)
            if before is None:
                check_limits(removals, self.parameters)
        written = [folder / "removed.arrays", *write_tables(job, removals.stays(), folder / "tables")]
        source, row = self._origin(removals.survivor, job)
        save_arrays(
            written[0],
            row=removals.row - job.first_new,
            survivor_source=source,
            survivor_row=row,
            is_exact=removals.is_exact,
            shared=removals.shared,
            size=removals.size,
            other_size=removals.other_size,
            weight=1 + own_counts(corpus)[removals.row - job.first_new],
        )
        sketches = [file.path for file in job.sketch_files]
        written += [*sketches, *(file.record for file in job.sketch_files)]
        for path in [*written, folder / "tables", folder / "sketches", folder]:
            fsync_tree(path) if path.is_file() else fsync_folder(path)
        return {
            "name": name,
            "keep_all": keep_all,
            "columns": [corpus.text_column, corpus.id_column, corpus.source_column, corpus.quality_column],
            "documents": removals.documents,
            "removed": len(removals),
            "inputs": _input_records(job),
            "pieces": [_piece_record(_shifted(piece, -job.first_new)) for piece in job.new_pieces],
            "sketches": [str(path.relative_to(self.folder)) for path in sketches],
            "files": {str(path.relative_to(self.folder)): file_digest(path) for path in written},
        }

    def _origin(self, rows: np.ndarray, job: DedupJob) -> tuple[np.ndarray, np.ndarray]:
        """Return (number of the source, row in it) of rows of a job."""
        firsts = np.array([*job.known.eras, job.first_new])
        number = np.searchsorted(firsts, rows, side="right") - 1
        return number, rows - firsts[number]

    def undo(self, name: str, run: Run = Run()) -> list[str]:
        """Take a source out, and decide all later ones again as if it had never been; returns their names.

        Their text is not sketched again, but that of candidates is read: the files of all sources that stay must hold
        what was added. Raises UserError, and changes nothing, when one does not, and for a name that is not there.
        """
        if not (self.folder / RECORD).exists():
            self._source(name)  # which is not there; a folder that is no index gets no lock
        with self._alone(run):
            everything = [*self.sources, *self.record.pending]
            number = self._place(name, everything)
            for source in everything if number + 1 < len(everything) else ():
                if source["name"] != name:
                    check_inputs(source)
            decided = min(number, len(self.sources))  # a source can be pending itself
            again = [source for source in everything[decided:] if source["name"] != name]
            self._commit(everything[:decided], again)
            shutil.rmtree(self._folder(name), ignore_errors=True)
            self._decide_pending(run)
        return [source["name"] for source in again]

    def finish_pending(self, run: Run = Run()) -> None:
        """Decide again what an interrupted undo left to do. Raises UserError for a file that is not as it was."""
        if self.record.pending:
            with self._alone(run):
                self._decide_pending(run)

    def _decide_pending(self, run: Run) -> None:
        while self.record.pending:
            source = self.record.pending[0]
            check_inputs(source)
            entry = self._decide(source["name"], _corpus(source), run, source["keep_all"], before=source)
            self._commit([*self.sources, entry], self.record.pending[1:])
            clear_results(self.folder / WORK)

    @classmethod
    def forget(cls, folder: str | Path, name: str, run: Run, parameters: DedupParameters) -> list[str]:
        """Undo a source of which files are damaged; those of earlier ones are still checked. Raises UserError."""
        index = cls(Path(folder), parameters, read_record(Path(folder), parameters))
        number = index._place(name, [*index.sources, *index.record.pending])
        for source in index.sources[:number]:
            check_files(index.folder, source, index.record.parameters)
        return index.undo(name, run)

    # Reading ---------------------------------------------------------------------------------------------------------

    def removals(self, name: str) -> Removals:
        """Return what was removed of a source; rows count over all sources up to it."""
        number = self._source(name)
        sketches = SketchSet(
            [self.folder / path for source in self.sources[: number + 1] for path in source["sketches"]],
            [piece["rows"] for source in self.sources[: number + 1] for piece in source["pieces"]],
        )
        stored = load_arrays(self._folder(name) / "removed.arrays")
        firsts = np.cumsum([0, *(source["documents"] for source in self.sources)])
        return Removals(
            sketches=sketches,
            first_new=int(firsts[number]),
            bands=self.parameters.bands,
            row=stored["row"] + firsts[number],
            survivor=stored["survivor_row"] + firsts[stored["survivor_source"]],
            **{part: stored[part].copy() for part in ("is_exact", "shared", "size", "other_size")},
        )

    def cluster_sizes(self, name: str) -> np.ndarray:
        """int64[documents of the source]: how many documents of all sources were removed in favour of each.

        A removed document that stood for others, by its own column `duplicates`, counts for these as well.
        """
        number = self._source(name)
        sizes = np.zeros(self.sources[number]["documents"], np.int64)
        for source in self.sources[number:]:
            stored = load_arrays(self._folder(source["name"]) / "removed.arrays")
            mine = stored["survivor_source"] == number
            np.add.at(sizes, stored["survivor_row"][mine], stored["weight"][mine])
        return sizes

    def export(self, name: str, output: Path, workers: int = 1, max_ram: int | None = None) -> None:
        """Write what stays of a source, shard by shard, with the column `duplicates` (cluster sizes), and receipts.

        What the files' own column of that name says is added in. Raises UserError when a file of the source is not
        the one that was added (what stays is known by its row), when its column `duplicates` is not of whole numbers,
        and when a file of the index's sources would be overwritten.
        """
        run = Run(workers, max_ram)
        with self._alone(run):  # what is removed of a source changes when an earlier one is undone
            self._decide_pending(run)
            source = self.sources[self._source(name)]
            check_inputs(source)
            corpus = _corpus(source)
            check_outputs(corpus, output, must_stay=[file for each in self.sources for file in _corpus(each).files])
            refuse_other_columns(corpus)
            removals = self.removals(name)
            counts = self.cluster_sizes(name) + own_counts(corpus)
            write_kept_shards(corpus, removals.stays(), output, workers, {DUPLICATES: counts})
            removals.write_receipts(output / RECEIPTS_NAME)


def subtract(corpus: Corpus, known: Known, parameters: DedupParameters, folder: Path, run: Run = Run()) -> Removals:
    """Return what of `corpus` is already known; copies within `corpus` stay."""
    job = DedupJob(corpus, parameters, folder, MemoryLimit(run.max_ram), run.workers, known, among_themselves=False)
    steps.run(job, run.say)
    removals = collect(job)
    check_limits(removals, parameters)
    return removals


def no_removals(job: DedupJob) -> Removals:
    """Return the empty decision about a job's documents."""
    nothing = np.empty(0, np.int64)
    return Removals(
        job.sketches, job.first_new, job.parameters.bands, nothing, nothing, nothing > 0, nothing, nothing, nothing
    )


def _corpus(source: dict) -> Corpus:
    return Corpus(tuple(Path(each["file"]) for each in source["inputs"]), *source["columns"])


def _input_records(job: DedupJob) -> list[dict]:
    """Return what the files were when they were sketched (index_record.check_inputs)."""
    return list(job.recorded) or [with_digest(made) for made in job.inputs]


def _piece_record(piece: Piece) -> dict:
    return {**piece.__dict__, "file": str(piece.file.resolve()), "groups": list(piece.groups)}


def _piece(record: dict) -> Piece:
    return Piece(**{**record, "file": Path(record["file"]), "groups": tuple(record["groups"])})


def _shifted(piece: Piece, by: int) -> Piece:
    return Piece(**{**piece.__dict__, "first": piece.first + by})
