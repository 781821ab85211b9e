"""The first pass: what is remembered of every document, about 350 bytes each, in one file per piece of the corpus.

An exact digest, the band keys of the signature (the signature itself is not needed again: candidates are verified on
their real shingles), the number of shingles, the columns that decide which duplicate survives, and the beginning of the
text for receipts. A sketch file is an uncompressed Arrow file, so that one column is read without the others; a small
JSON file beside it, written last, says from what it was made and carries its digest.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.compiled import kernel
from pipeline_lib.stage import file_digest, ordered_threads

from .array_files import scratch_path
from .corpus import Corpus, Piece, bytes_of, file_changed, large_strings
from .exact import digests
from .minhash import band_keys, permutations, signatures
from .normalise import TextBatch, normalise
from .parameters import DedupParameters
from .shingles import hash_token, shingle_hashes, with_spare_bytes
from .text_kind import KINDS, text_kinds

Signer = Callable[[TextBatch, DedupParameters], tuple[np.ndarray, np.ndarray]]

PREVIEW_CHARACTERS = 200
FORMAT = 1
KEEP_OPEN = 32 << 20


def band_name(band: int) -> str:
    """Return the column of a band's keys."""
    return f"band_{band:04d}"


FIXED_COLUMNS = {
    "id": pa.large_string(),  # the digest in hexadecimal where a document has no id
    "source": pa.large_string(),
    "preview": pa.large_string(),
    "quality": pa.float32(),  # -inf where absent, null or NaN
    "length": pa.int64(),  # bytes of the text as given
    "shingles": pa.int64(),  # with repeats; 0: compared exactly only
    "digest_high": pa.uint64(),  # of the normalised text
    "digest_low": pa.uint64(),
    "id_hash": pa.uint64(),
}


def column_type(name: str) -> pa.DataType:
    """Return the type of a column of a sketch file."""
    return FIXED_COLUMNS.get(name, pa.uint64())


def schema(parameters: DedupParameters) -> pa.Schema:
    """Return the columns of a sketch file."""
    names = [*FIXED_COLUMNS, *(band_name(band) for band in range(parameters.bands))]
    return pa.schema([(name, column_type(name)) for name in names])


def cpu_signer(normal: TextBatch, parameters: DedupParameters) -> tuple[np.ndarray, np.ndarray]:
    """Return (minima uint32[documents, permutations], shingles int64[documents]) of normalised texts."""
    hashes, starts = shingle_hashes(normal, parameters.shingle, parameters.ngram)
    a, b = permutations(parameters.permutations, parameters.seed)
    return signatures(hashes, starts, a, b), np.diff(starts)


def choose_signer(device: str) -> Signer:
    """Return the function that computes signatures on `device`; "auto" takes a GPU when there is one.

    Raises UserError for "gpu" on a machine without a usable GPU.
    """
    from . import gpu_device

    if device == "gpu" or (device == "auto" and gpu_device.is_available()):
        gpu_device.require()
        from .gpu_signer import sign

        return sign
    return cpu_signer


@kernel
def _hash_each(data, starts, out):
    for index in range(len(out)):
        is_empty = starts[index] == starts[index + 1]  # which hash_token cannot take
        out[index] = np.uint64(0) if is_empty else hash_token(data, starts[index], starts[index + 1])


def _id_hashes(ids: pa.Array) -> np.ndarray:
    batch = with_spare_bytes(bytes_of(ids))
    out = np.empty(len(ids), np.uint64)
    _hash_each(batch.data, batch.starts, out)
    return out


def sketch_rows(table: pa.Table, corpus: Corpus, parameters: DedupParameters, signer: Signer) -> pa.RecordBatch:
    """Return the sketch of each row of `table`."""
    text = pc.fill_null(large_strings(table.column(corpus.text_column)), "")
    batch = bytes_of(text)
    normal = normalise(batch)
    minima, shingles = signer(normal, parameters)
    digest = digests(normal)
    sources = pc.fill_null(_strings(table, corpus.source_column), "")
    if parameters.exact_sources:
        exact_only = pc.is_in(sources, pa.array(parameters.exact_sources, pa.large_string()))
        shingles = np.where(exact_only.to_numpy(zero_copy_only=False), 0, shingles)
    if parameters.exact_kinds:
        exact_only = np.isin(text_kinds(batch), [KINDS[kind] for kind in parameters.exact_kinds])
        shingles = np.where(exact_only, 0, shingles)
    ids = _strings(table, corpus.id_column)
    if ids.null_count:
        ids = pc.coalesce(ids, _hexadecimal(digest))
    keys = band_keys(minima, parameters.bands, parameters.rows)
    columns = [
        ids,
        sources,
        _previews(text),
        pa.array(_qualities(table, corpus.quality_column)),
        pa.array(np.diff(batch.starts)),
        pa.array(shingles),
        pa.array(digest[:, 0]),
        pa.array(digest[:, 1]),
        pa.array(_id_hashes(ids)),
        *(pa.array(np.ascontiguousarray(keys[:, band])) for band in range(parameters.bands)),
    ]
    return pa.record_batch(columns, schema=schema(parameters))


def _hexadecimal(digest: np.ndarray) -> pa.Array:
    text = digest.astype(">u8").tobytes().hex()
    return pa.array([text[at : at + 32] for at in range(0, len(text), 32)], pa.large_string())


def _previews(text: pa.Array) -> pa.Array:
    try:
        return pc.utf8_slice_codeunits(text, 0, PREVIEW_CHARACTERS)
    except pa.ArrowInvalid:  # some of it is not UTF-8, which Parquet does not prove
        spelled = [raw and raw.decode("utf-8", "replace") for raw in text.cast(pa.large_binary()).to_pylist()]
        return pa.array([each if each is None else each[:PREVIEW_CHARACTERS] for each in spelled], pa.large_string())


def _strings(table: pa.Table, name: str) -> pa.Array:
    """Return a column as text, all null where the file does not have it."""
    if name not in table.column_names:
        return pa.nulls(len(table), pa.large_string())
    return large_strings(table.column(name))


def _qualities(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.full(len(table), -np.inf, np.float32)
    values = pc.fill_null(table.column(name).cast(pa.float32(), safe=False), float("-inf")).to_numpy()
    return np.where(np.isnan(values), np.float32(-np.inf), values)


@dataclass(frozen=True)
class SketchFile:
    """Where the sketch of a piece lies, and from what it must have been made to count."""

    path: Path
    made_from: dict[str, Any]

    @property
    def record(self) -> Path:
        """The JSON file that makes the sketch count: what it was made from, its rows and its digest."""
        return self.path.with_suffix(".json")

    def read_record(self) -> dict[str, Any] | None:
        """Return the record, or None when there is none that can be read."""
        try:
            return json.loads(self.record.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def is_done(self) -> bool:
        """Tell whether the sketch is there, whole, and made from the same piece with the same parameters."""
        record = self.read_record()
        if record is None or record.get("made_from") != self.made_from or not self.path.is_file():
            return False
        return record["digest"] == file_digest(self.path)


def made_from(corpus: Corpus, piece: Piece, status: dict[str, Any], parameters: DedupParameters) -> dict[str, Any]:
    """Return what the sketch of a piece depends on, as JSON: the file, the row groups, the parameters.

    `status`: what `file_status` says of the file, or said when the sketch was made.
    """
    columns = [corpus.text_column, corpus.id_column, corpus.source_column, corpus.quality_column]
    return {
        "format": FORMAT,
        "file": status["file"],
        "bytes": status["bytes"],
        "modified_ns": status["modified_ns"],
        "groups": list(piece.groups),
        "columns": columns,
        "parameters": parameters.shape(),
    }


def write_sketch(corpus: Corpus, piece: Piece, parameters: DedupParameters, target: SketchFile, workers: int) -> None:
    """Write the sketch of a piece, hashing on `workers` threads. Raises UserError when the file has other rows now."""
    signer = choose_signer(parameters.device)
    columns = (corpus.text_column, corpus.id_column, corpus.source_column, corpus.quality_column)

    def sketch(table: pa.Table) -> pa.RecordBatch:
        return sketch_rows(table, corpus, parameters, signer)

    rows = 0
    with (
        scratch_path(target.path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema(parameters)) as writer,
    ):
        for batch in ordered_threads(sketch, corpus.read(piece, columns), workers):
            writer.write_batch(batch)
            rows += len(batch)
    if rows != piece.rows:
        target.path.unlink()
        raise file_changed(piece.file)
    record = {"made_from": target.made_from, "rows": rows, "digest": file_digest(target.path)}
    with scratch_path(target.record) as temporary:
        temporary.write_text(json.dumps(record))


class SketchSet:
    """The sketches of many pieces as columns over all rows; a row is a position in this set.

    Files are mapped for the length of one call, so that what was read does not stay in memory; only sets of less than
    KEEP_OPEN bytes stay mapped, which saves opening every file for every column.
    """

    def __init__(self, files: list[Path], rows: list[int]):
        self.files = files
        self._open: dict[int, list[pa.RecordBatch]] | None = None
        if sum(file.stat().st_size for file in files) < KEEP_OPEN:
            self._open = {}
        self.starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def batches(self, names: list[str], first_file: int = 0) -> Iterator[tuple[int, list[pa.Array]]]:
        """Yield (first row, those columns) batch by batch, from one file on."""
        for number in range(first_file, len(self.files)):
            yield from self._batches_of(number, names)

    def _batches_of(self, number: int, names: list[str]) -> Iterator[tuple[int, list[pa.Array]]]:
        row = int(self.starts[number])
        if self._open is not None and number in self._open:
            for batch in self._open[number]:
                yield row, [batch.column(name) for name in names]
                row += len(batch)
            return
        with pa.memory_map(str(self.files[number])) as source, pa.ipc.open_file(source) as reader:
            seen = []
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                seen.append(batch)
                yield row, [batch.column(name) for name in names]
                row += len(batch)
                if self._open is None:
                    seen.clear()
            if self._open is not None:
                self._open[number] = seen

    def numbers(self, name: str, first_file: int = 0) -> np.ndarray:
        """Return a numeric column as one array."""
        parts = [columns[0].to_numpy().copy() for _, columns in self.batches([name], first_file)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def take(self, rows: np.ndarray, names: list[str]) -> list[pa.Array]:
        """Return those columns of some rows, in the order given."""
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        parts: list[list[Any]] = [[] for _ in names]
        wanted_files = np.unique(np.searchsorted(self.starts, ascending, side="right") - 1)
        for number in wanted_files.tolist():
            for row, columns in self._batches_of(number, names):
                low, high = np.searchsorted(ascending, [row, row + len(columns[0])])
                if low < high:
                    chosen = ascending[low:high] - row
                    for part, column in zip(parts, columns, strict=True):
                        part.append(column.take(pa.array(chosen)) if _is_text(column) else column.to_numpy()[chosen])
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return [_joined(part, column_type(name), back) for name, part in zip(names, parts, strict=True)]


def _is_text(column: pa.Array) -> bool:
    return pa.types.is_large_string(column.type)


def _joined(parts: list[Any], kind: pa.DataType, order: np.ndarray) -> pa.Array:
    """Join parts of a column, arrays of Arrow for text and of numpy for numbers (a tenth of the calls' cost)."""
    if pa.types.is_large_string(kind):
        return pa.concat_arrays([pa.array([], kind), *parts]).take(pa.array(order))
    return pa.array(np.concatenate([np.empty(0, kind.to_pandas_dtype()), *parts])[order])
