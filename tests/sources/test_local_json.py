"""JSON files give every record once, in order, whatever their layout; a bad row is counted and named, never fatal."""

import bz2
import gzip
import json
import lzma
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.sources import json_rows
from pipeline_lib.sources.base import Dropped
from pipeline_lib.sources.json_rows import read_json, read_json_lines
from pipeline_lib.sources.rows import Row, Share
from pipeline_lib.stage import UserError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
records = st.lists(st.dictionaries(text, values, max_size=4), max_size=12)


def rows(found):
    return [row.record for row in found if isinstance(row, Row)]


def drops(found):
    return [(row.reason, row.where) for row in found if isinstance(row, Dropped)]


@given(records, st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans(), st.integers(1, 9))
@settings(deadline=None, max_examples=80)
def test_shares_of_a_file_give_every_line_exactly_once(tmp_path_factory, expected, newline, closed, count):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    lines = newline.join(json.dumps(record, ensure_ascii=False) for record in expected)
    path.write_bytes((lines + (newline if closed else "")).encode())
    whole = list(read_json_lines(path, "x.jsonl", ""))
    parts = [row for index in range(count) for row in read_json_lines(path, "x.jsonl", "", Share(index, count))]
    assert rows(whole) == expected
    assert [(row.record, row.key) for row in parts] == [(row.record, row.key) for row in whole]


@given(records, st.sampled_from([None, 1]), st.integers(1, 40))
@settings(deadline=None, max_examples=80)
def test_arrays_are_read_in_pieces_like_the_json_module_reads_them_whole(tmp_path_factory, expected, indent, chunk):
    path = tmp_path_factory.mktemp("array") / "x.json"
    path.write_text("\n" + json.dumps(expected, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    usual, json_rows._CHUNK = json_rows._CHUNK, chunk
    try:
        found = list(read_json(path, "x.json", ""))
    finally:
        json_rows._CHUNK = usual
    assert rows(found) == expected
    assert [row.key for row in found] == [f"#{number}" for number in range(1, len(expected) + 1)]


def test_bad_lines_are_counted_with_file_and_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b'{"text": "good"}\nnot json\n\n[1, 2]\n{"text": "\xff"}\n{"x": NaN}\n{"text": "half \\ud800"}\n'
        + b"[" * 100_000
        + b'\n{"text": "good \\ud83d\\ude00"}\n'
    )
    found = list(read_json_lines(path, "data/x.jsonl", ""))
    assert rows(found) == [{"text": "good"}, {"text": "good \U0001f600"}]
    assert drops(found) == [
        ("not JSON", "data/x.jsonl:2"),
        ("not a JSON object", "data/x.jsonl:4"),
        ("not UTF-8", "data/x.jsonl:5"),
        ("not JSON", "data/x.jsonl:6"),
        ("not UTF-8", "data/x.jsonl:7"),
        ("not JSON", "data/x.jsonl:8"),
    ]


def test_lists_of_objects_are_records_where_the_format_has_them_and_what_is_neither_is_dropped(tmp_path):
    lines, array = tmp_path / "x.jsonl", tmp_path / "x.json"
    rest = ['{"a": 1}', '[{"a": 1}, "b"]', "7", '[{"a": "half \\ud800"}]']
    lines.write_text("\n".join(['[{"a": 1}, {"b": 2}]', *rest]) + "\n")
    array.write_text("[" + ", ".join(['[{"a": 1}, {"b": 2}]', *rest]) + "]")
    reasons = ["not a list of JSON objects", "not a JSON object", "not UTF-8"]
    for found in (list(read_json_lines(lines, "x.jsonl", "", lists=True)), list(read_json(array, "x.json", "", True))):
        assert rows(found) == [[{"a": 1}, {"b": 2}], {"a": 1}]
        assert [reason for reason, _ in drops(found)] == reasons
    parts = [row for index in range(3) for row in read_json_lines(lines, "x.jsonl", "", Share(index, 3), True)]
    assert rows(parts) == [[{"a": 1}, {"b": 2}], {"a": 1}]


def test_line_longer_than_the_limit_is_dropped_whole_and_the_next_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 100)
    path = tmp_path / "x.jsonl"
    long = json.dumps({"text": "y" * 5000})
    path.write_text(f'{{"a": 1}}\n{long}\n{{"a": 2}}\n')
    found = list(read_json_lines(path, "x.jsonl", ""))
    assert rows(found) == [{"a": 1}, {"a": 2}]
    assert [row.bytes for row in found if isinstance(row, Dropped)] == [len(long) + 1]


def test_byte_order_mark_is_not_part_of_the_first_record(tmp_path):
    lines, array = tmp_path / "x.jsonl", tmp_path / "x.json"
    lines.write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    array.write_bytes(b'\xef\xbb\xbf[{"a": 1}]')
    assert rows(read_json_lines(lines, "x.jsonl", "")) == rows(read_json(array, "x.json", "")) == [{"a": 1}]


def test_json_suffix_accepts_lines_as_well(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert rows(read_json(path, "x.json", "")) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    "content",
    [
        '{\n "data": [\n  1\n ]\n}\n',
        '[{"a": 1}, {"a": 2',
        '[{"a": 1} {"a": 2}]',
        '[{"a": 1}, {"b" 2}]',
        '[{"a": 1}, oops]',
    ],
)
def test_json_file_whose_records_cannot_be_counted_is_the_users_to_mend(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"data/x\.json is damaged"):
        list(read_json(path, "data/x.json", ""))


@pytest.mark.parametrize("rest", [b'[{"a": 2}]\n', b'{"a": 2}', b"x", b"]", b"\xc3"])
@pytest.mark.parametrize("space", [b"", b" \r\n\t" * 50])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_what_follows_an_array_is_damage_and_not_lost(tmp_path, monkeypatch, rest, space, chunk):
    """As after `cat a.json b.json`."""
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    path = tmp_path / "x.json"
    path.write_bytes(b'[{"a": 1}]' + space + rest)
    with pytest.raises(UserError, match=r"data/x\.json is damaged: something follows the array"):
        list(read_json(path, "data/x.json", ""))
    path.write_bytes(b'[{"a": 1}]' + space)
    assert rows(read_json(path, "data/x.json", "")) == [{"a": 1}]


def test_the_compressed_stream_behind_an_array_is_read_to_its_end(tmp_path):
    path = tmp_path / "x.json.gz"
    first, second = (gzip.compress(b'[{"a": %d}]\n' % number) for number in (1, 2))
    path.write_bytes(first + second)
    with pytest.raises(UserError, match="something follows the array"):
        list(read_json(path, "x.json.gz", ".gz"))
    path.write_bytes(first[:-8] + bytes(8))  # the checksum and length of the whole, which end the stream
    with pytest.raises(UserError, match=r"its \.gz stream is broken"):
        list(read_json(path, "x.json.gz", ".gz"))


def test_array_elements_that_are_not_records_are_dropped(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1}, 12, "x", null, {"a": 2}]')
    found = list(read_json(path, "x.json", ""))
    assert rows(found) == [{"a": 1}, {"a": 2}]
    assert drops(found) == [("not a JSON object", f"x.json, record {number}") for number in (2, 3, 4)]


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data[:40] + b"\0" * 40 + data[80:]]
)
def test_broken_gzip_names_the_file_instead_of_losing_the_rest(tmp_path, damage):
    path = tmp_path / "x.jsonl.gz"
    lines = b"".join(b'{"text": "%d"}\n' % (number * 7919) for number in range(3000))
    path.write_bytes(damage(gzip.compress(lines)))
    with pytest.raises(UserError, match=r"corpus/x\.jsonl\.gz is damaged"):
        list(read_json_lines(path, "corpus/x.jsonl.gz", ".gz"))


@pytest.mark.parametrize("cut", [False, True])
def test_zstandard_streams_are_read_and_a_cut_one_is_noticed(tmp_path, cut):
    import pyarrow

    path = tmp_path / "x.jsonl.zst"
    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        stream.write(b"".join(b'{"n": %d}\n' % (number * 7919) for number in range(5000)))
    if cut:
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UserError, match="is damaged"):
            list(read_json_lines(path, "x.jsonl.zst", ".zst"))
    else:
        assert [row["n"] for row in rows(read_json_lines(path, "x.jsonl.zst", ".zst"))] == [
            number * 7919 for number in range(5000)
        ]


@pytest.mark.parametrize(("suffix", "library"), [(".bz2", bz2), (".xz", lzma)])
def test_bzip2_and_xz_streams_are_read_to_the_last_and_damage_is_noticed_wherever_it_is(tmp_path, suffix, library):
    path = tmp_path / f"x.jsonl{suffix}"

    def numbers():
        return [row["n"] for row in rows(read_json_lines(path, path.name, suffix))]

    parts = [
        library.compress(b"".join(b'{"n": %d}\n' % n for n in range(first, first + 9))) for first in range(0, 27, 9)
    ]
    padding = bytes(4 << 20) if library is lzma else b""
    path.write_bytes(parts[0] + padding + parts[1] + parts[2] + padding)
    assert numbers() == list(range(27))
    whole = b"".join(parts)
    ends = {len(parts[0]), len(parts[0]) + len(parts[1])}
    for size in range(len(whole)):
        if size not in ends:
            path.write_bytes(whole[:size])
            with pytest.raises(UserError, match=rf"is damaged: its \{suffix} stream is broken \(it ends early\)"):
                numbers()
    for place in range(len(parts[0]), len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        path.write_bytes(broken)
        with pytest.raises(UserError, match="is damaged"):
            numbers()


def test_a_bzip2_stream_is_decompressed_in_pieces(tmp_path):
    path = tmp_path / "x.jsonl.bz2"
    path.write_bytes(bz2.compress((b'{"n": 1}' + b" " * (1 << 20) + b"\n") * 50))
    tracemalloc.start()
    assert rows(read_json_lines(path, path.name, ".bz2")) == [{"n": 1}] * 50
    assert tracemalloc.get_traced_memory()[1] < 12 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "name",
    ["alpaca/alpaca_en_demo.json", "glaive/glaive_toolcall_en_demo.part1.json", "hellaswag/hellaswag_val.part1.jsonl"],
)
def test_genuine_files_are_read_as_the_json_module_reads_them(shared_data, name):
    path = shared_data / name
    content = path.read_text(encoding="utf-8")
    if content.lstrip().startswith("["):
        assert rows(read_json(path, name, "")) == json.loads(content)
    else:
        assert rows(read_json_lines(path, name, "")) == [json.loads(line) for line in content.splitlines() if line]
