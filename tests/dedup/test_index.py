"""The index on disk: additions, undo, direction, cluster sizes, files and texts that changed."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dedup import DedupParameters, find_duplicates
from dedup.corpus import Corpus
from dedup.index import DedupIndex, Run, subtract
from pipeline_lib.stage import StageFailure, UserError, file_digest

PARAMETERS = DedupParameters(max_removed_fraction=1.0)


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


def copied(parts, folder, names: str) -> dict[str, Corpus]:
    """The sources as files of the test's own, which it may change."""
    made = {}
    for name in names:
        (folder / name).mkdir(parents=True)
        made[name] = Corpus(tuple(Path(shutil.copy(file, folder / name / file.name)) for file in parts[name].files))
    return made


def modified_later(file: Path) -> None:
    """Give a file another time of modification, as a copy of it has."""
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def of_another_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


class Killed(BaseException):
    """Stands for the end of the process."""


def undo_killed_half_way(index: DedupIndex, name: str, monkeypatch) -> DedupIndex:
    """Undo a source, and end before the first of the later ones is decided again; returns the index as it is left."""

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(DedupIndex, "_decide", die)
        index.undo(name)
    return DedupIndex.open(index.folder, PARAMETERS)


def test_a_source_that_the_guard_was_told_to_accept_is_not_refused_when_an_earlier_one_goes(oracle, parts, tmp_path):
    copies = [{"id": f"c{number}", "text": "the same words in every one of them " * 9} for number in range(130)]
    corpus = Corpus(tuple(oracle.write_shards(tmp_path / "copies", copies, 1)))
    with pytest.raises(StageFailure, match="would lose"):
        DedupIndex.open(tmp_path / "index", DedupParameters()).add("b", corpus)
    index = index_of(tmp_path / "index", parts, "a")
    index.add("b", corpus)
    again = DedupIndex.open(tmp_path / "index", DedupParameters())  # without the limit that was raised for it
    assert again.undo("a") == ["b"]
    assert [source["name"] for source in again.sources] == ["b"] and again.sources[0]["removed"] == 129


def test_an_interrupted_undo_is_finished_by_the_next_change(parts, tmp_path, monkeypatch):
    reopened = undo_killed_half_way(index_of(tmp_path / "index", parts, "abc"), "a", monkeypatch)
    assert [source["name"] for source in reopened.sources] == []
    reopened.add("a", parts["a"])
    assert [source["name"] for source in reopened.sources] == ["b", "c", "a"]
    expected = index_of(tmp_path / "other", parts, "bca")
    assert kept_ids(reopened, "a") == kept_ids(expected, "a")


def test_an_interrupted_undo_is_finished_before_an_export(parts, tmp_path, monkeypatch):
    reopened = undo_killed_half_way(index_of(tmp_path / "index", parts, "abc"), "a", monkeypatch)
    reopened.export("c", tmp_path / "out")
    exported = pa.concat_tables(pq.read_table(tmp_path / "out" / file.name) for file in parts["c"].files)
    assert sorted(exported["id"].to_pylist()) == kept_ids(index_of(tmp_path / "other", parts, "bc"), "c")


@pytest.mark.parametrize("harm", ["longer", "of the same size", "missing"])
@pytest.mark.parametrize("whose", "ac")
def test_an_undo_that_could_not_be_finished_is_refused_before_it_begins(parts, tmp_path, harm, whose):
    mine = copied(parts, tmp_path / "in", "abc")
    index = index_of(tmp_path / "index", mine, "abc")
    before = (index.folder / "index.json").read_bytes()
    file = mine[whose].files[1]
    content = file.read_bytes()
    file.unlink()
    if harm != "missing":
        file.write_bytes(content + b"x" if harm == "longer" else of_another_byte(content))
        modified_later(file)
    for undo in (index.undo, lambda name: DedupIndex.forget(index.folder, name, Run(), PARAMETERS)):
        with pytest.raises(UserError, match=f"{file} is gone or not as it was when it was added as '{whose}'"):
            undo("b")
    assert (index.folder / "index.json").read_bytes() == before
    assert DedupIndex.open(index.folder, PARAMETERS).removals("b").receipts().num_rows > 0
    index.undo(whose)  # the way out that the message names
    assert kept_ids(index, "b") == kept_ids(index_of(tmp_path / "other", parts, "abc".replace(whose, "")), "b")


def c_is_left_without(index: DedupIndex, name: str, by: str) -> DedupIndex:
    """Take a source out in one of the two ways, after which only c is left; return the index opened again."""
    again = index.undo(name) if by == "undo" else DedupIndex.forget(index.folder, name, Run(), PARAMETERS)
    left = DedupIndex.open(index.folder, PARAMETERS)
    assert again == [source["name"] for source in left.sources] == ["c"]
    return left


@pytest.mark.parametrize("by", ["undo", "forget"])
def test_a_source_that_cannot_be_read_any_more_goes_also_after_an_interrupted_undo(parts, tmp_path, monkeypatch, by):
    mine = copied(parts, tmp_path / "in", "abc")
    reopened = undo_killed_half_way(index_of(tmp_path / "index", mine, "abc"), "b", monkeypatch)
    assert [source["name"] for source in reopened.sources] == ["a"]
    mine["a"].files[0].unlink()
    left = c_is_left_without(reopened, "a", by)
    assert kept_ids(left, "c") == kept_ids(index_of(tmp_path / "other", mine, "c"), "c")


@pytest.mark.parametrize("by", ["undo", "forget"])
def test_a_source_that_waits_to_be_decided_again_can_be_taken_out(parts, tmp_path, monkeypatch, by):
    mine = copied(parts, tmp_path / "in", "abc")
    reopened = undo_killed_half_way(index_of(tmp_path / "index", mine, "abc"), "a", monkeypatch)
    mine["b"].files[0].unlink()
    for change in (reopened.finish_pending, lambda: reopened.add("d", parts["a"])):
        with pytest.raises(UserError, match=f"{mine['b'].files[0]} is gone"):
            change()
    left = c_is_left_without(reopened, "b", by)
    assert not (left.folder / "sources" / "b").exists()


def test_what_another_process_added_meanwhile_is_not_lost(parts, tmp_path):
    """Three that opened the index before any of them changed it."""
    first, second, third = (DedupIndex.open(tmp_path / "index", PARAMETERS) for _ in range(3))
    first.add("a", parts["a"])
    second.add("b", parts["b"])
    third.add("c", parts["c"])
    second.undo("a")
    reopened = DedupIndex.open(tmp_path / "index", PARAMETERS)
    assert [source["name"] for source in reopened.sources] == ["b", "c"]
    expected = index_of(tmp_path / "other", parts, "bc")
    for name in "bc":
        assert reopened.removals(name).receipts().equals(expected.removals(name).receipts())


def test_an_index_that_another_process_changes_is_left_alone(parts, tmp_path, held_elsewhere):
    index = index_of(tmp_path / "index", parts, "ab")
    before = (index.folder / "index.json").read_bytes()
    holder = held_elsewhere(index.folder)
    uses = (
        lambda: index.add("c", parts["c"]),
        lambda: index.undo("a"),
        lambda: index.export("b", tmp_path / "out"),  # an undo changes what was removed of it
        lambda: DedupIndex.forget(index.folder, "a", Run(), PARAMETERS),
    )
    for use in uses:
        with pytest.raises(UserError, match=f"is being written by process {holder}"):
            use()
    assert (index.folder / "index.json").read_bytes() == before and not (tmp_path / "out").exists()


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


def test_an_export_never_overwrites_a_file_of_the_index(parts, tmp_path):
    mine = copied(parts, tmp_path / "in", "ab")
    index = index_of(tmp_path / "index", mine, "ab")
    before = {file: file.read_bytes() for name in "ab" for file in mine[name].files}
    for folder in "ab":
        with pytest.raises(UserError, match=f"would overwrite .*{folder}/part-00000.parquet, which is read"):
            index.export("a", tmp_path / "in" / folder)
    assert {file: file.read_bytes() for file in before} == before
    assert not (tmp_path / "in" / "a" / "removed.parquet").exists()


def test_files_that_changed_after_they_were_added_are_not_exported_by_row(parts, tmp_path):
    files = [shutil.copy(file, tmp_path / file.name) for file in parts["a"].files]
    index = DedupIndex.open(tmp_path / "index", PARAMETERS)
    index.add("a", Corpus(tuple(files)))
    table = pq.read_table(files[0])
    pq.write_table(table.take(list(range(len(table)))[::-1]), files[0])
    with pytest.raises(UserError, match=f"{files[0].name} is gone or not as it was when it was added as 'a'"):
        index.export("a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_of_the_same_size_and_other_content_is_refused_by_name(parts, tmp_path):
    mine = copied(parts, tmp_path / "in", "ab")
    index = index_of(tmp_path / "index", mine, "ab")
    file = mine["b"].files[1]
    file.write_bytes(of_another_byte(file.read_bytes()))
    modified_later(file)
    for refused in (lambda: index.export("b", tmp_path / "out"), lambda: index.undo("a")):
        with pytest.raises(UserError, match=f"{file} is gone or not as it was .* as 'b'; put it back, or undo that"):
            refused()
    assert not (tmp_path / "out").exists()
    assert [source["name"] for source in DedupIndex.open(index.folder, PARAMETERS).sources] == ["a", "b"]


def test_files_that_were_copied_without_their_times_are_exported_and_decided_again_from_their_sketches(parts, tmp_path):
    mine = copied(parts, tmp_path / "in", "abc")
    index = index_of(tmp_path / "index", mine, "abc")
    written = {path: path.stat().st_mtime_ns for path in (index.folder / "sources").glob("[bc]/sketches/*")}
    for corpus in mine.values():
        for file in corpus.files:
            modified_later(file)
    index.export("b", tmp_path / "out")
    exported = pa.concat_tables(pq.read_table(tmp_path / "out" / file.name) for file in mine["b"].files)
    assert sorted(exported["id"].to_pylist()) == kept_ids(index, "b")
    assert index.undo("a") == ["b", "c"]
    assert {path: path.stat().st_mtime_ns for path in (index.folder / "sources").glob("[bc]/sketches/*")} == written
    assert index.undo("b") == ["c"]  # which is known by its content still
    assert kept_ids(index, "c") == kept_ids(index_of(tmp_path / "never", mine, "c"), "c")


@pytest.mark.parametrize("when", ["sketched", "hashed"])
def test_a_file_that_changes_while_it_is_added_is_refused(tmp_path, monkeypatch, when):
    """What was sketched would not be what the digest is of."""
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["1"], "text": [" ".join(f"word{n}" for n in range(80))]}), file)

    def and_then_written(read):
        def reading(*given):
            content = read(*given)
            modified_later(file)
            return content

        return reading

    index = DedupIndex.open(tmp_path / "index", PARAMETERS)
    with monkeypatch.context() as patch:
        if when == "sketched":
            patch.setattr(Corpus, "read", and_then_written(Corpus.read))
        else:
            patch.setattr("dedup.index_record.file_digest", and_then_written(file_digest))
        with pytest.raises(UserError, match=f"{file} changed while it was being added; add it again"):
            index.add("a", Corpus((file,)))
    assert index.sources == [] and not (tmp_path / "index" / "index.json").exists()
    index.add("a", Corpus((file,)))
    assert index.sources[0]["inputs"][0]["digest"] == file_digest(file)


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


def test_a_known_file_that_became_shorter_is_found_out_when_its_text_is_read_again(tmp_path):
    texts = [" ".join(f"{seed}word{n}" for n in range(80)) for seed in range(3)]
    pq.write_table(pa.table({"id": ["1", "2", "3"], "text": texts}), tmp_path / "a.parquet")
    index = DedupIndex.open(tmp_path / "index", PARAMETERS)
    index.add("a", Corpus((tmp_path / "a.parquet",)))
    pq.write_table(pa.table({"id": ["1", "2"], "text": texts[:2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["4"], "text": [texts[2] + " and more"]}), tmp_path / "b.parquet")
    with pytest.raises(StageFailure, match=r"a.parquet:2 is not the one that was sketched"):
        index.add("b", Corpus((tmp_path / "b.parquet",)))


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
