"""Documents are identified by what most of them is written in, without a network."""

import zipfile

import pytest

from pipeline_lib.config.clean import LanguageSettings
from pipeline_lib.text_cleaning.language import LanguageIdentifier

ENGLISH = "This page is available in several languages. Choose one from the menu at the top of every page. "
GERMAN = "Der Fluss ist im Sommer oft so niedrig, dass die Schiffe nicht mehr voll beladen werden können. "


@pytest.fixture(scope="module")
def identifier():
    return LanguageIdentifier(LanguageSettings(keep=["en", "de"]))


def test_an_english_first_paragraph_does_not_make_a_german_document_english(identifier):
    found = identifier.identify(ENGLISH + GERMAN * 100)
    assert found.language == "de" and found.score > 0.6


def test_windows_cover_short_texts_whole_and_long_ones_from_end_to_end(identifier):
    assert "".join(identifier.windows("x" * 2500)) == "x" * 2500
    text = "".join(chr(0x4E00 + i % 20000) for i in range(50_000))
    windows = identifier.windows(text)
    assert [len(window) for window in windows] == [1000, 1000, 1000]
    assert windows[0] == text[:1000] and windows[-1] == text[-1000:]


def test_the_score_of_the_kept_languages_is_the_best_of_them():
    english_only = LanguageIdentifier(LanguageSettings(keep=["en"]))
    found = english_only.identify(GERMAN * 20)
    assert found.language == "de" and found.kept_score < 0.2 < 0.8 < found.score


def test_nothing_to_read_is_no_language(identifier):
    assert identifier.identify("") == ("", 0.0, 0.0)
    assert identifier.identify(" \n ") == ("", 0.0, 0.0)


def test_declarations_of_human_rights_are_identified(shared_data, identifier):
    wanted = {"eng": "en", "deu": "de", "fra": "fr", "spa": "es", "rus": "ru", "jpn": "ja", "hin": "hi", "tur": "tr"}
    with zipfile.ZipFile(shared_data / "langid" / "udhr2.zip") as archive:
        names = {name.rsplit("/", 1)[-1].removesuffix(".txt"): name for name in archive.namelist()}
        for stem, language in wanted.items():
            assert identifier.identify(archive.read(names[stem]).decode()).language == language
