"""Candidate search: documents that share a whole band of their signature.

How: sort the keys of one band; runs of equal keys are buckets. No hash tables, so no pointers and no order that depends
on insertion. Buckets of one document are dropped at once, and nobody reads the text of documents without one again.
Cost: `bands` sorts of 8-byte keys, 4 bytes per document and band for the result.
"""

import numpy as np

NO_BUCKET = -1


def buckets(keys: np.ndarray) -> tuple[np.ndarray, int]:
    """Return (int32[documents, bands] bucket numbers, number of buckets) of uint64[documents, bands] band keys.

    Numbers are unique over all bands; a key that no other document has gives NO_BUCKET.
    """
    numbers = np.full(keys.shape, NO_BUCKET, np.int32)
    used = 0
    for band in range(keys.shape[1]):
        column = np.ascontiguousarray(keys[:, band])
        order = np.argsort(column)  # any order inside a bucket will do: only its number is recorded
        ordered = column[order]
        continues = np.zeros(len(ordered), np.bool_)  # equal to the key before it
        continues[1:] = ordered[1:] == ordered[:-1]
        begins = ~continues  # first of a run of two or more
        begins[:-1] &= continues[1:]
        begins[-1:] = False
        shared = begins | continues
        numbers[order[shared], band] = used + np.cumsum(begins)[shared] - 1
        used += int(np.count_nonzero(begins))
    return numbers, used
