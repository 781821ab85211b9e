"""find_duplicates on whole corpora: brute force, files, workers, bad input, the guard, and genuine near-duplicates."""

import gzip
import itertools
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dedup import DedupParameters, find_duplicates
from dedup.corpus import Corpus
from dedup.receipts import RECEIPT_SCHEMA
from dedup.removals import find_removals
from pipeline_lib.stage import StageFailure, UserError


def ids_of(table: pa.Table) -> set[str]:
    return set(table["id"].to_pylist())


@pytest.fixture(scope="module")
def planted(oracle):
    return oracle.Planted(seed=11)


@pytest.mark.parametrize("seed", range(4))
def test_receipts_are_true_and_no_close_pair_is_left(oracle, tmp_path, seed):
    corpus = oracle.Planted(seed)
    files = oracle.write_shards(tmp_path / "in", corpus.records, shards=3, row_group=17)
    found = find_duplicates(files, DedupParameters(), 2, tmp_path / "scratch")
    sets = {record["id"]: oracle.shingle_set(record["text"]) for record in corpus.records}
    texts = {record["id"]: record["text"] for record in corpus.records}
    gone = ids_of(found)
    assert len(gone) == found.num_rows
    for receipt in found.to_pylist():
        mine, kept = sets[receipt["id"]], sets[receipt["survivor_id"]]
        assert receipt["survivor_id"] not in gone
        assert receipt["jaccard"] == pytest.approx(oracle.jaccard(mine, kept)) and receipt["jaccard"] >= 0.8
        assert receipt["containment"] == pytest.approx(len(mine & kept) / len(mine))
        assert receipt["bands"] >= 1
        assert (receipt["kind"] == "exact") == (texts[receipt["id"]] == texts[receipt["survivor_id"]])
    left = [i for i in sets if i not in gone]
    missed = [pair for pair in itertools.combinations(left, 2) if oracle.jaccard(*map(sets.get, pair)) >= 0.9]
    assert missed == []


def test_the_answer_does_not_depend_on_files_order_rows_or_workers(oracle, planted, tmp_path):
    reference = None
    for number, (shards, group, workers) in enumerate([(1, 1000, 1), (4, 7, 2), (2, 50, 3), (9, 1, 1)]):
        records = list(planted.records)
        random.Random(number).shuffle(records)
        files = oracle.write_shards(tmp_path / str(number), records, shards, group)
        found = find_duplicates(files[::-1], DedupParameters(), workers, tmp_path / "scratch")
        reference = reference or found
        assert found.equals(reference)


def test_batches_spills_and_groups_of_any_size_do_not_change_the_answer(oracle, planted, tmp_path, monkeypatch):
    files = oracle.write_shards(tmp_path / "in", planted.records, 2, row_group=20)
    whole = find_duplicates(files, DedupParameters(), 1, tmp_path / "scratch")
    sizes = {"corpus.BYTES_PER_BATCH": 900, "corpus.BYTES_PER_PIECE": 9000, "candidates.LEAST_GROUP": 3}
    for name, value in sizes.items():
        monkeypatch.setattr(f"dedup.{name}", value)
    monkeypatch.setattr("dedup.external_sort.BYTES_PER_RECORD", 1 << 60)
    monkeypatch.setattr("dedup.external_sort.LEAST_RECORDS", 16)
    monkeypatch.setattr("dedup.equal_texts.ROWS_PER_RANKING", 4)
    monkeypatch.setattr("dedup.memory_limit.MemoryLimit.room", lambda limit: 5000)
    limited = find_removals(Corpus(tuple(files)), DedupParameters(), 3, tmp_path / "scratch", max_ram=1)
    assert limited.receipts().equals(whole)


def test_scratch_is_empty_afterwards(oracle, planted, tmp_path):
    files = oracle.write_shards(tmp_path / "in", planted.records)
    find_duplicates(files, DedupParameters(), 1, tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def keep_one(oracle, tmp_path, records, **parameters) -> str:
    files = oracle.write_shards(tmp_path, records)
    gone = ids_of(find_duplicates(files, DedupParameters(**parameters), 1, tmp_path / "scratch"))
    (kept,) = {record["id"] for record in records} - gone
    return kept


LONG = " ".join(f"word{n}" for n in range(200))


@pytest.mark.parametrize("text", [LONG, "too short"])
def test_the_best_is_kept_by_quality_then_length_then_source_rank_then_id(oracle, tmp_path, text):
    def record(identity, quality=0.5, padding="", source="web"):
        return {"id": identity, "text": text + padding, "source": source, "quality": quality}

    assert keep_one(oracle, tmp_path / "1", [record("a", 0.1), record("b", 0.9), record("c", 0.3)]) == "b"
    assert keep_one(oracle, tmp_path / "2", [record("a"), record("b", padding="   "), record("c")]) == "b"
    ranked = [record("a", source="web"), record("b", source="books"), record("c", source="code")]
    assert keep_one(oracle, tmp_path / "3", ranked, source_rank=("books", "code")) == "b"
    assert keep_one(oracle, tmp_path / "4", ranked) == "a"
    assert keep_one(oracle, tmp_path / "5", [record("b"), record("c"), record("a")]) == "a"
    assert keep_one(oracle, tmp_path / "6", [record("a", None), record("b", float("nan")), record("c", -9.0)]) == "c"
    assert keep_one(oracle, tmp_path / "7", [record("b", None), record("a", float("nan"))]) == "a"
    assert keep_one(oracle, tmp_path / "8", [record("b", float("nan")), record("a", None)]) == "a"


def test_an_exact_copy_of_a_removed_document_names_a_survivor_that_stays(oracle, tmp_path):
    longer = LONG + " and a little more"
    records = [{"id": "a", "text": LONG}, {"id": "b", "text": LONG}, {"id": "c", "text": longer}]
    found = find_duplicates(oracle.write_shards(tmp_path, records), DedupParameters(), 1, tmp_path / "s")
    rows = {row["id"]: row for row in found.to_pylist()}
    assert {identity: row["survivor_id"] for identity, row in rows.items()} == {"a": "c", "b": "c"}
    assert {row["kind"] for row in rows.values()} == {"fuzzy"}
    assert rows["a"]["jaccard"] == rows["b"]["jaccard"] < 1.0


def test_short_documents_are_compared_exactly_only(oracle, tmp_path):
    texts = ["yes", "YES ", "no", "a b c d", "a b c e", "", "", "!!!", "???", "a b c d e"]
    records = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    found = find_duplicates(oracle.write_shards(tmp_path, records), DedupParameters(), 1, tmp_path / "s")
    assert [(row["id"], row["survivor_id"]) for row in found.to_pylist()] == [("0", "1"), ("6", "5")]
    assert found["bands"].to_pylist() == [0, 0]


def test_templated_documents_with_different_content_stay(oracle, tmp_path):
    rng = random.Random(4)
    words = [f"word{n}" for n in range(5000)]
    header, footer = [rng.choice(words) for _ in range(60)], [rng.choice(words) for _ in range(60)]
    records = []
    for number in range(400):
        body = [rng.choice(words) for _ in range(50)]
        records.append({"id": f"{number:03d}", "text": " ".join([*header, *body, *footer])})
    sets = [oracle.shingle_set(record["text"]) for record in records]
    assert 0.4 < oracle.jaccard(sets[0], sets[1]) < 0.7
    found = find_duplicates(oracle.write_shards(tmp_path, records), DedupParameters(), 1, tmp_path / "s")
    assert found.num_rows == 0


def test_null_texts_and_an_empty_corpus(tmp_path):
    table = pa.table({"id": ["a", "b", "c"], "text": pa.array([None, "", "word"], pa.string())})
    pq.write_table(table, tmp_path / "nulls.parquet")
    assert ids_of(find_duplicates([tmp_path / "nulls.parquet"], DedupParameters(), 1, tmp_path / "s")) == {"b"}
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    empty = find_duplicates([tmp_path / "empty.parquet"], DedupParameters(), 1, tmp_path / "s")
    assert empty.num_rows == 0
    assert empty.schema.equals(RECEIPT_SCHEMA)


STRING_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", STRING_TYPES, ids=str)
def test_every_arrow_string_type_is_read(tmp_path, kind):
    pq.write_table(pa.table({"id": ["a", "b"], "text": pa.array([LONG, LONG]).cast(kind)}), tmp_path / "in.parquet")
    found = find_duplicates([tmp_path / "in.parquet"], DedupParameters(), 1, tmp_path / "s")
    assert found["id"].to_pylist() == ["b"]


def test_bad_input_is_a_user_error_that_names_the_place(tmp_path):
    good = {"id": ["a", "b"], "text": ["x", "y"]}
    cases = {
        "repeated.parquet": ({"id": ["a", "a"], "text": ["x", "y"]}, r"'a' in .*repeated.parquet:0 and .*:1"),
        "empty_ids.parquet": (
            {"id": ["", "xxxxxxxxx", "", "yyyyyyyyy"], "text": ["k", "l", "m", "n"]},
            r"'' in .*empty_ids.parquet:0 and .*:2",
        ),
        "no_text.parquet": ({"id": ["a"], "body": ["x"]}, "no column 'text'; it has id, body"),
        "no_id.parquet": ({"text": ["x"]}, "no column 'id'"),
        "null_id.parquet": ({"id": ["a", None], "text": ["x", "y"]}, r"null_id.parquet:1 has no id"),
        "numbers.parquet": ({"id": ["a"], "text": [7]}, "must hold strings"),
    }
    for name, (columns, message) in cases.items():
        pq.write_table(pa.table(columns), tmp_path / name)
        with pytest.raises(UserError, match=message):
            find_duplicates([tmp_path / name], DedupParameters(), 1, tmp_path / "s")
    (tmp_path / "text.parquet").write_text("not parquet")
    for file, message in (("text.parquet", "not a readable parquet"), ("absent.parquet", "does not exist")):
        with pytest.raises(UserError, match=message):
            find_duplicates([tmp_path / file], DedupParameters(), 1, tmp_path / "s")
    with pytest.raises(UserError, match="no input files"):
        find_duplicates([], DedupParameters(), 1, tmp_path / "s")
    pq.write_table(pa.table(good), tmp_path / "good.parquet")
    assert find_duplicates([tmp_path / "good.parquet"], DedupParameters(), 1, tmp_path / "s").num_rows == 0


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("id", [{"a": 1}, {"a": 2}], "struct<a: int64>"),
        ("id", [b"a", b"b"], "binary"),
        ("source", [["web"], ["books"]], "list<"),
        ("quality", ["0.5", "0.7"], "string"),
        ("quality", [[0.5], [0.7]], "list<"),
    ],
)
def test_a_column_of_no_use_is_named_with_its_file_and_type(tmp_path, column, values, kind):
    table = pa.table({"id": ["a", "b"], "text": ["x", "y"]} | {column: values})
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(UserError, match=rf"column '{column}' of .*in.parquet is {kind}.*; it must hold .*numbers"):
        find_duplicates([tmp_path / "in.parquet"], DedupParameters(), 1, tmp_path / "s")


@pytest.mark.parametrize(
    ("qualities", "kept"),
    [
        (pa.array([5, 2**53 + 1], pa.int64()), "b"),
        (pa.array([2**40, 7], pa.uint64()), "a"),
        (pa.array([0.5, 0.25], pa.float64()), "a"),
        (pa.array([False, True]), "b"),
        (pa.array([None, None]), "a"),
        (pa.array([1.5, 2.5], pa.float32()).dictionary_encode(), "b"),
    ],
)
def test_quality_is_any_kind_of_number(tmp_path, qualities, kept):
    numbers = {"id": [1, 2], "source": [True, False]} if kept == "b" else {"id": ["1", "2"]}
    pq.write_table(pa.table({**numbers, "text": [LONG, LONG], "quality": qualities}), tmp_path / "in.parquet")
    (receipt,) = find_duplicates([tmp_path / "in.parquet"], DedupParameters(), 1, tmp_path / "s").to_pylist()
    assert (receipt["survivor_id"], receipt["id"]) == (("1", "2") if kept == "a" else ("2", "1"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exact_sources", "web"),
        ("source_rank", ("web", 1)),
        ("exact_kinds", None),
        ("rows", 7.0),
        ("bands", "16"),
        ("ngram", True),
        ("jaccard", "0.8"),
        ("jaccard", True),
        ("shingle", 1),
    ],
)
def test_parameters_of_another_type_are_user_errors(name, value):
    with pytest.raises(UserError, match=rf"dedup: {name} is .*; it must be a "):
        DedupParameters(**{name: value})


@pytest.mark.parametrize(
    "wrong", [{"jaccard": 1.2}, {"rows": 0}, {"bands": 200}, {"shingle": "line"}, {"device": "tpu"}, {"ngram": 0}]
)
def test_parameters_out_of_range_are_user_errors(wrong):
    with pytest.raises(UserError, match=f"dedup: .*({next(iter(wrong))}).*"):
        DedupParameters(**wrong)


def test_a_source_that_would_be_wiped_out_stops_the_run_with_examples(oracle, tmp_path):
    records = [{"id": f"good-{n}", "text": f"text number {n}", "source": "fine"} for n in range(100)]
    records += [{"id": f"{n:03d}", "text": LONG + f" {n}", "source": "copies"} for n in range(150)]
    files = oracle.write_shards(tmp_path, records)
    with pytest.raises(StageFailure) as stopped:
        find_duplicates(files, DedupParameters(), 1, tmp_path / "s")
    message = str(stopped.value)
    assert "source 'copies' would lose 149 of 150 documents" in message
    assert message.count("removed ") == message.count("kept ") == 20
    assert "word0 word1 word2" in message
    assert "raise jaccard, with which deduplication begins anew, and in stage 02 cleaning too:\n" in message
    allowed = find_duplicates(files, DedupParameters(max_removed_fraction=1.0), 1, tmp_path / "s")
    unguarded = find_duplicates(files, DedupParameters(guard_minimum=151), 1, tmp_path / "s")
    assert allowed.num_rows == unguarded.num_rows == 149


def test_genuine_near_duplicates_recall_and_precision(shared_data, tmp_path):
    with gzip.open(shared_data / "webdocs" / "longhorn_docs.jsonl.gz", "rt") as lines:
        documents = [json.loads(line) for line in lines]
    with gzip.open(shared_data / "dedup" / "longhorn_docs_jaccard_pairs.jsonl.gz", "rt") as lines:
        pairs = [json.loads(line) for line in lines]
    truth = {frozenset((pair["a"], pair["b"])): pair["jaccard"] for pair in pairs}
    table = pa.table({name: [document[name] for document in documents] for name in ("id", "text", "source")})
    pq.write_table(table, tmp_path / "in.parquet")
    found = find_duplicates([tmp_path / "in.parquet"], DedupParameters(), 2, tmp_path / "s")
    gone = ids_of(found)
    close = [pair for pair in truth if truth[pair] >= 0.8]
    missed = [pair for pair in close if not pair & gone]
    assert len(missed) <= 0.01 * len(close)
    for row in found.to_pylist():
        listed = truth.get(frozenset((row["id"], row["survivor_id"])), 0.0)
        assert row["jaccard"] == pytest.approx(listed, abs=1e-3)


def test_a_source_that_is_compared_exactly_only_loses_nothing_through_a_copy_elsewhere(tmp_path):
    words = [f"word{n}" for n in range(60)]
    same, longer = " ".join(words), " ".join([*words, "more"])
    table = pa.table(
        {
            "id": ["a", "t1", "t2", "z"],
            "text": [same, same, same, longer],
            "source": ["web", "tables", "tables", "web"],
        }
    )
    pq.write_table(table, tmp_path / "part.parquet")
    settings = DedupParameters(exact_sources=("tables",))
    receipts = find_duplicates([tmp_path / "part.parquet"], settings, 1, tmp_path / "scratch")
    rows = {row["id"]: row for row in receipts.to_pylist()}
    assert {identity: row["survivor_id"] for identity, row in rows.items()} == {"a": "z", "t2": "t1"}
    assert (rows["a"]["kind"], rows["t2"]["kind"]) == ("fuzzy", "exact")
