"""A dedup run as steps on disk: every step cuts into units, every unit leaves one file, whole or absent.

    sketch   a piece of the corpus       -> sketches/PIECE.arrow
    exact    (one unit)                  -> copies.npz      rows with an equal digest, and who is kept of them
    bands    a band                      -> bands/BAND.npz  the buckets: rows that share this band's key
    group    (one unit)                  -> groups.npz      candidates, and which of them can influence each other
    sets     a piece that has candidates -> shingles.u64 and sets/PIECE.npz
    resolve  a group                     -> resolved/GROUP.npz

Units of a step are independent: threads of this process, ranks of a datatrove executor or a later start can do them, in
any order, any number of times. So a run that was killed goes on where it was, and nothing that depends on how the work
was divided can show in the result. Text is read in the first step and, only where there are candidates, in `sets`.
"""

import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from pipeline_lib.stage import StageFailure, bytes_digest, ordered_threads
from pipeline_lib.stage.digests import canonical_json

from .array_files import is_whole, load_arrays, save_arrays, scratch_path
from .clusters import NO_LIMIT, SURVIVES, resolve
from .components import bucket_matrix, groups_of, join_neighbours
from .corpus import Corpus, Piece, text_batch
from .exact import RankColumns, digests
from .external_sort import ExternalSorter, Records, repeated
from .memory_limit import MemoryLimit
from .normalise import normalise
from .parameters import DedupParameters
from .shingles import shingle_sets
from .sketch import SketchFile, SketchSet, band_name, made_from, write_sketch

STEPS = ("sketch", "exact", "bands", "group", "sets", "resolve")
ROWS_PER_RANKING = 1 << 18
LEAST_GROUP = 4096
SET_PAGE = 8192
"""Shingles (64 KiB) to which the sets of a piece are aligned in their file, so that no two writers share a page."""


class Table(NamedTuple):
    """One column of an indexed source, sorted for look-up; among equal keys the better document comes first."""

    keys: np.ndarray  # uint64, ascending
    rows: np.ndarray  # int64, counted within the source
    first: int  # row of the source's first document


@dataclass(frozen=True)
class Known:
    """What an index already keeps: its documents stay, and new ones are compared with them.

    Rows count over its pieces; new rows come after them. `tables` maps a column ("digest_high" or a band) to one Table
    per indexed source, oldest first.
    """

    pieces: tuple[tuple[Corpus, Piece], ...] = ()
    sketches: tuple[Path, ...] = ()
    eras: tuple[int, ...] = ()  # first row of each indexed source
    rows: int = 0
    tables: dict[str, list[Table]] = field(default_factory=dict)


@dataclass(frozen=True)
class DedupJob:
    """One run over `corpus`, with everything it leaves behind in `folder`."""

    corpus: Corpus
    parameters: DedupParameters
    folder: Path
    limit: MemoryLimit = MemoryLimit()
    workers: int = 1
    known: Known = Known()
    among_themselves: bool = True
    """Whether new documents are compared with each other, or only with what is known."""
    sketch_folder: Path | None = None
    """Where sketches are kept, when not in `folder`."""

    # What a run consists of ------------------------------------------------------------------------------------------

    @cached_property
    def new_pieces(self) -> list[Piece]:
        """The pieces of the corpus, numbered after the known rows."""
        shift = self.known.rows
        return [Piece(p.file, p.groups, p.first + shift, p.rows, p.row_in_file, p.bytes) for p in self.corpus.pieces()]

    @cached_property
    def pieces(self) -> list[tuple[Corpus, Piece]]:
        """All pieces by ascending rows, the known ones first."""
        return [*self.known.pieces, *((self.corpus, piece) for piece in self.new_pieces)]

    @cached_property
    def sketch_files(self) -> list[SketchFile]:
        """One per new piece; the name says from what it was made, so that a changed file is another sketch."""
        folder = self.sketch_folder or self.folder / "sketches"
        sources = [made_from(self.corpus, piece, self.parameters) for piece in self.new_pieces]
        return [SketchFile(folder / f"{_short_digest(source)}.arrow", source) for source in sources]

    @cached_property
    def sketches(self) -> SketchSet:
        """The sketches of all rows. Raises StageFailure when the sketch step is not finished."""
        rows = [piece.rows for _, piece in self.pieces]
        return SketchSet([*self.known.sketches, *(file.path for file in self.sketch_files)], rows)

    @property
    def first_new(self) -> int:
        """The first row that is not known already."""
        return self.known.rows

    @property
    def _first_new_file(self) -> int:
        return len(self.known.sketches)

    def sorter(self, name: str, share: int) -> ExternalSorter:
        """Return a sorter that takes an n-th of the memory left."""
        return ExternalSorter(self.folder / "runs", name, self.limit.room() // (2 * share))

    # Step 1 ----------------------------------------------------------------------------------------------------------

    def sketch(self, unit: int, workers: int = 1) -> None:
        """Sketch one piece."""
        write_sketch(self.corpus, self.new_pieces[unit], self.parameters, self.sketch_files[unit], workers)

    # Step 2 ----------------------------------------------------------------------------------------------------------

    @property
    def copies_file(self) -> Path:
        """Where exact copies are written."""
        return self.folder / "copies.npz"

    def exact(self) -> None:
        """Find rows with an equal digest of the normalised text and the best of each group."""
        sorter = self.sorter("digest", 1)
        for row, (keys,) in self.sketches.batches(["digest_high"], self._first_new_file):
            sorter.add(keys.to_numpy().copy(), np.arange(row, row + len(keys)))
        blocks = with_known(sorter.blocks(), self.known.tables.get("digest_high", []), 1)
        found: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        for rows, groups in whole_groups(repeated(blocks), ROWS_PER_RANKING):
            found.append(self._best_of_equal(rows, groups))
        row = np.concatenate([rows for rows, _ in found])
        keeper = np.concatenate([keepers for _, keepers in found])
        if self.among_themselves:
            chosen = np.ones(len(row), np.bool_)
        else:
            chosen = keeper < self.first_new
        order = np.argsort(row[chosen])
        save_arrays(self.copies_file, row=row[chosen][order], keeper=keeper[chosen][order])

    def _best_of_equal(self, rows: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (row, keeper) for the new rows that are not the best of those with the same 128 bits."""
        ranking = self.rank_columns(rows)
        order = ranking.best_first((ranking.digest_low, groups))
        rows, groups, low = rows[order], groups[order], ranking.digest_low[order]
        begins = np.ones(len(rows), np.bool_)
        begins[1:] = (groups[1:] != groups[:-1]) | (low[1:] != low[:-1])
        keeper = rows[begins][np.cumsum(begins) - 1]
        gone = (keeper != rows) & (rows >= self.first_new)
        return rows[gone], keeper[gone]

    def rank_columns(self, rows: np.ndarray) -> RankColumns:
        """Return what decides which of these rows is the best."""
        names = ["quality", "length", "source", "id", "digest_high", "digest_low"]
        quality, length, source, ids, high, low = self.sketches.take(rows, names)
        places = {name: place for place, name in reversed(list(enumerate(self.parameters.source_rank)))}
        encoded = source.dictionary_encode()
        ranks = np.array([places.get(n, len(places)) for n in encoded.dictionary.to_pylist()], np.int64)
        return RankColumns(
            era=np.searchsorted(np.array([*self.known.eras, self.first_new]), rows, side="right"),
            quality=quality.to_numpy(),
            length=length.to_numpy(),
            source_rank=ranks[encoded.indices.to_numpy()] if len(rows) else np.empty(0, np.int64),
            ids=ids,
            digest_high=high.to_numpy(),
            digest_low=low.to_numpy(),
            row=rows,
        )

    # Step 3 ----------------------------------------------------------------------------------------------------------

    @cached_property
    def comparable(self) -> np.ndarray:
        """bool[new rows]: long enough for a shingle and no exact copy of another."""
        chosen = self.sketches.numbers("shingles", self._first_new_file) > 0
        chosen[load_arrays(self.copies_file)["row"] - self.first_new] = False
        return chosen

    def band_file(self, band: int) -> Path:
        """Where a band's buckets are written."""
        return self.folder / "bands" / f"{band:04d}.npz"

    def band(self, band: int, share: int = 1) -> None:
        """Find the buckets of one band, using a `share`-th of the memory left."""
        sorter = self.sorter(f"band-{band:04d}", share)
        for row, (keys,) in self.sketches.batches([band_name(band)], self._first_new_file):
            chosen = np.flatnonzero(self.comparable[row - self.first_new : row - self.first_new + len(keys)])
            sorter.add(keys.to_numpy()[chosen], chosen + row)
        tables = self.known.tables.get(band_name(band), [])
        blocks = with_known(sorter.blocks(), tables, self.parameters.candidates_per_band)
        parts = list(repeated(blocks))
        rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in parts)])
        buckets = np.concatenate([np.empty(0, np.int64), *(groups for _, groups in parts)])
        save_arrays(self.band_file(band), row=rows, bucket=buckets)

    def buckets(self, band: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (row, bucket) of the members of all buckets of a band, bucket by bucket."""
        stored = load_arrays(self.band_file(band))
        return stored["row"], stored["bucket"]

    # Step 4 ----------------------------------------------------------------------------------------------------------

    @property
    def groups_file(self) -> Path:
        """Where the candidates and their groups are written."""
        return self.folder / "groups.npz"

    def group(self) -> None:
        """Collect the candidates of all bands and cut them into groups that can be resolved apart."""
        is_candidate = np.zeros(len(self.sketches), np.bool_)
        for band in range(self.parameters.bands):
            is_candidate[self.buckets(band)[0]] = True
        rows = np.flatnonzero(is_candidate)
        parent = np.arange(len(rows))
        for band in range(self.parameters.bands):
            members, buckets = self.buckets(band)
            join_neighbours(parent, np.searchsorted(rows, members), buckets)
        share = self.limit.room() // (2 * self.workers * self.parameters.bytes_per_candidate)
        wished = max(min(share, len(rows) // (4 * self.workers) + 1), LEAST_GROUP)
        shingles = self.sketches.take(rows, ["shingles"])[0].to_numpy()
        piece = np.searchsorted(self.sketches.starts, rows, side="right") - 1
        save_arrays(
            self.groups_file,
            row=rows,
            group=groups_of(parent, wished),
            begin=_set_places(shingles, piece),
        )

    @cached_property
    def candidates(self) -> dict[str, np.ndarray]:
        """row: ascending candidates; group: of each; begin: where its shingle set starts in the file of sets."""
        return load_arrays(self.groups_file)

    # Step 5 ----------------------------------------------------------------------------------------------------------

    @property
    def sets_path(self) -> Path:
        """The file of all shingle sets, eight bytes per shingle, each set ascending."""
        return self.folder / "shingles.u64"

    def size_file(self, unit: int) -> Path:
        """Where the set sizes of a piece are written, after its sets."""
        return self.folder / "sets" / f"{unit:06d}.npz"

    @cached_property
    def pieces_with_candidates(self) -> list[int]:
        """The pieces of which some rows are candidates."""
        places = np.searchsorted(self.sketches.starts, self.candidates["row"], side="right") - 1
        return np.unique(places).tolist()

    def sets(self, unit: int) -> None:
        """Write the shingle sets of a piece's candidates. Raises StageFailure when a text is not the sketched one."""
        corpus, piece = self.pieces[unit]
        low, high = np.searchsorted(self.candidates["row"], [piece.first, piece.first + piece.rows])
        rows, begin = self.candidates["row"][low:high], self.candidates["begin"][low:high]
        high = self.sketches.take(rows, ["digest_high"])[0].to_numpy()
        sizes = np.zeros(len(rows), np.int64)
        seen = xxhash.xxh3_128()
        first, at = piece.first, 0
        self.sets_path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.sets_path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            for table in corpus.read(piece, [corpus.text_column]):
                count = int(np.searchsorted(rows[at:], first + len(table)))
                if count:
                    chosen = table.column(corpus.text_column).take(pa.array(rows[at : at + count] - first))
                    normal = normalise(text_batch(chosen))
                    changed = np.flatnonzero(digests(normal)[:, 0] != high[at : at + count])
                    if len(changed):
                        raise _changed_text(piece, int(rows[at + changed[0]]))
                    hashes, starts = shingle_sets(normal, self.parameters.shingle, self.parameters.ngram)
                    for place, start, end in zip(begin[at : at + count], starts[:-1], starts[1:], strict=True):
                        _write_all(descriptor, hashes[start:end], int(place) * 8)
                    sizes[at : at + count] = np.diff(starts)
                    seen.update(hashes[: starts[-1]])
                first, at = first + len(table), at + count
        finally:
            os.close(descriptor)
        save_arrays(self.size_file(unit), size=sizes, digest=_digest_words(seen))

    # Step 6 ----------------------------------------------------------------------------------------------------------

    def resolved_file(self, group: int) -> Path:
        """Where the decisions of a group are written."""
        return self.folder / "resolved" / f"{group:06d}.npz"

    @cached_property
    def groups(self) -> list[int]:
        """The numbers of the groups."""
        return np.unique(self.candidates["group"]).tolist()

    @cached_property
    def set_sizes(self) -> np.ndarray:
        """Distinct shingles of each candidate."""
        parts = [load_arrays(self.size_file(unit))["size"] for unit in self.pieces_with_candidates]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def resolve(self, group: int, share: int = 1) -> None:
        """Decide who of a group stays, mapping a `share`-th of the memory left."""
        mine = np.flatnonzero(self.candidates["group"] == group)
        rows = self.candidates["row"][mine]
        numbers, bucket_count = bucket_matrix(rows, [self.buckets(band) for band in range(self.parameters.bands)])
        order = self.rank_columns(rows).best_first()
        begin, size = self.candidates["begin"][mine][order], self.set_sizes[mine][order]
        stored = np.memmap(self.sets_path, np.uint64, "r") if size.any() else np.empty(0, np.uint64)
        is_limited = self.limit.bytes is not None and isinstance(stored, np.memmap)
        survivor, shared = resolve(
            numbers[order],
            bucket_count,
            stored.view(np.ndarray),
            begin,
            size,
            jaccard_parts=self.parameters.jaccard_parts,
            containment_parts=self.parameters.containment_parts,
            candidates_per_band=self.parameters.candidates_per_band,
            fixed=int(np.count_nonzero(rows < self.first_new)),
            joins=self.among_themselves,
            touch_limit=self.limit.room() // (2 * share) if is_limited else NO_LIMIT,
            release=_page_release(stored) if is_limited else (lambda: None),
        )
        gone = np.flatnonzero(survivor != SURVIVES)
        kept = survivor[gone]
        save_arrays(
            self.resolved_file(group),
            row=rows[order[gone]],
            survivor=rows[order[kept]],
            shared=shared[gone],
            size=size[gone],
            other_size=size[kept],
        )

    # All of it -------------------------------------------------------------------------------------------------------

    def run(self, say: Callable[[str], None] = lambda line: None, pause: Callable[[], None] = lambda: None) -> None:
        """Do what is not done yet, in this process, on `workers` threads; `pause` is called after every unit.

        Raises UserError for files that cannot be used, OSError when the disk is full; what is finished stays.
        """
        self.sketch_all(say, pause)
        self.forget_what_does_not_belong()
        for step in STEPS[1:]:
            self._each(step, self.waiting(step), say, pause)

    def waiting(self, step: str) -> list[int]:
        """Return the units of a step that have no result yet; the steps before it must be finished."""
        if step == "sketch":
            return [unit for unit, file in enumerate(self.sketch_files) if not file.is_done()]
        result, units = {
            "exact": (lambda unit: self.copies_file, [0]),
            "bands": (self.band_file, range(self.parameters.bands)),
            "group": (lambda unit: self.groups_file, [0]),
            "sets": (self.size_file, None if step != "sets" else self.pieces_with_candidates),
            "resolve": (self.resolved_file, None if step != "resolve" else self.groups),
        }[step]
        return [unit for unit in units if not result(unit).exists()]

    def do(self, step: str, unit: int, share: int) -> None:
        """Do one unit of a step, in an n-th of the memory left (`share` workers do the same in this process)."""
        if step in ("bands", "resolve"):
            {"bands": self.band, "resolve": self.resolve}[step](unit, share)
        elif step in ("exact", "group"):
            {"exact": self.exact, "group": self.group}[step]()
        else:
            {"sketch": self.sketch, "sets": self.sets}[step](unit)

    def sketch_all(
        self, say: Callable[[str], None] = lambda line: None, pause: Callable[[], None] = lambda: None
    ) -> None:
        """Sketch the pieces that have no valid sketch yet."""
        self.corpus.check()
        self.limit.prepare()
        waiting = self.waiting("sketch")
        if len(waiting) >= 2 * self.workers:
            self._each("sketch", waiting, say, pause)
        else:  # fewer pieces than threads: the threads share a piece
            for unit in waiting:
                self.sketch(unit, self.workers)
                pause()

    def _each(self, step: str, units: list[int], say, pause) -> None:
        results = ordered_threads(lambda unit: self.do(step, unit, self.workers), units, self.workers)
        for done, _ in enumerate(results, 1):
            if done % max(len(units) // 10, 1) == 0 and len(units) > 20:
                say(f"dedup: {step} {done}/{len(units)}")
            pause()

    def forget_what_does_not_belong(self) -> None:
        """Delete results of another run and results that are damaged. Once, before the steps after the first."""
        self._forget_another_run()
        self._forget_damage()

    def _forget_damage(self) -> None:
        """Delete results that a power cut left without their content, so that they are made again."""
        results = [path for name in ("bands", "resolved") for path in sorted((self.folder / name).glob("*.npz"))]
        for path in (self.copies_file, self.groups_file, *results):
            if path.exists() and not is_whole(path):
                path.unlink()
        if not self.groups_file.exists():
            shutil.rmtree(self.folder / "resolved", ignore_errors=True)  # the next grouping can be another one
            return
        for unit in self.pieces_with_candidates:
            if self.size_file(unit).exists() and not self._sets_are_whole(unit):
                self.size_file(unit).unlink()

    def _sets_are_whole(self, unit: int) -> bool:
        if not is_whole(self.size_file(unit)) or not self.sets_path.exists():
            return False
        record = load_arrays(self.size_file(unit))
        _, piece = self.pieces[unit]
        low, high = np.searchsorted(self.candidates["row"], [piece.first, piece.first + piece.rows])
        seen = xxhash.xxh3_128()
        with open(self.sets_path, "rb") as stream:
            for begin, size in zip(self.candidates["begin"][low:high].tolist(), record["size"].tolist(), strict=True):
                stream.seek(begin * 8)
                seen.update(stream.read(size * 8))
        return bool((record["digest"] == _digest_words(seen)).all())

    def _forget_another_run(self) -> None:
        """Delete results (not sketches, which know what they are of) that belong to other documents or parameters."""
        identity = canonical_json(
            {
                "sketches": [file.made_from for file in self.sketch_files],
                "known": [str(path) for path in self.known.sketches],
                "parameters": self.parameters.decisive(),
                "among_themselves": self.among_themselves,
            }
        )
        mark = self.folder / "run.json"
        if mark.is_file() and mark.read_bytes() == identity:
            return
        clear_results(self.folder)
        with scratch_path(mark) as temporary:
            temporary.write_bytes(identity)


def clear_results(folder: Path) -> None:
    """Delete everything of a run but its sketches."""
    for name in ("bands", "sets", "resolved", "runs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("copies.npz", "groups.npz", "shingles.u64", "run.json"):
        (folder / name).unlink(missing_ok=True)


def _digest_words(state: xxhash.xxh3_128) -> np.ndarray:
    return np.frombuffer(state.digest(), np.uint64)


def _changed_text(piece: Piece, row: int) -> StageFailure:
    return StageFailure(
        f"dedup: the text of {piece.file}:{row - piece.first + piece.row_in_file} is not the one that was sketched; the"
        " file was changed. Put it back, or make again what was made from it (for an index: undo that source, add it)"
    )


def _short_digest(value: dict) -> str:
    return bytes_digest(canonical_json(value)).removeprefix("xxh3:")


def _set_places(shingles: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Return where each set begins: one after the other, each piece from a page of its own."""
    ends = np.cumsum(shingles)
    begins = ends - shingles
    first = np.ones(len(piece), np.bool_)
    first[1:] = piece[1:] != piece[:-1]
    number = np.cumsum(first) - 1
    start = begins[first]  # without alignment
    length = np.diff(np.append(start, ends[-1] if len(ends) else 0))
    aligned = -(-length // SET_PAGE) * SET_PAGE
    return begins - start[number] + (np.cumsum(aligned) - aligned)[number]


def _write_all(descriptor: int, values: np.ndarray, offset: int) -> None:
    view = memoryview(values).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _page_release(stored: np.memmap) -> Callable[[], None]:
    mapping = stored._mmap
    return lambda: mapping.madvise(mmap.MADV_DONTNEED)


def with_known(blocks: Iterator[Records], tables: list[Table], limit: int) -> Iterator[Records]:
    """Yield the blocks with, beside each key that a table has, up to `limit` of that table's rows."""
    for keys, rows in blocks:
        distinct = np.unique(keys) if tables else keys
        extra = [(keys, rows)]
        for known_keys, known_rows, first in tables:
            low = np.searchsorted(known_keys, distinct, side="left")
            count = np.minimum(np.searchsorted(known_keys, distinct, side="right") - low, limit)
            at = np.repeat(low - (np.cumsum(count) - count), count) + np.arange(int(count.sum()))
            extra.append((np.repeat(distinct, count), known_rows[at] + first))
        if len(extra) == 1:
            yield keys, rows
            continue
        keys, rows = (np.concatenate(part) for part in zip(*extra, strict=True))
        order = np.argsort(keys)
        yield keys[order], rows[order]


def whole_groups(parts: Iterator[Records], least_rows: int) -> Iterator[Records]:
    """Yield (rows, groups) with about `least_rows`, never cutting a group."""
    rows, groups = np.empty(0, np.int64), np.empty(0, np.int64)
    for more_rows, more_groups in parts:
        rows, groups = np.concatenate([rows, more_rows]), np.concatenate([groups, more_groups])
        if len(rows) > least_rows:
            cut = int(np.searchsorted(groups, groups[-1]))
            if cut:
                yield rows[:cut], groups[:cut]
                rows, groups = rows[cut:], groups[cut:]
    if len(rows):
        yield rows, groups
