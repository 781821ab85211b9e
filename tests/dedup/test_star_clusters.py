"""The order of survival, verification, and the promise that nobody is removed for resembling a removed document."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup.clusters import SURVIVES, resolve
from dedup.components import NO_BUCKET
from dedup.parameters import PARTS
from dedup.verify import is_duplicate, shared_shingles, similarity, sizes_allow

small_sets = st.sets(st.integers(0, 30), min_size=1, max_size=20)


def ascending(values) -> np.ndarray:
    return np.array(sorted(values), np.uint64)


def resolved(sets: list[set], threshold: float = 0.8, containment: float = 0.0, slots: int = 100) -> list[int]:
    """Resolve with one bucket that holds everybody, so that only verification decides."""
    numbers = np.zeros((len(sets), 1), np.int32)
    starts = np.cumsum([0, *map(len, sets)])
    flat = np.concatenate([ascending(s) for s in sets])
    survivor, _ = resolve(
        numbers,
        1,
        flat,
        starts[:-1],
        np.diff(starts),
        jaccard_parts=round(threshold * PARTS),
        containment_parts=round(containment * PARTS),
        candidates_per_band=slots,
    )
    return survivor.tolist()


@settings(max_examples=200, deadline=None)
@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_shared_shingles_is_the_size_of_the_intersection(left, right):
    assert shared_shingles(ascending(left), ascending(right)) == len(left & right)


@settings(max_examples=200, deadline=None)
@given(small_sets, small_sets, st.integers(0, 100), st.integers(0, 100))
def test_the_integer_test_is_the_two_thresholds_in_exact_arithmetic(left, right, jaccard, containment):
    shared, union = len(left & right), len(left | right)
    expected = 100 * shared >= jaccard * union and 100 * shared >= containment * len(left)
    parts = jaccard * PARTS // 100, containment * PARTS // 100
    assert is_duplicate(shared, len(left), len(right), *parts) == expected
    if expected:
        assert sizes_allow(len(left), len(right), parts[0])
    assert similarity(ascending(left), ascending(right)) == (shared / union, shared / len(left))


@settings(max_examples=200, deadline=None)
@given(st.lists(small_sets, min_size=1, max_size=15), st.integers(30, 100))
def test_stars_equal_the_greedy_definition(sets, percent):
    survivors: list[int] = []
    expected = []
    for number, mine in enumerate(sets):
        scores = [(len(mine & sets[o]) / len(mine | sets[o]), -o) for o in survivors]
        best = max(((s, o) for s, o in scores if s >= percent / 100 - 1e-12), default=None)
        expected.append(SURVIVES if best is None else -best[1])
        if best is None:
            survivors.append(number)
    assert resolved(sets, percent / 100) == expected


def test_in_a_chain_the_far_end_stays():
    words = list(range(30))
    a, b, c = set(words[0:20]), set(words[2:22]), set(words[4:24])
    assert len(a & b) / len(a | b) > 0.8 > len(a & c) / len(a | c)
    assert resolved([a, b, c]) == [SURVIVES, 0, SURVIVES]
    assert resolved([b, a, c]) == [SURVIVES, 0, 0]


def test_the_most_similar_survivor_is_the_one_on_the_receipt():
    near, far, document = set(range(100)), set(range(30, 130)), set(range(5, 105))
    assert len(far & document) / len(far | document) >= 0.6 > len(far & near) / len(far | near)
    assert resolved([far, near, document], 0.6) == [SURVIVES, SURVIVES, 1]


def test_containment_can_demand_that_nothing_of_a_removed_document_is_lost():
    long, short = set(range(100)), set(range(90))
    different = set(range(89)) | {1000}
    assert resolved([long, short, different], 0.8, 1.0) == [SURVIVES, 0, SURVIVES]


def test_of_equally_similar_survivors_the_better_one_is_on_the_receipt_whatever_band_showed_it():
    shared = set(range(100))
    better, worse, document = shared | set(range(200, 220)), shared | set(range(300, 320)), shared
    sets = [better, worse, document]
    starts = np.cumsum([0, *map(len, sets)])
    for better_band in (0, 1):
        numbers = np.full((3, 2), NO_BUCKET, np.int32)
        numbers[0, better_band] = numbers[2, better_band] = 0
        numbers[1, 1 - better_band] = numbers[2, 1 - better_band] = 1
        survivor, shared_with = resolve(
            numbers,
            2,
            np.concatenate([ascending(s) for s in sets]),
            starts[:-1],
            np.diff(starts),
            jaccard_parts=8 * PARTS // 10,
            containment_parts=0,
            candidates_per_band=1,
        )
        assert survivor.tolist() == [SURVIVES, SURVIVES, 0]
        assert shared_with.tolist() == [0, 0, 100]


@pytest.mark.parametrize("slots", [1, 3])
def test_a_bucket_offers_its_best_survivors_only(slots):
    strangers = [set(range(1000 * n, 1000 * n + 20)) for n in range(3)]
    copy_of_second = set(strangers[1])
    expected = SURVIVES if slots == 1 else 1
    assert resolved([*strangers, copy_of_second], slots=slots)[-1] == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(small_sets, min_size=2, max_size=12), st.data())
def test_reading_little_at_a_time_changes_nothing_and_known_documents_stay(sets, data):
    fixed, joins = data.draw(st.integers(0, len(sets))), data.draw(st.booleans())
    starts = np.cumsum([0, *map(len, sets)])
    results = []
    for touch_limit in (0, 1 << 40):
        survivor, shared = resolve(
            np.zeros((len(sets), 1), np.int32),
            1,
            np.concatenate([ascending(s) for s in sets]),
            starts[:-1],
            np.diff(starts),
            jaccard_parts=8 * PARTS // 10,
            containment_parts=0,
            candidates_per_band=100,
            fixed=fixed,
            joins=joins,
            touch_limit=touch_limit,
        )
        results.append((survivor.tolist(), shared.tolist()))
    assert results[0] == results[1]
    survivors = results[0][0]
    assert survivors[:fixed] == [SURVIVES] * fixed
    assert joins or max(survivors) < max(fixed, 1)
