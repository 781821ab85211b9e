"""An encoded run as a file, of which the documents of one chunk are read and nothing else.

    bytes 0-31   int64: documents, bytes of ids, bytes of names, bytes per token
    then         the documents (DOCUMENT), sorted by order key; where their ids begin, int64 [documents + 1]; the ids;
                 the names of the sources, a JSON list; the tokens, each document with its separator

How: the documents of a chunk are found by bisection and read with one call, the tokens of neighbours with one call.
Trap: mapped into memory, a file would need less code, but its pages count as memory of the process, sixteen for each
that is looked at, in every run for every chunk; and a file that is truncated under a mapping kills the process.
Trap: the files are not forced to disk, which would cost more than encoding again. After a power cut one may hold
anything; its digest, in a file beside it that says that it is finished, tells.
"""

import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline_lib.stage import atomic_path, file_digest

from .chunk_ranges import ChunkRange
from .encoded_runs import DOCUMENT, EncodedRun, RunStatistics
from .shards import Run
from .text_encoder import TextEncoder, text_buffers


class RunFile:
    """The file of a run, whether it is there or not. It is open only while it is read, so there may be any number.

    Threads may share it. Reading raises OSError for a file that is gone or too short.
    """

    def __init__(self, folder: Path, run: Run):
        """Name the file of a run in the folder of its part."""
        self.path = folder / f"{run.key}.run"
        self._digest_path = self.path.with_suffix(".xxh3")

    def is_finished(self) -> bool:
        """Say whether a process, this one or another, wrote the whole file."""
        return self._digest_path.is_file() and self.path.is_file()

    def drop_if_damaged(self) -> bool:
        """Say whether the file is not what was written; if so it is unfinished from now on."""
        try:
            if file_digest(self.path) == self._digest_path.read_text():
                return False
        except FileNotFoundError:  # another process, which shares the work, found the same
            return True
        self._digest_path.unlink(missing_ok=True)
        return True

    def write(self, run: EncodedRun, encoder: TextEncoder) -> None:
        """Write the file and, once it is whole, its digest. Raises OSError."""
        documents = run.documents.copy()
        ends = np.concatenate([[0], np.cumsum(run.lengths())])
        tokens = np.empty(int(ends[-1]), encoder.dtype)
        run.copy(ends[:-1], encoder.special.separator, tokens)
        documents["start"], documents["stop"], documents["array"] = ends[:-1], ends[1:], 0
        id_bytes, id_ends = text_buffers(run.ids)
        id_bytes = id_bytes[id_ends[0] : id_ends[-1]]
        names = json.dumps(run.sources.to_pylist()).encode()
        head = np.array([len(documents), len(id_bytes), len(names), tokens.itemsize])
        with atomic_path(self.path, durable=False) as path, open(path, "wb") as file:
            for section in (head, documents, id_ends - id_ends[0], id_bytes, names, tokens):
                file.write(section)
        with atomic_path(self._digest_path, durable=False) as path:
            path.write_text(file_digest(self.path))

    def statistics(self) -> RunStatistics:
        """Return the keys and sizes of all documents."""
        with self._opened() as file:
            return RunStatistics.of(file.documents(0, file.count))

    def part(self, wanted: ChunkRange) -> EncodedRun:
        """Read the documents of a chunk with their tokens."""
        with self._opened() as file:
            first = bisect_left(range(file.count), int(wanted.first_key), key=file.order)
            stop = bisect_right(range(file.count), int(wanted.last_key), first, key=file.order)
            documents = file.documents(first, stop)
            rows = np.flatnonzero(wanted.in_split(documents["split"]))
            documents, ids = documents[rows], file.ids(first, stop).take(pa.array(rows))
            tokens = file.tokens(documents)
            lengths = documents["stop"] - documents["start"]
            documents["stop"] = np.cumsum(lengths)
            documents["start"] = documents["stop"] - lengths
            return EncodedRun(documents, ids, file.sources(), [tokens])

    @contextmanager
    def _opened(self) -> Iterator["_Sections"]:
        with open(self.path, "rb", buffering=0) as file:
            yield _Sections(file)


class _Sections:
    """An open file: `count` documents, and where each section begins."""

    def __init__(self, file: FileIO):
        self._file = file
        self.count, self._id_bytes, self._name_bytes, token_bytes = self._read(np.dtype(np.int64), 0, 4).tolist()
        self._token = np.dtype(f"<u{token_bytes}")
        self._documents = 32
        self._id_ends = self._documents + self.count * DOCUMENT.itemsize
        self._ids = self._id_ends + 8 * (self.count + 1)
        self._names = self._ids + self._id_bytes
        self._tokens = self._names + self._name_bytes

    def _read(self, kind: np.dtype, position: int, count: int) -> np.ndarray:
        values = np.empty(count, kind)
        self._fill(values, position)
        return values

    def _fill(self, values: np.ndarray, position: int) -> None:
        left = memoryview(values.view(np.uint8))
        while left:  # Linux gives at most 2 GiB per call
            read = os.preadv(self._file.fileno(), [left], position)
            if read == 0:
                raise OSError(f"{self._file.name} is shorter than it was written")
            left, position = left[read:], position + read

    def order(self, number: int) -> int:
        """Return the order key of a document."""
        return int(self._read(np.dtype(np.uint64), self._documents + number * DOCUMENT.itemsize, 1)[0])

    def documents(self, first: int, stop: int) -> np.ndarray:
        """Return DOCUMENT [stop - first]."""
        return self._read(DOCUMENT, self._documents + first * DOCUMENT.itemsize, stop - first)

    def ids(self, first: int, stop: int) -> pa.Array:
        """Return the ids of documents, large strings."""
        ends = self._read(np.dtype(np.int64), self._id_ends + 8 * first, stop - first + 1)
        text = self._read(np.dtype(np.uint8), self._ids + int(ends[0]), int(ends[-1] - ends[0]))
        return pa.LargeStringArray.from_buffers(stop - first, pa.py_buffer(ends - ends[0]), pa.py_buffer(text))

    def sources(self) -> pa.Array:
        """Return the names of the sources, strings."""
        names = self._read(np.dtype(np.uint8), self._names, self._name_bytes)
        return pa.array(json.loads(names.tobytes()), pa.string())

    def tokens(self, documents: np.ndarray) -> np.ndarray:
        """Return the tokens of documents that stand in the order of the file, one after the other."""
        start, stop = documents["start"], documents["stop"]
        tokens = np.empty(int((stop - start).sum()), self._token)
        opens = np.flatnonzero(np.concatenate([[True], start[1:] != stop[:-1]])[: len(documents)])
        closes = np.concatenate([opens[1:] - 1, [len(documents) - 1]])[: len(opens)]
        place = 0
        for first, last in zip(start[opens].tolist(), stop[closes].tolist(), strict=True):
            self._fill(tokens[place : place + last - first], self._tokens + first * self._token.itemsize)
            place += last - first
        return tokens
