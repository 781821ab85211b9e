"""Signatures and band keys: against an obvious numpy version, against theory and against datasketch."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup.minhash import EMPTY_MINIMUM, band_keys, permutations, signatures
from dedup.parameters import DedupParameters

hash_lists = st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=40), max_size=5)


def laid_end_to_end(documents) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    return np.concatenate([np.empty(0, np.uint64), *[np.array(d, np.uint64) for d in documents]]), starts


def overlapping_sets(rng, size: int, shared: int) -> tuple[np.ndarray, np.ndarray]:
    both = rng.integers(0, 2**64, 2 * size - shared, dtype=np.uint64)
    return both[:size], both[size - shared :]


@settings(max_examples=100, deadline=None)
@given(hash_lists, st.integers(1, 40), st.integers(0, 2**63 - 1))
def test_signatures_equal_the_whole_matrix_computed_in_exact_integers(documents, count, seed):
    a, b = permutations(count, seed)
    found = signatures(*laid_end_to_end(documents), a, b)
    for document, row in zip(documents, found, strict=True):
        for p in range(count):
            images = [((value >> 32) * int(a[p]) + int(b[p])) % 2**32 for value in document]
            assert row[p] == min(images, default=int(EMPTY_MINIMUM))


def test_a_long_document_is_the_minimum_of_its_blocks():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 10_000, dtype=np.uint64)
    a, b = permutations(112, 1)
    whole = signatures(hashes, np.array([0, len(hashes)]), a, b)[0]
    parts = signatures(hashes, np.array([0, 1, 1023, 1024, 1025, 5000, len(hashes)]), a, b)
    assert np.array_equal(whole, parts.min(axis=0))


def test_every_permutation_is_one():
    a, _ = permutations(1024, 7)
    assert np.all(a % 2 == 1)
    assert len(np.unique(a)) == 1024


def test_the_estimate_is_unbiased_and_as_sharp_as_independent_permutations():
    rng = np.random.default_rng(1)
    a, b = permutations(112, 1)
    shared, size, trials = 160, 180, 1500
    similarity = shared / (2 * size - shared)
    estimates = []
    for _ in range(trials):
        minima = signatures(*laid_end_to_end(overlapping_sets(rng, size, shared)), a, b)
        estimates.append(np.mean(minima[0] == minima[1]))
    spread = math.sqrt(similarity * (1 - similarity) / 112)
    assert abs(np.mean(estimates) - similarity) < 4 * spread / math.sqrt(trials)
    assert 0.85 < np.std(estimates) / spread < 1.15


def test_the_estimate_agrees_with_datasketch_within_the_error_of_both():
    from datasketch import MinHash

    rng = np.random.default_rng(2)
    a, b = permutations(256, 1)
    for shared in (0, 100, 250, 380, 400):
        pair = overlapping_sets(rng, 400, shared)
        minima = signatures(*laid_end_to_end(pair), a, b)
        peers = []
        for values in pair:
            peer = MinHash(num_perm=256, seed=1)
            peer.update_batch([value.tobytes() for value in values])
            peers.append(peer)
        assert abs(np.mean(minima[0] == minima[1]) - peers[0].jaccard(peers[1])) < 0.15


def test_bands_meet_as_often_as_the_formula_says():
    rng = np.random.default_rng(3)
    parameters = DedupParameters()
    a, b = permutations(parameters.permutations, parameters.seed)
    size, trials = 100, 800
    for shared in (60, 80, 90):
        sets = [values for _ in range(trials) for values in overlapping_sets(rng, size, shared)]
        keys = band_keys(signatures(*laid_end_to_end(sets), a, b), parameters.bands, parameters.rows)
        met = np.mean((keys[0::2] == keys[1::2]).any(axis=1))
        expected = parameters.candidate_probability(shared / (2 * size - shared))
        assert abs(met - expected) < 4 * math.sqrt(expected * (1 - expected) / trials) + 0.01


def test_equal_minima_in_different_bands_do_not_meet():
    minima = np.array([[5, 5, 1, 2], [3, 4, 5, 5]], np.uint32)
    keys = band_keys(minima, 2, 2)
    assert len(np.unique(keys)) == 4
