"""The index on disk: additions, undo, direction, cluster sizes, and every way in which it refuses to lie."""

import json
import os
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dedup import DedupParameters, find_duplicates
from dedup.corpus import Corpus
from dedup.index import DedupIndex, Run, subtract
from pipeline_lib.stage import StageFailure, UserError

PARAMETERS = DedupParameters(max_removed_fraction=1.0)


@pytest.fixture(scope="module")
def parts(oracle, tmp_path_factory):
    """Three sources that share documents, each in two files."""
    folder = tmp_path_factory.mktemp("sources")
    records = oracle.Planted(seed=21, originals=80).records
    return {
        name: Corpus(tuple(oracle.write_shards(folder / name, records[number::3], 2, row_group=9)))
        for number, name in enumerate("abc")
    }


def kept_ids(index: DedupIndex, name: str) -> list[str]:
    removals = index.removals(name)
    rows = np.flatnonzero(removals.stays()) + removals.first_new
    return sorted(removals.sketches.take(rows, ["id"])[0].to_pylist())


def index_of(folder, parts, names: str) -> DedupIndex:
    index = DedupIndex.open(folder, PARAMETERS)
    for name in names:
        index.add(name, parts[name])
    return index


def test_every_removed_document_resembles_one_that_an_earlier_source_or_its_own_keeps(oracle, parts, tmp_path):
    index = index_of(tmp_path / "index", parts, "abc")
    texts = {}
    for corpus in parts.values():
        for file in corpus.files:
            table = pq.read_table(file)
            texts |= dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    sets = {identity: oracle.shingle_set(text) for identity, text in texts.items()}
    stays: set[str] = set()
    removed = 0
    for name in "abc":
        stays |= set(kept_ids(index, name))
        for receipt in index.removals(name).receipts().to_pylist():
            assert receipt["survivor_id"] in stays and receipt["id"] not in stays
            assert receipt["jaccard"] == pytest.approx(
                oracle.jaccard(sets[receipt["id"]], sets[receipt["survivor_id"]])
            )
            assert receipt["preview"] == texts[receipt["id"]][:200]
            assert receipt["survivor_preview"] == texts[receipt["survivor_id"]][:200]
            removed += 1
    assert removed > 30
    assert sorted(stays) == sorted(
        set(texts) - {i for n in "abc" for i in index.removals(n).receipts()["id"].to_pylist()}
    )


def test_the_first_source_is_deduplicated_as_without_an_index(parts, tmp_path):
    index = index_of(tmp_path / "index", parts, "a")
    alone = find_duplicates(list(parts["a"].files), PARAMETERS, 1, tmp_path / "scratch")
    assert index.removals("a").receipts().equals(alone)


def test_a_later_source_gets_the_survivors_of_a_run_in_which_the_earlier_one_is_better(oracle, tmp_path):
    records = oracle.Planted(seed=5, originals=80).records
    random.Random(0).shuffle(records)
    for number, record in enumerate(records):
        record["quality"] = 1.0 if number % 2 else 0.0
    first, second = ([r for r in records if r["quality"] == q] for q in (1.0, 0.0))
    corpora = [Corpus(tuple(oracle.write_shards(tmp_path / n, r))) for n, r in (("one", first), ("two", second))]
    index = DedupIndex.open(tmp_path / "index", PARAMETERS)
    index.add("one", corpora[0])
    index.add("two", corpora[1])
    both = find_duplicates([*corpora[0].files, *corpora[1].files], PARAMETERS, 1, tmp_path / "scratch")
    found = pa.concat_tables([index.removals("one").receipts(), index.removals("two").receipts()])
    assert found.sort_by("id").equals(both)


def test_only_candidates_of_earlier_sources_are_read_again(parts, tmp_path, monkeypatch):
    index = index_of(tmp_path / "index", parts, "a")
    read = []
    original = Corpus.read

    def watched(corpus, piece, columns=None):
        read.append((piece.file, tuple(columns or ())))
        return original(corpus, piece, columns)

    monkeypatch.setattr(Corpus, "read", watched)
    unrelated = tmp_path / "unrelated.parquet"
    pq.write_table(pa.table({"id": ["x"], "text": [" ".join(f"quite{n}" for n in range(50))]}), unrelated)
    index.add("new", Corpus((unrelated,)))
    assert {file for file, _ in read} == {unrelated}


@pytest.mark.parametrize("gone", "abc")
def test_undo_leaves_the_index_that_would_have_come_about_without_the_source(parts, tmp_path, gone):
    index = index_of(tmp_path / "all", parts, "abc")
    later = index.undo(gone)
    assert later == list("abc"["abc".index(gone) + 1 :])
    rest = "abc".replace(gone, "")
    never = index_of(tmp_path / "never", parts, rest)
    reopened = DedupIndex.open(tmp_path / "all", PARAMETERS)
    for name in rest:
        assert kept_ids(reopened, name) == kept_ids(never, name)
        assert reopened.removals(name).receipts().equals(never.removals(name).receipts())


def test_an_interrupted_undo_is_finished_by_the_next_change(parts, tmp_path, monkeypatch):
    index = index_of(tmp_path / "index", parts, "abc")
    monkeypatch.setattr(DedupIndex, "finish_pending", lambda *a: None)
    index.undo("a")
    monkeypatch.undo()
    reopened = DedupIndex.open(tmp_path / "index", PARAMETERS)
    assert [source["name"] for source in reopened.sources] == []
    reopened.add("a", parts["a"])
    assert [source["name"] for source in reopened.sources] == ["b", "c", "a"]
    expected = index_of(tmp_path / "other", parts, "bca")
    assert kept_ids(reopened, "a") == kept_ids(expected, "a")


def test_cluster_sizes_count_what_went_in_favour_of_each_and_are_exported(parts, tmp_path):
    index = index_of(tmp_path / "index", parts, "abc")
    total = sum(int(index.cluster_sizes(name).sum()) for name in "abc")
    assert total == sum(source["removed"] for source in index.sources)
    index.export("a", tmp_path / "out", workers=2)
    shards = [pq.read_table(tmp_path / "out" / file.name) for file in parts["a"].files]
    exported = pa.concat_tables(shards)
    assert sorted(exported["id"].to_pylist()) == kept_ids(index, "a")
    assert sum(exported["duplicates"].to_pylist()) == int(index.cluster_sizes("a").sum()) > 0
    assert pq.read_table(tmp_path / "out" / "removed.parquet").num_rows == index.sources[0]["removed"]


def test_files_that_changed_after_they_were_added_are_not_exported_by_row(parts, tmp_path):
    files = [shutil.copy(file, tmp_path / file.name) for file in parts["a"].files]
    index = DedupIndex.open(tmp_path / "index", PARAMETERS)
    index.add("a", Corpus(tuple(files)))
    table = pq.read_table(files[0])
    pq.write_table(table.take(list(range(len(table)))[::-1]), files[0])
    with pytest.raises(UserError, match=f"{files[0].name} is gone or not as it was when it was added as 'a'"):
        index.export("a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_remove_from_a_what_is_in_b_keeps_copies_within_a(tmp_path):
    def text(seed: int) -> str:
        return " ".join(f"{seed}word{n}" for n in range(60))

    pq.write_table(pa.table({"id": ["b1", "b2"], "text": [text(1), text(1) + " x"]}), tmp_path / "b.parquet")
    rows = {"id": ["a1", "a2", "a3", "a4"], "text": [text(1), text(1) + " y", text(2), text(2)]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    index = DedupIndex.open(tmp_path / "index", PARAMETERS)
    index.add("b", Corpus((tmp_path / "b.parquet",)), keep_all=True)
    assert index.sources[0]["removed"] == 0
    removals = subtract(Corpus((tmp_path / "a.parquet",)), index.known(), PARAMETERS, tmp_path / "work")
    assert [(r["id"], r["survivor_id"], r["kind"]) for r in removals.receipts().to_pylist()] == [
        ("a1", "b1", "exact"),
        ("a2", "b1", "fuzzy"),
    ]


def test_workers_and_memory_do_not_show(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("dedup.corpus.BYTES_PER_PIECE", 5000)
    monkeypatch.setattr("dedup.candidates.LEAST_GROUP", 3)
    reference = index_of(tmp_path / "one", parts, "abc")
    index = DedupIndex.open(tmp_path / "two", PARAMETERS)
    for name in "abc":
        index.add(name, parts[name], Run(workers=3, max_ram=1 << 40))
    for name in "abc":
        assert index.removals(name).receipts().equals(reference.removals(name).receipts())


def test_damage_is_named_with_the_command_that_mends_it(parts, tmp_path):
    index = index_of(tmp_path / "index", parts, "ab")
    damaged = index.folder / "sources" / "a" / "removed.npz"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-3] + b"xxx")
    with pytest.raises(UserError, match=r"removed.npz of source 'a' is missing or damaged; .* index forget .* a"):
        DedupIndex.open(index.folder, PARAMETERS)
    assert DedupIndex.forget(index.folder, "a", Run(), PARAMETERS) == ["b"]
    mended = DedupIndex.open(index.folder, PARAMETERS)
    assert kept_ids(mended, "b") == kept_ids(index_of(tmp_path / "never", parts, "b"), "b")
    (index.folder / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"index.json is damaged; delete"):
        DedupIndex.open(index.folder, PARAMETERS)


@pytest.mark.parametrize(("name", "value"), [("ngram", 4), ("jaccard", 0.7), ("seed", 2), ("bands", 10)])
def test_another_parameter_is_refused_by_name(parts, tmp_path, name, value):
    index_of(tmp_path / "index", parts, "a")
    with pytest.raises(UserError, match=rf"was made with {name}\w* = .*, not .*; use the same parameters"):
        DedupIndex.open(tmp_path / "index", DedupParameters(**{name: value}))


def test_text_that_changed_after_it_was_added_is_refused(oracle, tmp_path):
    texts = [" ".join(f"word{n}" for n in range(80)), "something else"]
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["1", "2"], "text": texts}), file)
    index = DedupIndex.open(tmp_path / "index", PARAMETERS)
    index.add("a", Corpus((file,)))
    pq.write_table(pa.table({"id": ["1", "2"], "text": ["replaced by another text", texts[1]]}), file)
    pq.write_table(pa.table({"id": ["3"], "text": [texts[0] + " and more"]}), tmp_path / "b.parquet")
    with pytest.raises(StageFailure, match=r"a.parquet:0 is not the one that was sketched"):
        index.add("b", Corpus((tmp_path / "b.parquet",)))
    assert [source["name"] for source in DedupIndex.open(tmp_path / "index", PARAMETERS).sources] == ["a"]


def test_names_that_are_taken_unknown_or_unusable_are_refused(parts, tmp_path):
    index = index_of(tmp_path / "index", parts, "a")
    for name, message in (("a", "already"), ("../a", "cannot be the name"), ("", "cannot be the name")):
        with pytest.raises(UserError, match=message):
            index.add(name, parts["b"])
    with pytest.raises(UserError, match="no source 'z'; it has a"):
        index.undo("z")
    assert json.loads((index.folder / "index.json").read_text())["sources"][0]["name"] == "a"
    assert os.listdir(index.folder / "sources") == ["a"]
