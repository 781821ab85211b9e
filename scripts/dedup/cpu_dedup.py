"""Dedup from parquet to parquet: the entry for people who have a folder of shards and want a smaller one.

Writes the kept rows (the input's columns, the input's order): one file `deduplicated.parquet`, or one shard per input
file with its name, written in parallel; and `removed.parquet`, one receipt per removed row. Each file is whole or
absent. The text is read three times (sketches, real shingle sets of the candidates, copy), and decompressed once as far
as a quarter of the free memory holds it. What is finished stays in a scratch folder until the end, so that a run that
was killed, or stopped on a full disk or by the guard, goes on. Works with a GPU as well: the device only computes
signatures, and they have the same bits.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.stage import UserError, atomic_path, ordered_threads

from .corpus import Corpus, Piece, file_changed
from .held_text import HeldText
from .leftovers import scratch_folder
from .memory_limit import MemoryLimit, parse_size
from .parameters import WITHOUT_GUARD, DedupParameters
from .removals import find_removals, finished
from .weights import passed_on, refuse_mixed_columns

OUTPUT_NAME = "deduplicated.parquet"
RECEIPTS_NAME = "removed.parquet"
ACCOUNTS = (RECEIPTS_NAME, "scores.parquet", "contamination.parquet")
"""What stage 02 and this package write beside shards; without text they are not documents."""
GIB = 1024**3


@dataclass(frozen=True)
class DedupSummary:
    """What a run did; `documents == kept + exact + fuzzy`."""

    documents: int
    kept: int
    exact: int
    fuzzy: int
    recall_at_threshold: float
    """Chance that the band search sees a pair whose similarity is exactly the threshold."""
    output: Path
    """The folder with deduplicated.parquet and removed.parquet."""


def fuzzy_dedup(
    input_path: str | Path,
    output_path: str | Path,
    parameters: DedupParameters | None = None,
    *,
    text_column: str = "text",
    id_column: str = "id",
    source_column: str = "source",
    quality_column: str = "quality",
    workers: int = 1,
    scratch: str | Path | None = None,
    max_ram: str | int | None = None,
    one_file: bool = True,
    say: Callable[[str], None] | None = None,
) -> DedupSummary:
    """Write `input_path` (a parquet file or a folder of them) without exact and fuzzy duplicates to `output_path`.

    A file without `id_column` is fine: its receipts carry the digest of the normalised text as id; one without the
    others is of the source "" and without quality. Ids may repeat: rows are told apart by position. Where files have a
    column `duplicates` (weights.py), who stays takes over what those removed in its favour stood for. Temporary files,
    about 0.4 KB per document and 1.3 times the text of the candidates, lie in our own folder in `scratch` (default:
    the output folder). `max_ram` ("512M") is the resident memory that the process may reach; it changes nothing but the
    time. Raises UserError for unusable input, for an output that would overwrite it, and while another process works in
    the same folder, StageFailure from the wipe-out guard; then nothing is written.
    """
    parameters = parameters or DedupParameters()
    say = say or (lambda line: None)
    output = Path(output_path)
    limit = parse_size(max_ram) if max_ram is not None else None
    held = HeldText(MemoryLimit().room() // 2) if limit is None else None  # under a limit the sort needs the room
    columns = (text_column, id_column, source_column, quality_column)
    corpus = Corpus(input_files(Path(input_path), output, text_column), *columns, held=held)
    check_outputs(corpus, output, one_file=one_file)
    corpus.check()
    refuse_mixed_columns(corpus)
    if one_file:
        _check_one_schema(corpus)
    say(f"dedup: {corpus.rows()} documents in {len(corpus.files)} files")
    with scratch_folder(scratch or output, say) as folder:
        removals = find_removals(corpus, parameters, workers, folder, limit, say)
        fuzzy = len(removals) - removals.exact
        kept = removals.documents - len(removals)
        say(f"dedup: {removals.exact} exact and {fuzzy} fuzzy duplicates, {kept} documents stay")
        stays, counts = removals.stays(), passed_on(corpus, removals)
        if one_file:
            writes = [partial(write_kept, corpus, corpus.pieces, stays, output / OUTPUT_NAME, counts)]
        else:
            numbers = range(len(corpus.files))
            writes = [partial(write_kept_shard, corpus, stays, output, number, counts) for number in numbers]
        receipts = partial(removals.write_receipts, output / RECEIPTS_NAME)
        if limit is None:
            writes.append(receipts)
        for _ in ordered_threads(lambda write: write(), writes, workers):
            pass
        if limit is not None:  # they need memory of their own
            receipts()
        finished(folder)
    return DedupSummary(
        documents=removals.documents,
        kept=kept,
        exact=removals.exact,
        fuzzy=fuzzy,
        recall_at_threshold=parameters.candidate_probability(parameters.jaccard),
        output=output,
    )


def input_files(path: Path, output: Path, text_column: str = "text") -> tuple[Path, ...]:
    """Return the parquet files of a file or folder, without the accounts that our own tools write beside documents.

    Raises UserError for none, or when the output lies among them.
    """
    if path.is_dir() and path.resolve() == output.resolve():
        raise UserError(f"dedup: input and output are the same folder, {path}; the output would be input next time")
    found = (path,) if path.is_file() else tuple(sorted(path.glob("*.parquet")))
    files = found if path.is_file() else tuple(file for file in found if not _is_account(file, text_column))
    if not files:
        raise UserError(f"dedup: no parquet files at {path}; give a .parquet file or a folder that holds some")
    return files


def _is_account(file: Path, text_column: str) -> bool:
    try:
        return file.name in ACCOUNTS and text_column not in pq.read_schema(file).names
    except (pa.ArrowException, OSError):
        return False  # for Corpus.check to name


def check_outputs(corpus: Corpus, output: Path, *, one_file: bool = False, must_stay: Iterable[Path] = ()) -> None:
    """Raise UserError when a file that will be written would replace one that is read, or another one that is written.

    And when other parquet files lie in `output`, as those of an earlier run over other shards: who reads the folder
    would read their documents too. What is written there: a shard per file of the corpus or, with `one_file`,
    OUTPUT_NAME; and RECEIPTS_NAME.
    `must_stay`: what is read beside the corpus.
    """
    names = [OUTPUT_NAME] if one_file else [file.name for file in corpus.files]
    if not one_file:
        for number, name in enumerate(names):
            if name == RECEIPTS_NAME or name in names[:number]:
                raise UserError(f"dedup: cannot write a shard named {name} ({corpus.files[number]}); rename that file")
    read = {file.resolve() for file in (*corpus.files, *must_stay)}
    for name in (*names, RECEIPTS_NAME):
        if (output / name).resolve() in read:
            raise UserError(f"dedup: the output would overwrite {output / name}, which is read; choose another folder")
    for file in sorted(output.glob("*.parquet")):
        if file.name not in (*names, RECEIPTS_NAME) and file.resolve() not in read:
            raise UserError(
                f"dedup: {file} is there already and would stay beside the output, as if it were part of it; choose"
                " another folder, or move it away"
            )


def _check_one_schema(corpus: Corpus) -> None:
    first = pq.read_schema(corpus.files[0])
    for file in corpus.files[1:]:
        if not pq.read_schema(file).equals(first):
            raise UserError(
                f"dedup: {file} has other columns or types than {corpus.files[0]}; write both with the same schema"
            )


def write_kept(
    corpus: Corpus, pieces: list[Piece], stays: np.ndarray, path: Path, extra: dict[str, np.ndarray] | None = None
) -> None:
    """Write the rows of some pieces that stay to one file, with the `extra` columns.

    stays: bool[rows of the corpus]; extra: one value per row of the corpus. A column of the files that has the name of
    an extra one is replaced. Raises UserError for a file that is not the one any more with which the run began.
    """
    extra = extra or {}
    schema = _with_columns(pq.read_schema(pieces[0].file).empty_table(), extra, slice(0)).schema
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for piece in pieces:
            first = piece.first
            for table in corpus.read(piece):
                rows = slice(first, first + len(table))
                if rows.stop > piece.first + piece.rows:
                    raise file_changed(piece.file)
                writer.write_table(_with_columns(table, extra, rows).filter(pa.array(stays[rows])))
                first += len(table)
        corpus.refuse_changes(dict.fromkeys(piece.file for piece in pieces))


def _with_columns(table: pa.Table, columns: dict[str, np.ndarray], rows: slice) -> pa.Table:
    for name, values in columns.items():
        column = pa.array(values[rows])
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    return table


def write_kept_shards(
    corpus: Corpus, stays: np.ndarray, folder: Path, workers: int, extra: dict[str, np.ndarray] | None = None
) -> None:
    """Write each file's rows that stay to a file of the same name in `folder`, on `workers` threads.

    Whether these names can be written is for `check_outputs` to say, before the work.
    """
    numbers = range(len(corpus.files))
    for _ in ordered_threads(lambda number: write_kept_shard(corpus, stays, folder, number, extra), numbers, workers):
        pass


def write_kept_shard(
    corpus: Corpus, stays: np.ndarray, folder: Path, number: int, extra: dict[str, np.ndarray] | None = None
) -> None:
    """Write the rows of one file that stay; `stays` and `extra` are about the rows of all files."""
    write_kept(corpus, corpus.pieces_of_files[number], stays, folder / corpus.files[number].name, extra)


def cpu_dedup_streaming(
    input_path: str,
    output_path: str,
    text_column: str = "text",
    id_column: str = "id",
    similarity_threshold: float = 0.8,
    memory_info: dict | None = None,
    show_progress: bool = True,
) -> str:
    """Dedup on one CPU core with word 5-grams, however much of a source that removes; returns the output folder.

    `memory_info` (as from get_memory_info) never changes the answer: the free memory that it names is the limit of the
    run, which spills to disk; UserError is raised when that is too little to work at all.
    """
    parameters = DedupParameters(
        jaccard=similarity_threshold, containment=similarity_threshold, device="cpu", **WITHOUT_GUARD
    )
    free = (memory_info or {}).get("ram_free_gb")
    summary = fuzzy_dedup(
        input_path,
        output_path,
        parameters,
        text_column=text_column,
        id_column=id_column,
        max_ram=max(int(free * GIB), 1) if free is not None else None,
        say=print if show_progress else None,
    )
    return str(summary.output)
