"""Which items are asked: read with their line on any error, sampled the same way for every model and file order."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.evaluation.items import choose_items, read_items, shorten
from pipeline_lib.stage import UserError


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def test_records_of_several_files_are_one_list_and_missing_ids_are_row_numbers(tmp_path):
    first = write(tmp_path / "a.jsonl", [json.dumps({"q": "x", "id": "k"}), "", json.dumps({"q": "y"})])
    second = write(tmp_path / "b.jsonl", [json.dumps({"q": "z"})])
    assert read_items([first, second]) == [{"q": "x", "id": "k"}, {"q": "y", "id": "row-2"}, {"q": "z", "id": "row-3"}]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "a"}', "{"], r"a\.jsonl:2: not JSON"),
        (['{"id": "a"}', "[1]"], r"a\.jsonl:2: expected a JSON object"),
        (['{"id": "a"}', "", '{"id": "a"}'], r"a\.jsonl:3: the id 'a' was used at .*a\.jsonl:1"),
        ([], "has no records"),
        (["", ""], "has no records"),
    ],
)
def test_bad_records_are_errors_with_their_line(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read_items([write(tmp_path / "a.jsonl", lines)])


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_a_sample_has_the_limit_keeps_the_order_and_only_grows(count, limit, seed):
    records = [{"id": f"item-{number}"} for number in range(count)]
    chosen = choose_items(records, limit, seed)
    assert chosen.available == count and len(chosen.records) == min(count, limit)
    positions = [records.index(record) for record in chosen.records]
    assert positions == sorted(positions)
    more = choose_items(records, limit + 1, seed).records
    assert all(record in more for record in chosen.records)


def test_the_sample_depends_on_ids_and_seed_and_not_on_the_order_of_the_file():
    records = [{"id": f"item-{number}"} for number in range(200)]
    shuffled = random.Random(1).sample(records, len(records))
    chosen = {record["id"] for record in choose_items(records, 50, 7).records}
    assert chosen == {record["id"] for record in choose_items(shuffled, 50, 7).records}
    assert chosen != {record["id"] for record in choose_items(records, 50, 8).records}
    assert chosen != {record["id"] for record in records[:50]}


@given(st.text(), st.integers(64, 100))
def test_a_document_is_cut_between_characters(text, limit):
    text = text * 20
    cut = shorten(text, limit)
    assert text.startswith(cut) and len(cut.encode()) <= max(limit, 0)
    if len(text.encode()) > limit:
        assert len(cut.encode()) > limit - 4
    else:
        assert cut == text
    assert shorten(text, None) == text
