"""Interrupted anywhere, with files damaged by a power cut, on any number of workers: the same removals."""

import pytest

from dedup import DedupParameters, steps
from dedup.corpus import Corpus
from dedup.job import DedupJob
from dedup.leftovers import forget_what_does_not_belong
from dedup.removals import find_removals


class Stop(BaseException):
    """Stands for whatever ends a run between two units."""


@pytest.fixture(scope="module")
def planted_corpus(oracle, tmp_path_factory):
    records = oracle.Planted(seed=8, originals=40).records
    return Corpus(tuple(oracle.write_shards(tmp_path_factory.mktemp("in"), records, 3, row_group=8)))


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr("dedup.corpus.BYTES_PER_PIECE", 9000)
    monkeypatch.setattr("dedup.candidates.LEAST_GROUP", 5)


def stopping_after(units: int):
    left = [units]

    def pause() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stop

    return pause


def receipts(corpus, scratch, workers=1, pause=lambda: None):
    return find_removals(corpus, DedupParameters(), workers, scratch, pause=pause).receipts()


def test_stopped_after_any_number_of_units_the_next_start_ends_the_same(planted_corpus, small_units, tmp_path):
    expected = receipts(planted_corpus, tmp_path / "whole")
    total = len(list((tmp_path / "whole").rglob("*.arrays")))
    assert total > 30
    for units in range(0, total, 15):
        scratch = tmp_path / str(units)
        for attempt in range(2):
            with pytest.raises(Stop):
                receipts(planted_corpus, scratch, 1 + units % 3, stopping_after(min(units, 4 + 2 * attempt)))
        assert receipts(planted_corpus, scratch, 1 + units % 4).equals(expected)


def test_every_file_that_is_damaged_or_lost_is_made_again(planted_corpus, small_units, tmp_path):
    scratch = tmp_path / "scratch"
    expected = receipts(planted_corpus, scratch)
    files = sorted(path for path in scratch.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".arrays", ".arrow", ".json", ".u64"}
    for number, path in enumerate(files):
        content = path.read_bytes()
        if number % 3 == 0:
            path.write_bytes(content[: len(content) // 2])
        elif number % 3 == 1:
            middle = len(content) // 2
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
        else:
            path.unlink()
        if number % 4 == 3 or path.name in ("groups.arrays", "shingles.u64", "copies.arrays"):
            assert receipts(planted_corpus, scratch).equals(expected), path


def test_results_of_other_documents_or_parameters_are_not_taken_over(oracle, planted_corpus, tmp_path):
    scratch = tmp_path / "scratch"
    receipts(planted_corpus, scratch)
    strict = DedupParameters(jaccard=0.97, containment=0.97)
    alone = find_removals(planted_corpus, strict, 1, tmp_path / "alone").receipts()
    assert find_removals(planted_corpus, strict, 1, scratch).receipts().equals(alone)
    other = oracle.write_shards(tmp_path / "in", oracle.Planted(seed=9, originals=10).records)
    fresh = receipts(Corpus(tuple(other)), tmp_path / "fresh")
    assert receipts(Corpus(tuple(other)), scratch).equals(fresh)


def test_sets_and_decisions_go_with_the_grouping_they_were_made_for(planted_corpus, small_units, tmp_path):
    job = DedupJob(planted_corpus, DedupParameters(), tmp_path)
    steps.run(job)
    job.groups_file.write_bytes(job.groups_file.read_bytes()[:-9])
    forget_what_does_not_belong(DedupJob(planted_corpus, DedupParameters(), tmp_path))
    assert not any((tmp_path / name).exists() for name in ("groups.arrays", "sets", "resolved", "shingles.u64"))
    assert len(list((tmp_path / "bands").iterdir())) == DedupParameters().bands


def test_runs_of_a_sort_that_was_stopped_are_deleted_by_the_next_start(planted_corpus, tmp_path):
    job = DedupJob(planted_corpus, DedupParameters(), tmp_path)
    steps.run(job)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digest-elsewhere-1-00000.run").write_bytes(bytes(1000))
    forget_what_does_not_belong(job)
    assert not (tmp_path / "runs").exists() and job.copies_file.exists()
