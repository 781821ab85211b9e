"""Dedup from signatures alone, for callers that keep no text: the agreement of two signatures estimates the similarity.

An estimate from n permutations is off by about sqrt(J (1 - J) / n) (0.035 at J = 0.8, n = 128), so wrong removals are
possible. The pipeline does not use these functions: it verifies on the real shingles (removals.py).
"""

import numpy as np

from pipeline_lib.stage import UserError

from .parameters import PARTS

_EMPTY = np.iinfo(np.uint64).max


def fast_shingle_hash(text: str, char_ngrams: int = 5) -> np.ndarray:
    """Return uint64[len(text) - char_ngrams + 1]: the hash of each character n-gram, in text order.

    Empty when the text is shorter than one n-gram. The text is taken as it is (normalise.py makes the normal form), and
    the same text has the same hashes in every process and on every machine.
    """
    from .normalise import batch_of
    from .shingles import shingle_hashes

    if char_ngrams < 1:
        raise UserError(f"dedup: char_ngrams is {char_ngrams}; it must be at least 1")
    return shingle_hashes(batch_of([text]), "character", char_ngrams)[0]


def build_lsh_index(signatures: np.ndarray, num_bands: int) -> list[dict[bytes, list[int]]]:
    """Return one table per band: from the bytes of a band of the signature to the documents that have it, ascending.

    `signatures` is [documents, permutations]; with permutations // num_bands rows per band, what is left over is not
    used. Documents without shingles (2^64 - 1 everywhere) resemble nobody and are in no table.
    """
    documents, permutations = signatures.shape
    if not 1 <= num_bands <= permutations:
        raise UserError(f"dedup: {num_bands} bands cannot be cut from {permutations} permutations; use fewer bands")
    rows = permutations // num_bands
    comparable = np.flatnonzero((signatures != _EMPTY).any(axis=1)).tolist()
    tables: list[dict[bytes, list[int]]] = []
    for band in range(num_bands):
        part = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])
        table: dict[bytes, list[int]] = {}
        for document in comparable:
            table.setdefault(part[document].tobytes(), []).append(document)
        tables.append(table)
    return tables


def find_duplicates_lsh(
    hash_tables: list[dict[bytes, list[int]]], signatures: np.ndarray, similarity_threshold: float
) -> set[int]:
    """Return the indices of documents to remove; the lowest index of a group stays.

    Documents are taken in order, and each is compared with the first surviving document of each of its buckets; it
    goes when the fraction of agreeing entries reaches the threshold. Nobody is removed in favour of a removed document.
    """
    buckets = [members for table in hash_tables for members in table.values() if len(members) > 1]
    buckets_of: dict[int, list[int]] = {}
    for number, members in enumerate(buckets):
        for document in members:
            buckets_of.setdefault(document, []).append(number)
    heads = [0] * len(buckets)  # place of the first member that is not removed; only ever moves forward
    threshold = round(similarity_threshold * PARTS) * signatures.shape[1]
    removed: set[int] = set()
    for document in sorted(buckets_of):
        for number in buckets_of[document]:
            members = buckets[number]
            while members[heads[number]] in removed:
                heads[number] += 1
            first = members[heads[number]]
            agreeing = int(np.count_nonzero(signatures[first] == signatures[document]))
            if first < document and agreeing * PARTS >= threshold:
                removed.add(document)
                break
    return removed
