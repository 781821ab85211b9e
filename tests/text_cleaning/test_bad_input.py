"""Whatever the shards hold, a document is kept or counted, and a file that cannot be read is named with its row."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_download import SCHEMA, document
from hypothesis import given, settings
from hypothesis import strategies as st
from test_02_clean_stage import prose

from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.stage import UserError
from pipeline_lib.text_cleaning import shard as shard_module
from pipeline_lib.text_cleaning.shard import DocumentCleaner, ShardJob, Tally, clean_shard, start_cleaner

SETTINGS = CleanSettings(
    language={"keep": []}, contamination={"enabled": False}, max_document_bytes=5000, remove_symbol_lines=True,
    quality_rules=["gopher_repetition", "gopher_quality", "c4"],
)  # fmt: skip


def rows_of(texts):
    """A batch whose texts are these bytes, valid or not."""
    table = pa.Table.from_pylist([document(f"d{i}", "") for i in range(len(texts))], schema=SCHEMA)
    raw = pa.array(texts, pa.binary()).cast(pa.string(), safe=False)
    return table.set_column(1, SCHEMA.field("text"), raw)


@pytest.fixture(scope="module")
def cleaner():
    return DocumentCleaner(SETTINGS, [], 0)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.none(),
            st.binary(max_size=300),
            st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")),
            st.sampled_from([b"", b" \n\t", b"\x00" * 50, b"a" * 6000, b"\xff" * 6000, prose(1).encode()]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_bytes_are_kept_or_counted_and_the_bytes_balance(cleaner, texts):
    tally = Tally()
    cleaned = cleaner.clean(rows_of(texts), tally)
    cleaned.kept.validate(full=True)
    cleaned.receipts.validate(full=True)
    assert cleaned.kept.num_rows + cleaned.receipts.num_rows == len(texts) == cleaned.scores.num_rows
    kept = sum(len(text.encode()) for text in cleaned.kept["text"].to_pylist())
    dropped = sum(n for (_, _, measure), n in tally.dropped.items() if measure == "bytes")
    entered = sum(len(text or b"") for text in texts)
    assert tally.entered["web", "bytes"] == entered == kept + dropped + tally.rewritten["web"]


def test_each_kind_of_bad_document_has_its_reason(cleaner):
    texts = [b"\xff\xfe broken", b"", b" \n \t", b"\x00\x00", b"x" * 6000, "é".encode() * 3000, None, prose(1).encode()]
    receipts = cleaner.clean(rows_of(texts), Tally()).receipts.to_pylist()
    assert {row["id"]: row["rule"] for row in receipts} == {
        "d0": "invalid_utf8",
        "d1": "c4.min_sentences",
        "d2": "c4.min_sentences",
        "d3": "c4.min_sentences",
        "d4": "max_document_bytes",
        "d5": "max_document_bytes",
        "d6": "c4.min_sentences",
    }
    assert receipts[0]["preview"] == "\ufffd\ufffd broken" and receipts[4]["score"] == 6000


def test_a_shard_with_a_document_beyond_the_limit_is_written(tmp_path, ready):
    texts = ["x" * 6000, prose(1), prose(2)]
    rows = [document(f"d{i}", text) for i, text in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "part-00000.parquet")
    done = clean_shard(job(tmp_path / "part-00000.parquet", tmp_path))
    assert done["documents"] == 3 and done["removed"] >= 1
    assert "max_document_bytes" in pq.read_table(tmp_path / "receipts.parquet")["rule"].to_pylist()


def test_one_enormous_line_is_removed_with_a_reason():
    plain = CleanSettings(language={"keep": []}, contamination={"enabled": False})
    huge = [b"word " * 500_000, b"x" * 5_000_000, b"y" * 50_000_000]
    receipts = DocumentCleaner(plain, [], 0).clean(rows_of(huge), Tally()).receipts.to_pylist()
    assert [row["rule"] for row in receipts] == [
        "gopher_repetition.max_top_2gram",
        "gopher_quality.min_words",
        "max_document_bytes",
    ]


def job(source, folder, groups=(0,)):
    names = ("candidates", "receipts", "scores", "copies")
    return ShardJob(source, groups, *(folder / f"{name}.parquet" for name in names))


@pytest.fixture
def ready(monkeypatch):
    monkeypatch.setattr(shard_module, "_cleaner", None, raising=False)
    start_cleaner(SETTINGS, [], 0, None)


def test_files_that_cannot_be_used_are_named_with_what_is_wrong(ready, tmp_path):
    good = pa.Table.from_pylist([document(f"d{i}", prose(i)) for i in range(50)], schema=SCHEMA)
    whole = tmp_path / "whole.parquet"
    pq.write_table(good, whole)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut\.parquet is no readable Parquet file"):
        clean_shard(job(cut, tmp_path))
    torn = tmp_path / "torn.parquet"
    raw = bytearray(whole.read_bytes())
    raw[200:1200] = bytes(1000)
    torn.write_bytes(raw)
    with pytest.raises(UserError, match=r"torn\.parquet: row group 0, from row 0, cannot be read"):
        clean_shard(job(torn, tmp_path))
    for name, table, words in (
        ("missing", good.drop_columns("text"), "has no column 'text'"),
        ("numbers", good.set_column(1, "text", pa.array(range(50))), "column 'text' is int64, not text"),
        (
            "nameless",
            good.set_column(0, SCHEMA.field("id"), pa.array([*["d"] * 7, None, *["e"] * 42])),
            "row 7 has no id",
        ),
    ):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path)
        with pytest.raises(UserError, match=rf"{name}\.parquet.*{words}"):
            clean_shard(job(path, tmp_path))
