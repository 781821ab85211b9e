"""The sorted tables of an index: all keys of what stays, the better document first among equal keys."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dedup.external_sort
from dedup import DedupParameters
from dedup.corpus import Corpus
from dedup.job import DedupJob
from dedup.look_up_tables import whole_keys, write_tables
from dedup.sketch import band_name
from dedup.steps import sketch_all


@pytest.fixture
def job(oracle, tmp_path):
    """Documents of which many have equal texts or share bands, as an index has that was filled with keep_all."""
    records = oracle.Planted(seed=3, originals=120, words=400).records
    copies = [{**record, "id": f"again-{number}", "quality": 0.7} for number, record in enumerate(records[::2])]
    short = [{**records[0], "id": f"short-{number}", "text": "few words"} for number in range(9)]
    files = oracle.write_shards(tmp_path / "in", records + copies + short, shards=3)
    job = DedupJob(Corpus(tuple(files)), DedupParameters(), tmp_path / "work")
    sketch_all(job)
    return job


@pytest.mark.parametrize("least_records", [16, 1 << 12])  # on disk in runs of 16; in one piece
def test_the_tables_are_those_of_one_sort_in_memory(job, tmp_path, monkeypatch, least_records):
    monkeypatch.setattr(dedup.external_sort, "LEAST_RECORDS", least_records)
    monkeypatch.setattr(dedup.external_sort, "BYTES_PER_RECORD", 1 << 60)  # so that LEAST_RECORDS counts
    count = len(job.sketches)
    stays = np.random.default_rng(0).random(count) < 0.8
    written = write_tables(job, stays, tmp_path / "tables")
    assert sorted(written) == sorted((tmp_path / "tables").iterdir())
    best_first = np.flatnonzero(stays)[job.rank_columns(np.flatnonzero(stays)).best_first()]
    long_enough = job.sketches.numbers("shingles")[best_first] > 0
    assert 0 < np.count_nonzero(long_enough) < len(best_first)
    for name in ["digest_high", *(band_name(band) for band in range(job.parameters.bands))]:
        rows = best_first if name == "digest_high" else best_first[long_enough]
        keys = job.sketches.numbers(name)[rows]
        order = np.argsort(keys, kind="stable")
        assert len(np.unique(keys)) < len(keys)
        for part, expected in (("keys", keys[order]), ("rows", rows[order])):
            found = np.load(tmp_path / "tables" / f"{name}.{part}.npy", mmap_mode="r")
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    assert not list(job.folder.glob("runs/*"))


@given(st.lists(st.lists(st.integers(0, 6), max_size=5), max_size=8))
def test_the_records_of_a_key_come_in_one_block(parts):
    flat = sorted(key for part in parts for key in part)
    sizes = [len(part) for part in parts]
    keys = np.array(flat, np.uint64)
    cuts = np.cumsum([0, *sizes])
    blocks = [(keys[a:b], np.arange(a, b)) for a, b in zip(cuts, cuts[1:], strict=False)]
    found = list(whole_keys(iter(blocks)))
    np.testing.assert_array_equal(
        np.concatenate([np.empty(0, np.int64), *(rows for _, rows in found)]), range(len(flat))
    )
    seen = [set(block.tolist()) for block, _ in found]
    assert sum(len(one) for one in seen) == len(set(flat))
