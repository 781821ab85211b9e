"""Local sources read what their paths name, in one fixed order, and say plainly when there is nothing to read."""

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_formatters import FORMAT_HANDLERS
from pipeline_lib.config import base
from pipeline_lib.sources import file_rows, local, units
from pipeline_lib.sources.base import Dropped, Source, UnstatedLicense
from pipeline_lib.sources.local import LocalSource, content_digest
from pipeline_lib.sources.units import plan_units, unit_names
from pipeline_lib.stage import UserError


@pytest.fixture
def corpus(tmp_path):
    """One document in each supported layout, with the text telling which."""
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    record = {"text": "jsonl", "url": "http://a/", "meta": {"id": "one", "license": "MIT"}}
    (folder / "a.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "jsonl.gz"}\n'))
    pq.write_table(pa.table({"text": ["parquet"], "other": [1]}), folder / "c.parquet")
    with open(folder / "d.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["text"], ["csv"]])
    (folder / "deep/e.txt").write_text("txt")
    (folder / "deep/f.md").write_text("# md\n")
    (folder / "deep/g.html").write_text(f"<html><body><article><p>{'html words ' * 40}</p></article></body></html>")
    (folder / "deep/h.json").write_text('[{"text": "json"}]')
    (folder / "notes.docx").write_text("no reader for this")
    (folder / ".hidden.txt").write_text("hidden")
    return folder


def read_all(source):
    return [record for unit in source.units() for record in source.read(unit)]


def texts(source):
    return [record["text"].split()[-1] for record in read_all(source) if not isinstance(record, Dropped)]


def test_folder_gives_every_readable_file_in_sorted_order(quick, corpus):
    source = LocalSource(quick(type="local", paths=[str(corpus)]))
    assert isinstance(source, Source)
    assert texts(source) == ["jsonl", "jsonl.gz", "parquet", "csv", "txt", "md", "words", "json"]
    records = read_all(source)
    assert len({record["key"] for record in records}) == len(records)
    key, origin = f"{corpus}/a.jsonl@0", f"{corpus}/a.jsonl:1"
    assert records[0] == {"key": key, "text": "jsonl", "url": "http://a/", "origin": origin, "license": ""}
    places = [record["origin"].removeprefix(f"{corpus}/") for record in records[1:]]
    rows = ["b.jsonl.gz:1", "c.parquet, row 1", "d.csv:2"]
    assert places == [*rows, "deep/e.txt", "deep/f.md", "deep/g.html", "deep/h.json, record 1"]


def test_globs_and_names_are_read_in_the_order_given_and_each_file_once(quick, corpus):
    paths = [str(corpus / "deep/*.md"), str(corpus / "a.jsonl"), str(corpus / "**/*.*m*"), str(corpus / "deep/f.md")]
    assert texts(LocalSource(quick(type="local", paths=paths))) == ["md", "jsonl", "words"]


@pytest.mark.parametrize("entry", ["data/../data/x.txt", "data", "data/*.txt", "d*/[xy].txt", "data/deep/.."])
def test_relative_path_starts_at_the_project_root_and_keys_do_not_name_it(quick, tmp_path, monkeypatch, entry):
    root = tmp_path / "my [project]"
    (root / "data/deep").mkdir(parents=True)
    (root / "data/x.txt").write_text("text")
    monkeypatch.setattr(base, "PROJECT_ROOT", root)
    monkeypatch.setattr(local, "PROJECT_ROOT", root)
    paths = [entry, str(root / "data/x.txt")]
    assert [record["key"] for record in read_all(LocalSource(quick(type="local", paths=paths)))] == ["data/x.txt"]


def test_named_fields_make_the_record(quick, corpus):
    fields = {"id_field": "meta.id", "license_field": "meta.license", "license": "ODC-BY"}
    [record] = read_all(LocalSource(quick(type="local", paths=[str(corpus / "a.jsonl")], **fields)))
    origin = f"{corpus}/a.jsonl:1"
    assert record == {"key": "one", "text": "jsonl", "url": "http://a/", "origin": origin, "license": "MIT"}


def test_licences_of_a_list_stand_side_by_side_and_what_states_none_is_marked(quick, tmp_path):
    stated = [["MIT", "Apache-2.0"], "CC0-1.0", ["ISC"]]
    unstated = [None, "", [], [None], ["MIT", ""], 7, {"name": "MIT"}]
    lines = [{"text": "a", "by": licence} for licence in [*stated, *unstated]] + [{"text": "a", "licence": "MIT"}]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = {"text": ["a", "a"], "by": [["MIT", "ISC"], None], "other": [1, 2]}
    pq.write_table(pa.table(table), tmp_path / "y.parquet")
    (tmp_path / "z.txt").write_text("a")
    settings = quick(type="local", paths=[str(tmp_path)], license="ODC-BY", license_field="by")
    records = read_all(LocalSource(settings))
    marks = {number: record["unstated_license"] for number, record in enumerate(records) if len(record) == 6}
    own = [record["license"] for number, record in enumerate(records) if number not in marks]
    assert own == ["MIT, Apache-2.0", "CC0-1.0", "ISC", "MIT, ISC"]
    assert list(marks) == [3, 4, 5, 6, 7, 8, 9, 10, 12, 13]
    assert all(records[number]["license"] == "ODC-BY" for number in marks)
    assert marks[10] == UnstatedLicense(f"{path}:11", "by", ("licence", "text"))
    assert marks[12] == UnstatedLicense(f"{tmp_path}/y.parquet, row 2", "by", ("by", "other", "text"))


def test_records_of_other_kinds_are_handed_on_unchanged(quick, shared_data):
    path = shared_data / "gsm8k/train.jsonl"
    source = LocalSource(quick(kind="reasoning", format="gsm8k", type="local", paths=[str(path)]))
    assert read_all(source) == [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_bare_lists_of_messages_are_handed_on_to_the_format_that_reads_them(quick, tmp_path):
    path = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path.write_text(json.dumps(turns) + "\n" + json.dumps({"messages": turns}) + '\n["q", "a"]\n')
    chat = {"kind": "sft", "type": "local", "paths": [str(path)]}
    *found, refused = read_all(LocalSource(quick(format="messages", **chat)))
    assert found == [turns, {"messages": turns}]
    assert (refused.reason, refused.where) == ("not a list of JSON objects", f"{path}:3")
    assert all(FORMAT_HANDLERS["messages"](record, "here")["messages"] == turns for record in found)
    refused, *found = read_all(LocalSource(quick(format="sharegpt", **chat)))[:2]
    assert (refused.reason, found) == ("not a JSON object", [{"messages": turns}])


def test_genuine_bare_lists_of_messages_are_all_read(quick, shared_data):
    path = shared_data / "sharegpt/openai_sft.jsonl"
    records = read_all(LocalSource(quick(kind="sft", format="messages", type="local", paths=[str(path)])))
    assert len(records) == 128 and all(isinstance(record, list) for record in records)


def test_genuine_text_records_carry_their_fields(quick, shared_data):
    paths = [str(shared_data / "pretrain_text/*.jsonl.gz"), str(shared_data / "pretrain_text/cc_en_head-0091.jsonl")]
    records = read_all(LocalSource(quick(type="local", paths=paths)))
    assert len(records) == 10 + 300 + 10
    assert not [record for record in records if isinstance(record, Dropped)]


def test_unusable_rows_are_dropped_with_a_reason_and_a_place(quick, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "good"}\n{"text": ""}\n{"text": null}\n{"text": 7}\n{"body": "x"}\n{"text": " \\n"}\n')
    found = read_all(LocalSource(quick(type="local", paths=[str(path)])))
    assert [(drop.reason, drop.where) for drop in found[1:]] == [
        ("empty text", f"{path}:2"),
        ("empty text", f"{path}:3"),
        ("field 'text' is not text", f"{path}:4"),
        ("no field 'text'", f"{path}:5"),
        ("empty text", f"{path}:6"),
    ]
    assert all(drop.bytes > 5 for drop in found[1:])


def test_field_name_that_no_record_has_is_reported_with_the_names_there_are(quick, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"content": "a", "id": 1}\n{"content": "b", "id": 2}\n')
    with pytest.raises(UserError, match="none of its 2 records has the field 'text'; the first has content, id"):
        read_all(LocalSource(quick(type="local", paths=[str(path)])))
    fields = {"text_field": "content", "id_field": "uuid"}
    with pytest.raises(UserError, match="the field 'uuid'"):
        read_all(LocalSource(quick(type="local", paths=[str(path)], **fields)))
    table = tmp_path / "y.parquet"
    pq.write_table(pa.table({"text": ["a"], "number": [1]}), table)
    with pytest.raises(UserError, match="the field 'uuid'; the first has number, text"):
        read_all(LocalSource(quick(type="local", paths=[str(table)], id_field="uuid")))


@pytest.mark.parametrize("path", ["~nobody-of-that-name/notes", "~nobody-of-that-name/*.txt"])
def test_a_tilde_that_names_no_user_begins_the_name_of_a_file(quick, path):
    with pytest.raises(UserError, match=r"does not exist|names no readable file"):
        LocalSource(quick(type="local", paths=[path]))


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["missing.jsonl"], "does not exist"),
        (["*.parquet"], "names no readable file"),
        (["notes.docx"], "no reader for this suffix"),
        (["only_docx"], r"names no readable file \(1 files left out \(.docx 1\), first .*only_docx/x.docx\); see docs"),
        (["empty.jsonl"], "is empty"),
    ],
)
def test_path_that_gives_nothing_is_the_users_to_mend(quick, tmp_path, paths, words):
    (tmp_path / "only_docx").mkdir()
    for name in ("notes.docx", "only_docx/x.docx"):
        (tmp_path / name).write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=words):
        LocalSource(quick(type="local", paths=[str(tmp_path / path) for path in paths]))


def test_documents_cannot_serve_as_chat_records(quick, corpus):
    with pytest.raises(UserError, match="needs records"):
        LocalSource(quick(kind="sft", format="alpaca", type="local", paths=[str(corpus / "deep/e.txt")]))


def test_large_files_fall_into_units_that_give_the_same_records(quick, tmp_path, monkeypatch):
    lines = [{"text": f"document {number} " + "x" * (number % 50)} for number in range(500)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "b.parquet", row_group_size=20)
    for number in range(5):
        (tmp_path / f"c{number}.txt").write_text(f"small {number}")
    settings = quick(type="local", paths=[str(tmp_path)])
    whole = read_all(LocalSource(settings))
    assert LocalSource(settings).units() == ["00000-files-1-7"]
    monkeypatch.setattr(file_rows, "SHARE_BYTES", 4000)
    monkeypatch.setattr(units, "SHARE_BYTES", 4000)
    source = LocalSource(settings)
    assert len(source.units()) > 8
    assert source.units()[0].startswith("00000-file-1-part-1-of-")
    in_parts = read_all(source)
    unlike = [number for number, (one, other) in enumerate(zip(in_parts, whole, strict=True)) if one != other]
    assert [{**row, "origin": ""} for row in in_parts] == [{**row, "origin": ""} for row in whole]
    assert unlike and all(
        f"a.jsonl, byte {row['key'].rpartition('@')[2]}" in row["origin"]
        for row in (in_parts[number] for number in unlike)
    )  # lines before a part were not counted
    assert list(source.read(source.units()[2])) == list(source.read(source.units()[2]))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a.jsonl", "b.gz.txt", "c.parquet", "d.csv", "e.warc.gz"]), st.integers(0, 300 << 20)
        )
    )
)
def test_plan_has_every_share_of_every_file_once_in_order_and_bounded_units(files):
    plan = plan_units([name for name, _ in files], [size for _, size in files])
    pieces = [piece for unit in plan for piece in unit]
    expected = [(n, k) for n, (name, size) in enumerate(files) for k in range(file_rows.shares_of(name, size))]
    assert [(piece.file, piece.share.index) for piece in pieces] == expected
    assert all(len(unit) == 1 or sum(files[piece.file][1] for piece in unit) <= file_rows.SHARE_BYTES for unit in plan)
    assert len(set(unit_names(plan))) == len(plan)


def test_fingerprint_changes_with_content_names_and_order(quick, tmp_path):
    def fingerprint(*names):
        return LocalSource(quick(type="local", paths=[str(tmp_path / name) for name in names])).fingerprint()

    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    first = fingerprint("a.txt", "b.txt")
    assert fingerprint("b.txt", "a.txt") != first
    os.utime(tmp_path / "a.txt", (1, 1))
    assert fingerprint("a.txt", "b.txt") == first, "a copy of the data is the same data"
    (tmp_path / "a.txt").write_text("ONE")
    assert fingerprint("a.txt", "b.txt") != first


def test_large_file_is_fingerprinted_by_samples(tmp_path, monkeypatch):
    path = tmp_path / "large.jsonl"
    with open(path, "wb") as stream:
        stream.truncate(80 << 20)
    os.utime(path, (1, 1))
    before = content_digest(path)
    assert set(before) == {"bytes", "xxh3_of_samples", "modified_ns"}
    with open(path, "r+b") as stream:
        stream.seek(-5, 2)
        stream.write(b"x")
    os.utime(path, (1, 1))
    assert content_digest(path)["xxh3_of_samples"] != before["xxh3_of_samples"]


def test_reading_a_large_file_takes_little_memory(tmp_path):
    path = tmp_path / "large.jsonl"
    with open(path, "w") as stream:
        for number in range(60):
            stream.write(json.dumps({"text": f"{number} " * 250_000}) + "\n")
    program = (
        "import resource, sys; sys.path.insert(0, 'scripts')\n"
        "from pipeline_lib.config.sources import SourceSettings\n"
        "from pipeline_lib.sources.local import LocalSource\n"
        f"s = LocalSource(SourceSettings(name='x', kind='text', type='local', paths=[{str(path)!r}]))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "n = sum(1 for u in s.units() for _ in s.read(u))\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    count, kilobytes = map(int, done.stdout.split())
    assert count == 60
    assert kilobytes < 30_000 < path.stat().st_size / 1000, "a few records of 0.7 MB, never the file of 44 MB"
