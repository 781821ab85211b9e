"""Planted copies: counted rightly, and without a trace in what is kept."""

import random
import re
import string

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dedup import DedupParameters, planted_copies
from dedup.corpus import Corpus
from dedup.job import DedupJob
from dedup.planted_copies import measure_recall
from dedup.removals import decided


def job_of(oracle, folder, **parameters) -> DedupJob:
    records = oracle.Planted(seed=31, originals=150).records
    corpus = Corpus(tuple(oracle.write_shards(folder / "in", records, 3, 20)))
    return DedupJob(corpus, DedupParameters(**parameters), folder / "work")


def test_copies_are_counted_as_the_plain_definition_counts_them(oracle, tmp_path):
    job = job_of(oracle, tmp_path)
    removals = decided(job)
    before = removals.receipts()
    measured = measure_recall(job, removals, 120)
    texts = pq.read_table(job.folder / "planted" / "planted.parquet")["text"].to_pylist()
    kept = [text for text, stays in zip(_texts(job), removals.stays(), strict=True) if stays]
    sets = [oracle.shingle_set(text) for text in kept]
    best = [max(oracle.jaccard(copy, other) for other in sets) for copy in map(oracle.shingle_set, texts)]
    assert measured.planted == len(texts) == 120
    assert measured.duplicates == sum(value >= 0.8 for value in best)
    assert 20 < measured.duplicates < 100
    assert 0.95 * measured.duplicates <= measured.found <= measured.duplicates
    assert decided(job).receipts().equals(before)


def _texts(job) -> list[str]:
    tables = [pq.read_table(file) for file in job.corpus.files]
    return [text for table in tables for text in table["text"].to_pylist()]


def test_a_search_that_finds_little_is_told_so(oracle, tmp_path):
    job = job_of(oracle, tmp_path, bands=1, rows=40)
    measured = measure_recall(job, decided(job), 120)
    assert measured.found < 0.5 * measured.duplicates
    assert measured.recall == measured.found / measured.duplicates
    assert measured.to_json()["recall"] == measured.recall


def test_the_text_that_is_copied_is_limited_and_fewer_copies_than_asked_are_told(oracle, tmp_path, monkeypatch):
    job = job_of(oracle, tmp_path)
    removals = decided(job)
    sizes = np.array([len(text.encode()) for text in _texts(job)])
    everything = planted_copies._choose(job, removals, 120)
    assert len(everything) == 120 and sizes[everything].sum() > 40_000
    monkeypatch.setattr(planted_copies, "MOST_BYTES", 20_000)
    chosen = planted_copies._choose(job, removals, 120)
    assert set(chosen) < set(everything) and 15_000 < sizes[chosen].sum() <= 20_000
    assert removals.stays()[chosen].all()
    measured = measure_recall(job, removals, 120)
    assert (measured.asked, measured.planted) == (120, len(chosen))
    shortest = everything[np.argmin(sizes[everything])]
    monkeypatch.setattr(planted_copies, "MOST_BYTES", int(sizes[shortest]))
    assert planted_copies._choose(job, removals, 120).tolist() == [shortest], "longer ones are passed over"


def test_edits_replace_one_passage_of_the_asked_size(monkeypatch):
    text = " ".join(f"w{n}" for n in range(100))
    for seed in range(50):
        words = planted_copies._edit(text, "x y z", random.Random(seed)).split(" ")
        changed = np.flatnonzero([word != f"w{n}" for n, word in enumerate(words)])
        assert len(words) == 100 and 5 <= len(changed) <= 30
        assert changed[-1] - changed[0] + 1 == len(changed)


def test_a_corpus_without_long_documents_has_no_recall(oracle, tmp_path):
    files = oracle.write_shards(tmp_path / "in", [{"id": "a", "text": "short"}, {"id": "b", "text": "brief"}])
    job = DedupJob(Corpus(tuple(files)), DedupParameters(), tmp_path / "work")
    measured = measure_recall(job, decided(job), 10)
    assert (measured.planted, measured.recall) == (0, None)
    with pytest.raises(AttributeError):
        measured.planted = 1


def edited_by_blanks(text: str, other: str, rng: random.Random) -> str:
    """The same edit with words that blanks separate."""
    words, foreign = list(re.finditer(r"\S+", text)), other.split()
    count = max(1, round(len(words) * 0.05 * 6 ** rng.random()))
    first = rng.randrange(max(len(words) - count, 0) + 1)
    passage = " ".join(rng.choice(foreign) for _ in range(count))
    return text[: words[first].start()] + passage + text[words[first + count - 1].end() :]


@given(st.text(string.printable, min_size=1), st.text(string.printable, min_size=1), st.integers())
def test_ascii_is_edited_word_by_word(text, other, seed):
    assume(text.split() and other.split())
    found = planted_copies._edit(text, other, random.Random(seed))
    assert found == edited_by_blanks(text, other, random.Random(seed))


SPACELESS = {
    "chinese": [chr(0x4E00 + n) for n in range(900)],
    "japanese": [chr(0x3042 + n) for n in range(80)] + [chr(0x5000 + n) for n in range(400)],
    "thai": [chr(0x0E01 + n) + mark for n in range(46) for mark in ("", "\u0e31", "\u0e34\u0e48", "\u0e39")],
}


@pytest.mark.parametrize("script", SPACELESS)
def test_text_without_spaces_gets_copies_on_both_sides_of_the_threshold(oracle, tmp_path, script):
    rng = random.Random(7)
    letters = SPACELESS[script]
    texts = ["".join(rng.choice(letters) for _ in range(rng.randint(80, 400))) for _ in range(90)]
    files = oracle.write_shards(tmp_path / "in", [{"id": str(n), "text": text} for n, text in enumerate(texts)])
    job = DedupJob(Corpus(tuple(files)), DedupParameters(), tmp_path / "work")
    measured = measure_recall(job, decided(job), 80)
    copies = pq.read_table(job.folder / "planted" / "planted.parquet")["text"].to_pylist()
    sets = [oracle.shingle_set(text) for text in texts]
    best = [max(oracle.jaccard(copy, other) for other in sets) for copy in map(oracle.shingle_set, copies)]
    assert min(best) < 0.7 and max(best) > 0.85
    assert measured.planted == 80 and measured.duplicates == sum(value >= 0.8 for value in best)
    assert 15 < measured.duplicates < 65
    assert not any(" " in copy for copy in copies)


def test_words_of_other_scripts_keep_their_blanks_in_text_without_spaces():
    assert planted_copies._joined(["中", "文", "one", "two", "字", "ก\u0e31", "ข"]) == "中文 one two 字ก\u0e31ข"
    found = planted_copies.WORD.findall("中文 one, two。ก\u0e31ขd\u00e9j\u00e0 vu")
    assert found == ["中", "文", "one,", "two。", "ก\u0e31", "ข", "d\u00e9j\u00e0", "vu"]
