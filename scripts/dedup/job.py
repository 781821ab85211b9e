"""What a dedup run is given and what it leaves on disk: the documents, the parameters, and the file of every result.

A job does no work: the steps (steps.py) do, each from the results of those before it, which they read from here.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.stage import bytes_digest
from pipeline_lib.stage.digests import canonical_json

from .array_files import load_arrays
from .corpus import Corpus, Piece
from .exact import RankColumns
from .external_sort import ExternalSorter
from .known import Known
from .memory_limit import MemoryLimit
from .parameters import DedupParameters
from .sketch import KEEP_OPEN, SketchFile, SketchSet, made_from


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
    recorded: tuple[dict[str, Any], ...] = ()
    """What `file_status` said of each file of the corpus when it was sketched before, for files whose content is still
    the same; (): it is asked now."""

    # What a run consists of ------------------------------------------------------------------------------------------

    @cached_property
    def new_pieces(self) -> list[Piece]:
        """The pieces of the corpus, numbered after the known rows."""
        shift = self.known.rows
        return [Piece(p.file, p.groups, p.first + shift, p.rows, p.row_in_file, p.bytes) for p in self.corpus.pieces]

    @cached_property
    def pieces(self) -> list[tuple[Corpus, Piece]]:
        """All pieces by ascending rows, the known ones first."""
        return [*self.known.pieces, *((self.corpus, piece) for piece in self.new_pieces)]

    @cached_property
    def inputs(self) -> list[dict[str, Any]]:
        """What each file of the corpus was when it was sketched, or is now that it will be."""
        return list(self.recorded) or list(self.corpus.statuses.values())

    @cached_property
    def sketch_files(self) -> list[SketchFile]:
        """One per new piece; the name says from what it was made, so that a changed file is another sketch."""
        folder = self.sketch_folder or self.folder / "sketches"
        status = dict(zip(self.corpus.files, self.inputs, strict=True))
        sources = [made_from(self.corpus, piece, status[piece.file], self.parameters) for piece in self.new_pieces]
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
    def first_new_file(self) -> int:
        """The first file of `sketches` that is not known already."""
        return len(self.known.sketches)

    def sorter(self, name: str, share: int) -> ExternalSorter:
        """Return a sorter that takes an n-th of the memory left."""
        return ExternalSorter(self.folder / "runs", name, self.limit.room() // (2 * share))

    # Documents -------------------------------------------------------------------------------------------------------

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

    # Results of the steps --------------------------------------------------------------------------------------------

    @property
    def copies_file(self) -> Path:
        """Where exact copies are written."""
        return self.folder / "copies.arrays"

    @cached_property
    def comparable(self) -> np.ndarray:
        """bool[new rows]: long enough for a shingle and no exact copy of another."""
        chosen = self.sketches.numbers("shingles", self.first_new_file) > 0
        chosen[load_arrays(self.copies_file)["row"] - self.first_new] = False
        return chosen

    def band_file(self, band: int) -> Path:
        """Where a band's buckets are written."""
        return self.folder / "bands" / f"{band:04d}.arrays"

    def buckets(self, band: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (row, bucket) of the members of all buckets of a band, bucket by bucket."""
        if self._held_buckets is not None:
            return self._held_buckets[band]
        return self._stored_buckets(band)

    @cached_property
    def _held_buckets(self) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """The buckets of all bands where they are small: every group of candidates asks for all of them."""
        bands = range(self.parameters.bands)
        if sum(self.band_file(band).stat().st_size for band in bands) >= KEEP_OPEN:
            return None
        return [self._stored_buckets(band) for band in bands]

    def _stored_buckets(self, band: int) -> tuple[np.ndarray, np.ndarray]:
        stored = load_arrays(self.band_file(band))
        return stored["row"], stored["bucket"]

    @property
    def groups_file(self) -> Path:
        """Where the candidates and their groups are written."""
        return self.folder / "groups.arrays"

    @cached_property
    def candidates(self) -> dict[str, np.ndarray]:
        """row: ascending candidates; group: of each; begin: where its shingle set starts in the file of sets."""
        return load_arrays(self.groups_file)

    @property
    def sets_path(self) -> Path:
        """The file of all shingle sets, eight bytes per shingle, each set ascending."""
        return self.folder / "shingles.u64"

    def size_file(self, unit: int) -> Path:
        """Where the set sizes of a piece are written, after its sets."""
        return self.folder / "sets" / f"{unit:06d}.arrays"

    @cached_property
    def pieces_with_candidates(self) -> list[int]:
        """The pieces of which some rows are candidates."""
        places = np.searchsorted(self.sketches.starts, self.candidates["row"], side="right") - 1
        return np.unique(places).tolist()

    @cached_property
    def set_sizes(self) -> np.ndarray:
        """Distinct shingles of each candidate."""
        parts = [load_arrays(self.size_file(unit))["size"] for unit in self.pieces_with_candidates]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def resolved_file(self, group: int) -> Path:
        """Where the decisions of a group are written."""
        return self.folder / "resolved" / f"{group:06d}.arrays"

    @cached_property
    def groups(self) -> list[int]:
        """The numbers of the groups."""
        return np.unique(self.candidates["group"]).tolist()


def _short_digest(value: dict) -> str:
    return bytes_digest(canonical_json(value)).removeprefix("xxh3:")
