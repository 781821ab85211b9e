"""The first pass over the corpus: what is kept in memory of every document, about 200 bytes each.

An exact digest, the band keys of the signature (the signature itself is not needed again: candidates are verified on
their real shingles), the number of shingles, and the columns that decide which duplicate survives.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.stage import ordered_threads

from .corpus import Corpus, split_by_size, text_batch
from .exact import digests
from .minhash import band_keys, permutations, signatures
from .normalise import TextBatch, normalise
from .parameters import DedupParameters
from .shingles import shingle_hashes

Signer = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Sketches:
    """One entry per document, in reading order."""

    ids: pa.Array  # string; the digest in hexadecimal where a document has no id
    source: np.ndarray  # int32: index into `sources`
    sources: list[str]  # ascending
    quality: np.ndarray  # float32; -inf where absent, null or NaN
    length: np.ndarray  # int64: bytes of the text as given
    digest: np.ndarray  # uint64[documents, 2]: of the normalised text
    shingles: np.ndarray  # int64: shingles with repeats; 0 = too short for fuzzy comparison
    keys: np.ndarray  # uint64[documents, bands]

    def __len__(self) -> int:
        return len(self.length)


def choose_signer(device: str) -> Signer:
    """Return the function that computes signatures on `device`; "auto" takes a GPU when there is one.

    Raises UserError for "gpu" on a machine without a usable GPU.
    """
    from . import gpu_kernel

    if device == "gpu" or (device == "auto" and gpu_kernel.is_available()):
        gpu_kernel.require()
        return gpu_kernel.signatures
    return signatures


def sketch_texts(batch: TextBatch, parameters: DedupParameters, signer: Signer) -> tuple[np.ndarray, ...]:
    """Return (length, digest, shingles, keys) of each document of a batch; shapes as in `Sketches`."""
    normal = normalise(batch)
    hashes, starts = shingle_hashes(normal, parameters.shingle, parameters.ngram)
    a, b = permutations(parameters.permutations, parameters.seed)
    keys = band_keys(signer(hashes, starts, a, b), parameters.bands, parameters.rows)
    return np.diff(batch.starts), digests(normal), np.diff(starts), keys


def sketch_corpus(corpus: Corpus, parameters: DedupParameters, workers: int) -> Sketches:
    """Read every document once and return its sketch. Raises UserError for files that cannot be used."""
    corpus.check()
    signer = choose_signer(parameters.device)
    ids, sources, qualities = [], [], []
    columns = (corpus.text_column, corpus.id_column, corpus.source_column, corpus.quality_column)

    def batches() -> Iterator[TextBatch]:
        for table in corpus.tables(columns):
            ids.append(_strings(table, corpus.id_column))
            sources.append(pc.fill_null(_strings(table, corpus.source_column), ""))
            qualities.append(_qualities(table, corpus.quality_column))
            yield from (part for _, part in split_by_size(text_batch(table.column(corpus.text_column))))

    parts = list(ordered_threads(lambda part: sketch_texts(part, parameters, signer), batches(), workers))
    return _assemble(ids, sources, qualities, parts, parameters)


def _assemble(ids, sources, qualities, parts, parameters: DedupParameters) -> Sketches:
    empty = (
        np.empty(0, np.int64),
        np.empty((0, 2), np.uint64),
        np.empty(0, np.int64),
        np.empty((0, parameters.bands), np.uint64),
    )
    length, digest, shingles, keys = (np.concatenate(arrays) for arrays in zip(empty, *parts, strict=True))
    encoded = pa.chunked_array(sources, pa.large_string()).combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.int32)
    rank[order] = np.arange(len(names), dtype=np.int32)
    return Sketches(
        ids=pc.coalesce(pa.chunked_array(ids, pa.large_string()).combine_chunks(), _hexadecimal(digest)),
        source=rank[encoded.indices.to_numpy(zero_copy_only=False)],
        sources=[names[index] for index in order],
        quality=np.concatenate([np.empty(0, np.float32), *qualities]),
        length=length,
        digest=digest,
        shingles=shingles,
        keys=keys,
    )


def _hexadecimal(digest: np.ndarray) -> pa.Array:
    text = digest.astype(">u8").tobytes().hex()
    return pa.array([text[at : at + 32] for at in range(0, len(text), 32)], pa.large_string())


def _strings(table: pa.Table, name: str) -> pa.Array:
    """Return a column as text, all null where the file does not have it."""
    if name not in table.column_names:
        return pa.nulls(len(table), pa.large_string())
    return pa.concat_arrays([pa.array([], pa.large_string()), *table.column(name).cast(pa.large_string()).chunks])


def _qualities(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.full(len(table), -np.inf, np.float32)
    values = pc.fill_null(table.column(name).cast(pa.float32()), float("-inf")).to_numpy()
    return np.where(np.isnan(values), np.float32(-np.inf), values)
