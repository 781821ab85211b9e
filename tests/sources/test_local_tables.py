"""CSV and Parquet rows equal what the standard reader gives, in shares, with odd values made JSON."""

import csv
import datetime
import decimal
import json
import random
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.sources.base import Dropped
from pipeline_lib.sources.rows import Row, Share
from pipeline_lib.sources.table_rows import read_csv, read_parquet
from pipeline_lib.stage import UserError

cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)


def rows(found):
    return [row.record for row in found if isinstance(row, Row)]


def reasons(found):
    return [row.reason for row in found if isinstance(row, Dropped)]


@given(st.lists(st.tuples(cell, cell.filter(bool)), max_size=8))
@settings(deadline=None, max_examples=60)
def test_csv_gives_back_what_the_csv_module_wrote(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        writer.writerow(["prompt", "answer"])
        writer.writerows(table)
    assert rows(read_csv(path, "x.csv", "")) == [{"prompt": a, "answer": b} for a, b in table]


def test_bad_csv_rows_are_counted_with_their_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'a,b\n1,2\n3\n"x"y,4\n\xff,5\n6,7\n')
    found = list(read_csv(path, "x.csv", ""))
    assert rows(found) == [{"a": "1", "b": "2"}, {"a": "6", "b": "7"}]
    assert [row.where for row in found if isinstance(row, Dropped)] == ["x.csv:3", "x.csv:4", "x.csv:5"]
    assert reasons(found)[0] == "not as many CSV fields as the header"
    assert reasons(found)[2] == "not UTF-8"


def test_a_quote_that_swallows_rows_is_damage_and_not_one_drop(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('a,b\n1,2\n3,"open\n4,5\n6,7\n')
    found = read_csv(path, "x.csv", "")
    assert next(found).record == {"a": "1", "b": "2"}
    with pytest.raises(UserError, match="x.csv is damaged: a quote that opens in line 3 or after it is not closed"):
        next(found)


@pytest.mark.parametrize("row", ['2,"x"', '2,x"y', '"2",x'])
def test_a_quote_that_another_one_seems_to_close_in_a_later_row_is_damage(tmp_path, row):
    path = tmp_path / "x.csv"
    path.write_text(f'a,b\n0,0\n1,"open\n{row}\n3,4\n')
    found = read_csv(path, "x.csv", "")
    assert next(found).record == {"a": "0", "b": "0"}
    with pytest.raises(UserError, match="x.csv is damaged: a quote that opens in line 3 or after it is not closed"):
        next(found)


@pytest.mark.parametrize("header", ["a,a", "a,"])
def test_csv_without_usable_field_names_is_refused(tmp_path, header):
    path = tmp_path / "x.csv"
    path.write_text(f"{header}\n1,2\n")
    with pytest.raises(UserError, match="must name each field once"):
        list(read_csv(path, "x.csv", ""))


def write_parquet(path, table, rows_per_group=7):
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


@given(
    st.lists(st.fixed_dictionaries({"text": st.none() | cell, "n": st.integers(-5, 5)}), max_size=60),
    st.integers(1, 12),
)
@settings(deadline=None, max_examples=40)
def test_shares_of_a_parquet_file_give_every_row_exactly_once(tmp_path_factory, expected, count):
    schema = pa.schema([("text", pa.string()), ("n", pa.int64())])
    table = pa.Table.from_pylist(expected, schema=schema)
    path = write_parquet(tmp_path_factory.mktemp("parquet") / "x.parquet", table)
    found = [row for index in range(count) for row in read_parquet(path, "x.parquet", Share(index, count))]
    assert rows(found) == expected
    assert [row.key for row in found] == [f"#{number}" for number in range(1, len(expected) + 1)]


def test_only_named_columns_are_read_and_a_missing_one_is_named(tmp_path):
    table = pa.table({"text": ["a"], "url": ["u"], "embedding": [b"\x00"], "meta": [{"license": "MIT"}]})
    path = write_parquet(tmp_path / "x.parquet", table)
    found = rows(read_parquet(path, "x.parquet", fields=["text", "url", "meta.license", "absent"]))
    assert found == [{"meta": {"license": "MIT"}, "text": "a", "url": "u"}]
    with pytest.raises(UserError, match="no column 'content', it has text, url, embedding, meta"):
        list(read_parquet(path, "x.parquet", fields=["content"]))


def test_values_without_a_json_type_become_ones_and_bytes_are_refused(tmp_path):
    table = pa.table(
        {
            "when": [datetime.datetime(2024, 5, 6, 7, 8, 9)],
            "price": pa.array([decimal.Decimal("1.50")]),
            "scores": [[1.5, float("nan")]],
            "turns": [[{"role": "user", "at": datetime.date(2024, 5, 6)}]],
        }
    )
    [record] = rows(read_parquet(write_parquet(tmp_path / "x.parquet", table), "x.parquet"))
    assert json.loads(json.dumps(record, allow_nan=False)) == {
        "when": "2024-05-06T07:08:09",
        "price": "1.50",
        "scores": [1.5, None],
        "turns": [{"role": "user", "at": "2024-05-06"}],
    }
    images = pa.table({"turns": [[{"image": b"\x89PNG", "n": 1.0}]]})
    with pytest.raises(UserError, match="column 'turns' holds raw bytes"):
        list(read_parquet(write_parquet(tmp_path / "y.parquet", images), "y.parquet"))


def test_parquet_string_that_is_not_utf8_costs_only_its_row(tmp_path):
    broken = pa.array([b"good", b"bad \xff", b"also good"], pa.binary()).view(pa.string())
    found = list(read_parquet(write_parquet(tmp_path / "x.parquet", pa.table({"text": broken})), "x.parquet"))
    assert rows(found) == [{"text": "good"}, {"text": "also good"}]
    assert [(row.reason, row.where) for row in found if isinstance(row, Dropped)] == [("not UTF-8", "x.parquet, row 2")]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: data[:100], lambda data: b"", lambda data: b"<html>"]
)
def test_damaged_parquet_names_the_file(tmp_path, damage):
    path = write_parquet(tmp_path / "x.parquet", pa.table({"text": ["some text"] * 100}))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"data/x\.parquet is damaged"):
        list(read_parquet(path, "data/x.parquet"))


def test_page_of_a_parquet_file_overwritten_with_other_bytes_is_noticed(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", pa.table({"text": [f"{n} " * 50 for n in range(500)]}), 500)
    data = bytearray(path.read_bytes())
    data[200:600] = random.Random(3).randbytes(400)
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="is damaged"):
        list(read_parquet(path, "x.parquet"))


def test_one_large_row_group_is_read_in_bounded_memory(tmp_path):
    draw = random.Random(4)
    page = draw.randbytes(3000).hex()
    table = pa.table({"text": [page[draw.randrange(3000) :] + str(n) for n in range(12_000)]})
    path = write_parquet(tmp_path / "x.parquet", table, rows_per_group=12_000)
    size = table.nbytes
    del table
    pa.default_memory_pool().release_unused()
    before, highest, count = pa.total_allocated_bytes(), 0, 0
    tracemalloc.start()
    for _ in read_parquet(path, "x.parquet"):
        count += 1
        highest = max(highest, pa.total_allocated_bytes() - before)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 12_000
    assert highest + python < size / 2, f"{highest} + {python} bytes held of {size}"


def test_long_documents_are_held_a_few_at_a_time(tmp_path, monkeypatch):
    asked = []
    read = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, rows, *rest, **more: asked.append(rows) or read(self, rows, *rest, **more),
    )
    texts = [f"{number} " * 700_000 for number in range(10, 20)]  # 2.1 MB each
    pq.write_table(pa.table({"text": texts, "other": ["x" * 100_000] * 10}), tmp_path / "x.parquet")
    rows = list(read_parquet(tmp_path / "x.parquet", "x.parquet", fields=["text"]))
    assert [row.record["text"] for row in rows] == texts and asked == [3]
