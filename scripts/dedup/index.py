"""A deduplicated collection that grows: sources are added one after the other, each paid for when it comes.

What: a folder with the sketches of every source, what was removed of it and in whose favour, and sorted tables of the
keys of what stayed. A new source is compared with the kept documents of all earlier ones and with itself; what was kept
before stays, whatever the new copy's quality. Its text is read; of earlier text only the candidates' row groups are.
Undo: the source goes, and the sources added after it are decided again from their sketches, so that the index is the
one that would have come about without it.
Cost: 0.6 KB on disk per document; opening verifies the checksum of every file, about 10 GB/s.
Traps: the input files are not copied. One that was moved or changed is found out (every text that is read again must
have the digest it had) and refused by name.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.stage import UserError, file_digest, write_json_atomic
from pipeline_lib.stage.atomic import fsync_folder, fsync_tree

from . import steps
from .array_files import load_arrays, save_arrays
from .corpus import Corpus, Piece
from .cpu_dedup import RECEIPTS_NAME, write_kept_shards
from .guard import check_limits
from .job import DedupJob
from .known import Known, Table
from .leftovers import clear_results
from .memory_limit import MemoryLimit
from .parameters import DedupParameters
from .receipts import Removals
from .removals import collect
from .sketch import SketchSet, band_name

FORMAT = 1
RECORD = "index.json"
WORK = "work"


@dataclass(frozen=True)
class Run:
    """How to work, which never changes a result."""

    workers: int = 1
    max_ram: int | None = None
    say: Callable[[str], None] = lambda line: None


class DedupIndex:
    """An index in a folder. Sources are dicts as they stand in index.json, in the order in which they were added."""

    def __init__(self, folder: Path, parameters: DedupParameters, sources: list[dict], pending: list[dict]):
        self.folder = folder
        self.parameters = parameters
        self.sources = sources
        self.pending = pending  # sources that an interrupted undo must still decide again

    # Opening ---------------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: str | Path, parameters: DedupParameters) -> "DedupIndex":
        """Open or begin an index. Raises UserError for damage (which file, and what to do) and for other parameters."""
        folder = Path(folder)
        if not (folder / RECORD).exists():
            return cls(folder, parameters, [], [])
        try:
            record = json.loads((folder / RECORD).read_text())
            stored, sources, pending = record["parameters"], record["sources"], record["pending"]
        except (ValueError, KeyError, TypeError, UnicodeDecodeError):
            raise UserError(f"dedup: {folder / RECORD} is damaged; delete {folder} and add its sources again") from None
        _refuse_other_parameters(folder, stored, parameters.decisive())
        index = cls(folder, parameters, sources, pending)
        for source in sources:
            index._check_files(source)
        return index

    def _check_files(self, source: dict) -> None:
        for name, digest in source["files"].items():
            path = self.folder / name
            if not path.is_file() or file_digest(path) != digest:
                raise UserError(
                    f"dedup: {path} of source {source['name']!r} is missing or damaged; rebuild with: python"
                    f" scripts/dedup_files.py index forget {self.folder} {source['name']}, then add that source again"
                )

    def _check_inputs(self, source: dict) -> None:
        for path in source["sketches"]:
            made = json.loads((self.folder / path).with_suffix(".json").read_text())["made_from"]
            file = Path(made["file"])
            status = file.stat() if file.is_file() else None
            if status is None or (status.st_size, status.st_mtime_ns) != (made["bytes"], made["modified_ns"]):
                raise UserError(
                    f"dedup: {file} is gone or not as it was when it was added as {source['name']!r}; put it back with"
                    " its time of modification, or undo that source and add it again"
                )

    def _write(self) -> None:
        record = {
            "format": FORMAT,
            "parameters": self.parameters.decisive(),
            "sources": self.sources,
            "pending": self.pending,
        }
        write_json_atomic(self.folder / RECORD, record)

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
        for number, source in enumerate(self.sources):
            if source["name"] == name:
                return number
        have = ", ".join(source["name"] for source in self.sources) or "none"
        raise UserError(f"dedup: {self.folder} has no source {name!r}; it has {have}")

    # Changing --------------------------------------------------------------------------------------------------------

    def add(self, name: str, corpus: Corpus, run: Run = Run(), *, keep_all: bool = False) -> dict[str, Any]:
        """Deduplicate a new source against all before it and within itself; returns its entry in index.json.

        `keep_all` only enters it: nothing of it is removed. A call that was interrupted goes on when it is repeated.
        Raises UserError for a name that is taken, StageFailure from the guard (nothing is added then).
        """
        if not name or name != Path(name).name or name.startswith("."):
            raise UserError(f"dedup: {name!r} cannot be the name of a source; use letters, digits, - and _")
        self.finish_pending(run)
        if any(source["name"] == name for source in self.sources):
            raise UserError(f"dedup: {self.folder} has a source {name!r} already; undo it first or choose another name")
        entry = self._decide(name, corpus, run, keep_all)
        self.sources.append(entry)
        self._write()
        clear_results(self.folder / WORK)
        return entry

    def _decide(self, name: str, corpus: Corpus, run: Run, keep_all: bool) -> dict[str, Any]:
        folder = self._folder(name)
        job = DedupJob(
            corpus,
            self.parameters,
            self.folder / WORK,
            MemoryLimit(run.max_ram),
            run.workers,
            self.known(),
            sketch_folder=folder / "sketches",
        )
        if keep_all:
            steps.sketch_all(job)
            removals = no_removals(job)
        else:
            steps.run(job, run.say)
            removals = collect(job)
            check_limits(removals, self.parameters)
        written = [folder / "removed.npz", *_write_tables(job, removals, folder / "tables")]
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
        )
        sketches = [file.path for file in job.sketch_files]
        for path in [*written, *sketches, folder / "tables", folder / "sketches", folder]:
            fsync_tree(path) if path.is_file() else fsync_folder(path)
        return {
            "name": name,
            "keep_all": keep_all,
            "columns": [corpus.text_column, corpus.id_column, corpus.source_column, corpus.quality_column],
            "documents": removals.documents,
            "removed": len(removals),
            "inputs": [str(file.resolve()) for file in corpus.files],
            "pieces": [_piece_record(_shifted(piece, -job.first_new)) for piece in job.new_pieces],
            "sketches": [str(path.relative_to(self.folder)) for path in sketches],
            "files": {str(path.relative_to(self.folder)): file_digest(path) for path in [*written, *sketches]},
        }

    def _origin(self, rows: np.ndarray, job: DedupJob) -> tuple[np.ndarray, np.ndarray]:
        """Return (number of the source, row in it) of rows of a job."""
        firsts = np.array([*job.known.eras, job.first_new])
        number = np.searchsorted(firsts, rows, side="right") - 1
        return number, rows - firsts[number]

    def undo(self, name: str, run: Run = Run()) -> list[str]:
        """Take a source out, and decide all later ones again as if it had never been; returns their names.

        Their text is not sketched again. Raises UserError for a name that is not there.
        """
        self.finish_pending(run)
        number = self._source(name)
        self.pending = self.sources[number + 1 :]
        self.sources = self.sources[:number]
        later = [source["name"] for source in self.pending]
        self._write()
        shutil.rmtree(self._folder(name), ignore_errors=True)
        self.finish_pending(run)
        return later

    def finish_pending(self, run: Run = Run()) -> None:
        """Decide again what an undo left to do, if one was interrupted."""
        while self.pending:
            source = self.pending[0]
            self.sources.append(self._decide(source["name"], _corpus(source), run, source["keep_all"]))
            self.pending = self.pending[1:]
            self._write()
            clear_results(self.folder / WORK)

    @classmethod
    def forget(cls, folder: str | Path, name: str, run: Run, parameters: DedupParameters) -> list[str]:
        """Undo a source of which files are damaged; the other sources' files are still checked. Raises UserError."""
        try:
            record = json.loads((Path(folder) / RECORD).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"dedup: {Path(folder) / RECORD} cannot be read ({error}): is {folder} an index?") from None
        _refuse_other_parameters(Path(folder), record["parameters"], parameters.decisive())
        index = cls(Path(folder), parameters, record["sources"], record["pending"])
        number = index._source(name)
        for source in index.sources[:number]:
            index._check_files(source)
        return index.undo(name, run)

    # Reading ---------------------------------------------------------------------------------------------------------

    def removals(self, name: str) -> Removals:
        """Return what was removed of a source; rows count over all sources up to it."""
        number = self._source(name)
        sketches = SketchSet(
            [self.folder / path for source in self.sources[: number + 1] for path in source["sketches"]],
            [piece["rows"] for source in self.sources[: number + 1] for piece in source["pieces"]],
        )
        stored = load_arrays(self._folder(name) / "removed.npz")
        firsts = np.cumsum([0, *(source["documents"] for source in self.sources)])
        return Removals(
            sketches=sketches,
            first_new=int(firsts[number]),
            bands=self.parameters.bands,
            row=stored["row"] + firsts[number],
            survivor=stored["survivor_row"] + firsts[stored["survivor_source"]],
            **{part: stored[part] for part in ("is_exact", "shared", "size", "other_size")},
        )

    def cluster_sizes(self, name: str) -> np.ndarray:
        """int32[documents of the source]: how many documents of all sources were removed in favour of each."""
        number = self._source(name)
        sizes = np.zeros(self.sources[number]["documents"], np.int32)
        for source in self.sources[number:]:
            stored = load_arrays(self._folder(source["name"]) / "removed.npz")
            np.add.at(sizes, stored["survivor_row"][stored["survivor_source"] == number], 1)
        return sizes

    def export(self, name: str, output: Path, workers: int = 1) -> None:
        """Write what stays of a source, shard by shard, with the column `duplicates` (cluster sizes), and receipts.

        Raises UserError when a file of it is no longer the one that was added: what stays is known by its row.
        """
        self._check_inputs(self.sources[self._source(name)])
        corpus, removals = _corpus(self.sources[self._source(name)]), self.removals(name)
        write_kept_shards(corpus, removals.stays(), output, workers, {"duplicates": self.cluster_sizes(name)})
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


def _write_tables(job: DedupJob, removals: Removals, folder: Path) -> list[Path]:
    """Write the sorted look-up tables of what stays; among equal keys the better document comes first."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.flatnonzero(removals.stays()) + job.first_new
    rows = rows[job.rank_columns(rows).best_first()]
    long_enough = job.sketches.numbers("shingles", len(job.known.sketches))[rows - job.first_new] > 0
    written = []
    for name in ["digest_high", *(band_name(band) for band in range(job.parameters.bands))]:
        mine = rows if name == "digest_high" else rows[long_enough]
        keys = job.sketches.numbers(name, len(job.known.sketches))[mine - job.first_new]
        order = np.argsort(keys, kind="stable")
        for part, values in (("keys", keys[order]), ("rows", mine[order] - job.first_new)):
            path = folder / f"{name}.{part}.npy"
            np.save(path, values)
            written.append(path)
    return written


def _refuse_other_parameters(folder: Path, stored: dict, wanted: dict) -> None:
    for name, value in wanted.items():
        if stored.get(name) != value:
            raise UserError(
                f"dedup: {folder} was made with {name} = {stored.get(name)!r}, not {value!r}; use the same parameters,"
                " or make a new index"
            )


def _corpus(source: dict) -> Corpus:
    return Corpus(tuple(Path(file) for file in source["inputs"]), *source["columns"])


def _piece_record(piece: Piece) -> dict:
    return {**piece.__dict__, "file": str(piece.file.resolve())}


def _piece(record: dict) -> Piece:
    return Piece(**{**record, "file": Path(record["file"]), "groups": tuple(record["groups"])})


def _shifted(piece: Piece, by: int) -> Piece:
    return Piece(**{**piece.__dict__, "first": piece.first + by})
