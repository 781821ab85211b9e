"""`--why` with what a person knows: a file's name, a path, a URL, or a part of one of these."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_lib.config import PROJECT_ROOT
from pipeline_lib.sources.sinks import text_schema
from pipeline_lib.stage import UserError
from pipeline_lib.text_cleaning.fates import SHOWN_MATCHES, explain
from pipeline_lib.text_cleaning.receipts import NEAR, receipt_schema

COPY = {"threshold": 0.8, "jaccard": 0.9, "containment": 0.9, "bands": 3, "survivor_preview": "kept"}


def shard(path: Path, rows: list[dict]) -> None:
    rows = [{"text": "some text", "source": "s", "url": "", "license": "", **row} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows, schema=text_schema()), path)


def place(name: str, origin: str, url: str = "") -> dict:
    return {"id": f"s-{name}", "origin": origin, "url": url}


KEPT = [
    place("kept", "data/notes/first.md", "https://a.org/first"),
    *(place(f"page{n}", f"data/pages.jsonl:{n}", f"https://a.org/pages/{n}") for n in range(1, 51)),
]
REMOVED = [
    place("copy", "data/notes/second.md", "https://a.org/second"),
    place("short", "data/notes/a.first.md", "https://a.org/(short)"),
]


@pytest.fixture
def cleaned(tmp_path, monkeypatch) -> tuple[Path, list[Path]]:
    """A finished stage 02 and the shards of stage 01 before it, with the project as the working folder."""
    monkeypatch.chdir(PROJECT_ROOT)
    folder = tmp_path / "02_clean"
    folder.mkdir()
    shard(tmp_path / "part-00000.parquet", KEPT + REMOVED)
    shard(folder / "part-00000.parquet", KEPT[:20])
    shard(folder / "part-00001.parquet", KEPT[20:])
    receipts = [
        {**REMOVED[0], "rule": NEAR, "survivor_id": "s-kept", "preview": "copied", **COPY},
        {**REMOVED[1], "rule": "gopher_quality.min_words", "score": 3.0, "threshold": 50.0, "preview": "short"},
    ]
    receipts = [{"source": "s", **row} for row in receipts]
    pq.write_table(pa.Table.from_pylist(receipts, schema=receipt_schema()), folder / "removed.parquet")
    return folder, [tmp_path / "part-00000.parquet"]


@pytest.mark.parametrize(
    "asked",
    [
        "second.md", "notes/second.md", "data/notes/second.md", "./data/notes/second.md",
        str(PROJECT_ROOT / "data/notes/second.md"), "https://a.org/second", "a.org/second", "cond.m", "s-cop",
    ],
)  # fmt: skip
def test_a_file_path_or_url_is_answered_like_the_id(cleaned, asked):
    folder, downloaded = cleaned
    assert explain(folder, asked, downloaded) == explain(folder, "s-copy", downloaded)


def test_the_survivor_is_named_by_its_file_and_url_too(cleaned):
    lines = explain(cleaned[0], "s-copy", cleaned[1])
    assert lines[1:3] == ["  read from data/notes/second.md", "  url https://a.org/second"]
    assert lines[3:6] == ["  stays instead: s-kept", "    read from data/notes/first.md", "    url https://a.org/first"]
    survivor = explain(cleaned[0], "s-kept")
    assert survivor[-2:] == ["    read from data/notes/second.md", "    removed: 'copied'"]


def test_a_whole_name_goes_before_names_that_contain_it(cleaned):
    assert explain(cleaned[0], "first.md")[0].startswith("s-kept ")
    assert explain(cleaned[0], "pages.jsonl:5")[0].startswith("s-page5 ")
    assert explain(cleaned[0], "https://a.org/pages/5")[0].startswith("s-page5 ")


def test_several_documents_are_counted_and_the_first_listed(cleaned):
    lines = explain(cleaned[0], "pages.jsonl", cleaned[1])
    assert lines[0].startswith("50 documents ") and lines[0].endswith(f"the first {SHOWN_MATCHES}:")
    assert lines[1] == "  s-page1  stays  data/pages.jsonl:1, https://a.org/pages/1"
    assert len(lines) == SHOWN_MATCHES + 2
    both = explain(cleaned[0], "irst", cleaned[1])
    assert both[0].startswith("2 documents ")
    short = "  s-short  removed by gopher_quality.min_words  data/notes/a.first.md"
    assert both[1] == f"{short}, https://a.org/(short)"
    assert explain(cleaned[0], "irst")[1] == short, "nobody knows its URL without the shards of stage 01"


def test_what_is_asked_is_no_expression(cleaned):
    assert explain(cleaned[0], "(short)", cleaned[1])[0].startswith("s-short ")
    for asked in ("f.rst", "[", "https://a.org/(short)?"):
        with pytest.raises(UserError, match="neither an id nor a part of one"):
            explain(cleaned[0], asked, cleaned[1])


@pytest.mark.parametrize(
    "asked", ["./second.md", "/second.md", "../second.md", "./notes/", "./", ".", "/", "..", "notes2/", "ata/notes/x/"]
)
def test_a_path_is_that_file_and_no_other_of_its_name(cleaned, asked):
    with pytest.raises(UserError, match="no document"):
        explain(cleaned[0], asked, cleaned[1])


@pytest.mark.parametrize("asked", ["data/notes/", "./data/notes", "./data/notes/", str(PROJECT_ROOT / "data/notes")])
def test_a_folder_is_what_lies_in_it(cleaned, asked):
    lines = explain(cleaned[0], asked, cleaned[1])
    assert lines[0].startswith("3 documents ") and all("  data/notes/" in line for line in lines[1:-1])


def test_a_folder_is_no_part_of_an_id_or_name(cleaned):
    """`s-page/` would be the beginning of fifty ids without its `/`, `data/note` that of two files."""
    for asked in ("s-page/", "./data/note"):
        with pytest.raises(UserError, match="no document"):
            explain(cleaned[0], asked, cleaned[1])


@pytest.mark.parametrize("asked", ["", " "])
def test_to_ask_for_nothing_is_an_error(cleaned, asked):
    with pytest.raises(UserError, match="--why asks for nothing"):
        explain(cleaned[0], asked, cleaned[1])


def test_texts_are_not_read_beyond_the_row_group_of_the_one_that_is_told(cleaned, monkeypatch):
    folder, downloaded = cleaned
    for place in (*folder.glob("part-*.parquet"), *downloaded):
        pq.write_table(pq.read_table(place), place, row_group_size=4)
    read = []
    original = pq.ParquetFile.read_row_group

    def read_row_group(self, number, columns=None, **options):
        read.append(columns is None or "text" in columns)
        return original(self, number, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_row_group)
    for name in ("read_table", "read_pandas"):
        monkeypatch.setattr(pq, name, lambda *_, **__: pytest.fail("a whole table is read"))
    assert explain(folder, "s-page30", downloaded)[0].startswith("s-page30 ")
    assert sum(read) == 1 and len(read) > 5


def test_a_document_that_stands_for_many_tells_the_nearest_and_the_number(cleaned):
    receipts = cleaned[0] / "removed.parquet"
    rows = pq.read_table(receipts).to_pylist()
    near = [{**rows[0], "id": f"s-near{n:02}", "jaccard": 0.8 + (n % 4) / 100} for n in range(40)]
    pq.write_table(pa.Table.from_pylist(rows + near, schema=receipt_schema()), receipts, row_group_size=7)
    told = [line.split()[3] for line in explain(cleaned[0], "s-kept") if "stays instead of" in line]
    assert told == ["s-copy:", "s-near03:", "s-near07:", "s-near11:", "s-near15:"]
    assert explain(cleaned[0], "s-kept")[-1] == "  and of 36 more"


def test_only_of_a_duplicate_is_the_survivor_looked_up(cleaned, monkeypatch):
    from pipeline_lib.text_cleaning import fates

    asked = []
    monkeypatch.setattr(fates, "_first_row", lambda files, identity, columns: asked.append(identity) or {})
    explain(cleaned[0], "s-short", cleaned[1])
    assert asked == ["s-short"]


def test_without_the_shards_of_stage_01_only_urls_of_removed_documents_are_unknown(cleaned):
    assert explain(cleaned[0], "second.md")[:2] == [
        f"s-copy (source s) was removed by {NEAR}",
        "  read from data/notes/second.md",
    ]
    with pytest.raises(UserError):
        explain(cleaned[0], "https://a.org/second")
