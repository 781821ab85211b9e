"""Documents are identified by what most of them is written in, without a network, as the fasttext package would."""

import gzip
import json
import platform
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.config.clean import LanguageSettings
from pipeline_lib.stage import StageFailure, UserError
from pipeline_lib.text_cleaning import language
from pipeline_lib.text_cleaning.characters import TABLE_SIZE, character_classes
from pipeline_lib.text_cleaning.language import (
    LANGUAGE_COLUMNS,
    LanguageIdentifier,
    LibraryIdentifier,
    Windows,
    case_classes,
    load_identifier,
)
from pipeline_lib.text_cleaning.normalise import normalise_batch

ENGLISH = "This page is available in several languages. Choose one from the menu at the top of every page. "
GERMAN = "Der Fluss ist im Sommer oft so niedrig, dass die Schiffe nicht mehr voll beladen werden können. "


@pytest.fixture(scope="module")
def identifier():
    return LanguageIdentifier(LanguageSettings(keep=["en", "de"]))


@pytest.fixture(scope="module")
def library():
    return LibraryIdentifier(LanguageSettings(keep=["en", "de"]))


def strings(texts):
    return pa.array(texts, pa.large_string())


def assert_same(found, expected):
    names, *scores = (found[column] for column in LANGUAGE_COLUMNS)
    expected_names, *expected_scores = (expected[column] for column in LANGUAGE_COLUMNS)
    assert names.tolist() == expected_names.tolist()
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-5)
    if platform.machine() == "x86_64":  # elsewhere compilers join multiplication and addition
        np.testing.assert_array_equal(scores, expected_scores)


def test_an_english_first_paragraph_does_not_make_a_german_document_english(identifier):
    found = identifier.identify(ENGLISH + GERMAN * 100)
    assert found.language == "de" and found.score > 0.6


def found_windows(texts, size, wanted):
    """The windows of the compiled pass as strings, per text."""
    raw = [text.encode() for text in texts]
    data, offsets = np.frombuffer(b"".join(raw), np.uint8), np.cumsum([0, *map(len, raw)])
    windows = Windows.room_for(len(texts), wanted)
    language._find_windows(data, offsets, size, character_classes(), case_classes(), *windows)
    return [
        [
            (data[begin:end].tobytes().decode(), characters, upper)
            for begin, end, characters, upper in zip(*(array[i].tolist() for array in windows), strict=True)
            if characters
        ]
        for i in range(len(texts))
    ]


def test_windows_cover_short_texts_whole_and_long_ones_from_end_to_end():
    spread = "".join(chr(0x4E00 + i % 20000) for i in range(50_000))
    short, long = found_windows(["x" * 2500, spread], 1000, 3)
    assert "".join(window for window, _, _ in short) == "x" * 2500
    assert [length for _, length, _ in long] == [1000, 1000, 1000]
    assert long[0][0] == spread[:1000] and long[-1][0] == spread[-1000:]


letters = st.text(st.sampled_from("aA Bßǅİ\n\u3000é漢😀ΣⅧⓐ1.\x1c"), max_size=400)


@settings(max_examples=200, deadline=None)
@given(st.lists(letters, max_size=4), st.integers(20, 60), st.integers(1, 5))
def test_windows_are_those_of_the_text_cut_by_characters(texts, size, wanted):
    cut = LibraryIdentifier.windows
    setting = LanguageSettings(windows=wanted, window_characters=size)
    reference = type("Reference", (), {"_settings": setting})()
    expected = [
        [(window, len(window), window.isupper()) for window in cut(reference, text) if not window.isspace()]
        for text in texts
    ]
    assert found_windows(texts, size, wanted) == expected


def test_the_table_of_capitals_is_complete():
    beyond = map(chr, range(TABLE_SIZE, sys.maxunicode + 1))
    assert not any(c.isupper() or c.islower() or c.istitle() for c in beyond)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=200), letters, letters.map(str.upper)), max_size=5))
def test_any_text_gets_the_librarys_language_and_scores(identifier, library, texts):
    array = strings(texts)
    assert_same(identifier.identify_batch(array), library.identify_batch(array))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_any_bytes_repaired_as_the_stage_does_get_the_librarys_language(identifier, library, raw):
    array, _ = normalise_batch(pa.array(raw, pa.large_binary()))
    assert_same(identifier.identify_batch(array), library.identify_batch(array))


def test_a_slice_and_a_text_in_capitals_are_identified(identifier, library):
    array = strings([ENGLISH, (GERMAN * 40).upper(), "ΟΔΥΣΣΕΥΣ ΑΝΗΡ " * 90, GERMAN]).slice(1, 2)
    found = identifier.identify_batch(array)
    assert found["language"].tolist() == ["de", "el"]
    assert_same(found, library.identify_batch(array))


def test_genuine_documents_get_the_librarys_language_and_scores(shared_data, identifier, library):
    texts = []
    for path in ("pretrain_text/c4_demo.jsonl.gz", "quality/dclm_agreement_data.jsonl.gz"):
        with gzip.open(shared_data / path) as lines:
            texts += [json.loads(line)["text"] for line in lines]
    with zipfile.ZipFile(shared_data / "langid" / "udhr2.zip") as archive:
        texts += [archive.read(name).decode() for name in archive.namelist() if name.endswith(".txt")]
    array, _ = normalise_batch(strings(texts))
    found = identifier.identify_batch(array)
    assert_same(found, library.identify_batch(array))
    assert len(set(found["language"].tolist())) > 80, "the sample must exercise many languages"


def test_the_score_of_the_kept_languages_is_the_best_of_them():
    english_only = LanguageIdentifier(LanguageSettings(keep=["en"]))
    found = english_only.identify(GERMAN * 20)
    assert found.language == "de" and found.kept_score < 0.2 < 0.8 < found.score


def test_nothing_to_read_is_no_language(identifier, library):
    for engine in (identifier, library):
        assert engine.identify("") == ("", 0.0, 0.0)
        assert engine.identify(" \n ") == ("", 0.0, 0.0)
        assert [len(column) for column in engine.identify_batch(strings([])).values()] == [0, 0, 0]


def test_the_engine_is_the_one_that_is_named():
    assert isinstance(load_identifier(LanguageSettings()), LanguageIdentifier)
    assert isinstance(load_identifier(LanguageSettings(engine="fasttext")), LibraryIdentifier)


@pytest.mark.parametrize("engine", ["compiled", "fasttext"])
@pytest.mark.parametrize(("code", "nearest"), [("DE", "de"), ("english", "en"), ("pt-br", "pt"), ("wr", "war")])
def test_a_language_that_the_model_does_not_have_is_refused_with_the_nearest(engine, code, nearest):
    with pytest.raises(UserError, match=f"language.keep: '{code}' is none of the 176 codes .* nearest is '{nearest}'"):
        load_identifier(LanguageSettings(keep=["en", code], engine=engine))


def test_a_model_of_another_version_stops_the_compiled_engine_and_nothing_else_takes_over(tmp_path, monkeypatch):
    raw = bytearray(language.model_file().read_bytes())
    raw[4] = 13
    later = tmp_path / "lid.176.ftz"
    later.write_bytes(raw)
    monkeypatch.setattr(language, "model_file", lambda: later)
    with pytest.raises(StageFailure, match="file version 13, not 12; install .* or set clean.language.engine to"):
        load_identifier(LanguageSettings())


def test_declarations_of_human_rights_are_identified(shared_data, identifier):
    wanted = {"eng": "en", "deu": "de", "fra": "fr", "spa": "es", "rus": "ru", "jpn": "ja", "hin": "hi", "tur": "tr"}
    with zipfile.ZipFile(shared_data / "langid" / "udhr2.zip") as archive:
        names = {name.rsplit("/", 1)[-1].removesuffix(".txt"): name for name in archive.namelist()}
        for stem, expected in wanted.items():
            assert identifier.identify(archive.read(names[stem]).decode()).language == expected
