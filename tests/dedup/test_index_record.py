"""The record of an index: what is believed, what is refused by name, and what another program wrote."""

import json
import re
from pathlib import Path

import pytest
from test_index import PARAMETERS, index_of, kept_ids

from dedup import DedupParameters
from dedup.index import DedupIndex, Run
from pipeline_lib.stage import UserError


def opened_or_forgotten(folder: Path) -> set[str]:
    """What is said when the index is opened, and when a source is to be forgotten."""
    said = set()
    for attempt in (
        lambda: DedupIndex.open(folder, PARAMETERS),
        lambda: DedupIndex.forget(folder, "a", Run(), PARAMETERS),
    ):
        with pytest.raises(UserError) as refused:
            attempt()
        said.add(str(refused.value))
    return said


def test_damage_is_named_with_the_command_that_mends_it(parts, tmp_path):
    index = index_of(tmp_path / "index", parts, "ab")
    damaged = index.folder / "sources" / "a" / "removed.arrays"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-3] + b"xxx")
    with pytest.raises(UserError, match=r"removed.arrays of source 'a' is missing or damaged; .* index forget .* a"):
        DedupIndex.open(index.folder, PARAMETERS)
    assert DedupIndex.forget(index.folder, "a", Run(), PARAMETERS) == ["b"]
    mended = DedupIndex.open(index.folder, PARAMETERS)
    assert kept_ids(mended, "b") == kept_ids(index_of(tmp_path / "never", parts, "b"), "b")
    (index.folder / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"index.json is damaged; put back a copy"):
        DedupIndex.open(index.folder, PARAMETERS)


def test_messages_give_parameters_as_they_are_typed(parts, tmp_path):
    strict = DedupParameters(jaccard=0.85, containment=0.85, exact_sources=("b", "a"))
    index = DedupIndex.open(tmp_path / "index", strict)
    index.add("a", parts["a"])
    flag = """--parameters '{"exact_sources": ["a", "b"], "jaccard": 0.85, "containment": 0.85}'"""
    said = f"exact_sources = ['a', 'b'], not []; use the same parameters ({flag})"
    with pytest.raises(UserError, match=re.escape(said)):
        DedupIndex.open(index.folder, DedupParameters())
    DedupIndex.open(index.folder, DedupParameters(jaccard=0.85, containment=0.85, exact_sources=("a", "b")))
    (index.folder / "sources" / "a" / "removed.arrays").unlink()
    with pytest.raises(UserError, match=re.escape(f"index forget {index.folder} a {flag}, then add that source again")):
        DedupIndex.open(index.folder, strict)


@pytest.mark.parametrize(
    "content", ["[]", "7", "{}", '{"format": "packed-cache", "version": 2, "chunks": []}', '{"sources": []}']
)
def test_the_index_of_another_program_is_told_from_a_damaged_one(tmp_path, content):
    (tmp_path / "index.json").write_text(content)
    (said,) = opened_or_forgotten(tmp_path)
    assert f"{tmp_path} is no dedup index, its index.json is something else" in said and "delete" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


def test_an_index_of_another_format_is_named(parts, tmp_path):
    index = index_of(tmp_path, parts, "a")
    record = json.loads((index.folder / "index.json").read_text())
    assert record["format"] == 3
    (index.folder / "index.json").write_text(json.dumps({**record, "format": 1}))
    (said,) = opened_or_forgotten(tmp_path)
    assert "index.json has the format 1, and this program reads 3; make a new index, in another folder" in said


def test_a_record_that_was_changed_is_damaged(parts, tmp_path):
    index = index_of(tmp_path, parts, "a")
    record = json.loads((index.folder / "index.json").read_text())
    for change in ({"sources": []}, {"pending": [{}]}, {"digest": ""}, {"more": 1}):
        (index.folder / "index.json").write_text(json.dumps(record | change))
        (said,) = opened_or_forgotten(tmp_path)
        assert "index.json is damaged; put back a copy of it, or make a new index, in another folder" in said
    del record["sources"][0]["files"]
    (index.folder / "index.json").write_text(json.dumps(record))
    assert "index.json is damaged" in next(iter(opened_or_forgotten(tmp_path)))


def test_every_file_of_a_source_is_checked(parts, tmp_path):
    index = index_of(tmp_path, parts, "a")
    files = [path for path in (tmp_path / "sources").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".arrow", ".json", ".npy", ".arrays"}
    assert {str(path.relative_to(tmp_path)) for path in files} == set(index.sources[0]["files"])
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=f"{path.name} of source 'a' is missing or damaged"):
            DedupIndex.open(tmp_path, PARAMETERS)
        path.write_bytes(content)
    DedupIndex.open(tmp_path, PARAMETERS)


def test_an_index_that_is_not_there_is_not_begun_by_taking_a_source_out(tmp_path):
    with pytest.raises(UserError, match="has no source 'a'; it has none"):
        DedupIndex.open(tmp_path / "index", PARAMETERS).undo("a")
    with pytest.raises(UserError, match=r"there is no .*index.json; give the folder of an index"):
        DedupIndex.forget(tmp_path / "index", "a", Run(), PARAMETERS)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(("name", "value"), [("ngram", 4), ("jaccard", 0.7), ("seed", 2), ("bands", 10)])
def test_another_parameter_is_refused_by_name(parts, tmp_path, name, value):
    index_of(tmp_path / "index", parts, "a")
    with pytest.raises(UserError, match=rf"was made with {name}\w* = .*, not .*; use the same parameters"):
        DedupIndex.open(tmp_path / "index", DedupParameters(**{name: value}))
