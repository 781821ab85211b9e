"""Repair keeps what the author laid out and removes only what no reader sees."""

import re
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.text_cleaning.normalise import normalise, normalise_batch

CODE = "def f(x):\n    if x:\n\treturn 1\n\n\n    return 0"
TABLE = "| a   | b |\n|-----|---|\n| 1   | 2 |"

troubled_text = st.text(
    st.one_of(st.characters(), st.sampled_from("\r\n\t\x00\x0b\x0c\x1b\x85\u2028\u2029\ufeff \u0301e[0m")), max_size=60
).filter(lambda text: not any("\ud800" <= character <= "\udfff" for character in text))


def plain_python(text: str) -> str:
    """The same repair by regular expressions, one text at a time."""
    text = re.sub("\r\n?|[\x0b\x0c\x85\u2028\u2029]", "\n", text)
    text = re.sub("\x1b\\[[0-9;]*[A-Za-z]", "", text)
    text = re.sub("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]", "", text)
    text = unicodedata.normalize("NFC", text)
    return "\n".join([line.rstrip() for line in text.split("\n")]).strip("\n")


@settings(deadline=None)
@given(st.lists(troubled_text, max_size=8))
def test_a_batch_is_repaired_as_plain_python_repairs_its_texts(texts):
    repaired, invalid = normalise_batch(pa.array(texts, pa.large_string()))
    assert repaired.to_pylist() == [plain_python(text) for text in texts]
    repaired.validate(full=True)
    assert not invalid.any()


@settings(deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), troubled_text.map(str.encode)), max_size=8))
def test_any_bytes_become_text_and_bytes_that_are_not_utf8_are_reported(raw):
    repaired, invalid = normalise_batch(pa.array(raw, pa.binary()))
    repaired.validate(full=True)
    assert repaired.to_pylist() == [plain_python(text.decode("utf-8", "replace")) for text in raw]
    assert invalid.tolist() == ["\ufffd" in text.decode("utf-8", "replace") and not is_utf8(text) for text in raw]


def is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_slice_of_a_column_is_read_where_it_lies():
    column = pa.chunked_array([pa.array(["x\r", "cafe\u0301 ", "y", "z "])]).slice(1, 2).chunk(0)
    assert normalise_batch(column)[0].to_pylist() == ["café", "y"]


@pytest.mark.parametrize("text", [CODE, TABLE, "1.\n\n   2.\n      3.", "naïve 漢字 👩\u200d💻 नमस्ते"])
@pytest.mark.parametrize("mode", ["fast", "full"])
def test_code_tables_and_indentation_survive_unchanged(text, mode):
    assert normalise(text, mode) == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_every_kind_of_line_end_becomes_one(end):
    assert normalise(f"first{end}second{end}{end}third") == "first\nsecond\n\nthird"


def test_invisible_characters_and_trailing_spaces_go():
    assert normalise("\ufeffa\x00b \t\nc\x1b[31mred\x1b[0m\x7f  \n\n") == "ab\ncred"


def test_a_letter_and_its_accent_become_one_character_even_across_a_removed_one():
    assert normalise("e\x00\u0301") == "é"


def test_long_runs_of_spaces_take_linear_time():
    assert normalise(" " * 300_000 + "x") == " " * 300_000 + "x"


def test_full_mode_repairs_wrongly_decoded_text_and_leaves_typography_alone():
    assert normalise("le cafÃ© est fermÃ©", "full") == "le café est fermé"
    assert normalise("“quoted” ﬁne &amp; dandy", "full") == "“quoted” ﬁne &amp; dandy"


@settings(deadline=None)
@given(troubled_text)
def test_normalised_text_is_a_fixed_point_in_normal_form(text):
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(character) == "Cc" and character not in "\t\n" for character in once)
    assert not any(line != line.rstrip() for line in once.split("\n"))


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), max_size=80))
def test_visible_ascii_is_never_touched(text):
    assert normalise(text) == text
