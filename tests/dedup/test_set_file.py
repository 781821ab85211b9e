"""Where the shingle sets of candidates lie in their file, and how damage to them is seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup import DedupParameters, steps
from dedup.corpus import Corpus
from dedup.job import DedupJob
from dedup.set_file import SET_PAGE, set_places, sets_are_whole, write_sets
from pipeline_lib.stage import StageFailure


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3 * SET_PAGE), min_size=1, max_size=5), max_size=5))
def test_sets_never_overlap_and_each_piece_begins_on_its_own_page(pieces):
    sizes = np.array([size for piece in pieces for size in piece], np.int64)
    number = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    begins = set_places(sizes, number)
    assert all(begins[1:] >= begins[:-1] + sizes[:-1])
    for piece in range(len(pieces)):
        assert begins[number == piece][0] % SET_PAGE == 0
    ends = begins + sizes
    pages = [set(range(b // SET_PAGE, -(-e // SET_PAGE))) for b, e in zip(begins.tolist(), ends.tolist(), strict=True)]
    for left, right in zip(range(len(pages)), range(1, len(pages)), strict=False):
        assert number[left] == number[right] or not pages[left] & pages[right]


@pytest.fixture
def job(oracle, tmp_path):
    """A finished run with candidates."""
    files = oracle.write_shards(tmp_path / "in", oracle.Planted(seed=3, originals=12).records)
    made = DedupJob(Corpus(tuple(files)), DedupParameters(), tmp_path / "work")
    steps.run(made)
    return made


def test_a_changed_byte_of_a_set_is_seen_and_written_again(job):
    (unit,) = job.pieces_with_candidates
    whole = job.sets_path.read_bytes()
    assert sets_are_whole(job, unit)
    at = int(job.candidates["begin"][-1]) * 8
    job.sets_path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert not sets_are_whole(job, unit)
    write_sets(job, unit)
    assert sets_are_whole(job, unit) and job.sets_path.read_bytes() == whole


def test_a_text_that_is_not_the_sketched_one_is_named(job, oracle):
    row = int(job.candidates["row"][0])
    records = oracle.Planted(seed=3, originals=12).records
    records[row]["text"] += " changed"
    oracle.write_shards(job.corpus.files[0].parent, records)
    with pytest.raises(StageFailure, match=rf"part-00000.parquet:{row} is not the one that was sketched"):
        write_sets(job, 0)


def test_a_file_that_became_shorter_is_found_out(job, oracle):
    rows = job.candidates["row"]
    oracle.write_shards(job.corpus.files[0].parent, oracle.Planted(seed=3, originals=12).records[: int(rows[-2]) + 1])
    with pytest.raises(StageFailure, match=rf"part-00000.parquet:{rows[-1]} is not the one that was sketched"):
        write_sets(job, 0)


def test_every_step_is_finished_after_a_run_and_waits_again_when_its_result_goes(job):
    assert [steps.waiting(job, name) for name in steps.STEPS] == [[]] * len(steps.STEPS)
    job.band_file(3).unlink()
    job.resolved_file(0).unlink()
    assert steps.waiting(job, "bands") == [3] and steps.waiting(job, "resolve") == [0]
    steps.do(job, "bands", 3, 1)
    steps.do(job, "resolve", 0, 1)
    assert [steps.waiting(job, name) for name in steps.STEPS] == [[]] * len(steps.STEPS)
