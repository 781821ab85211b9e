"""The complete FineWeb recipe keeps what datatrove's filters keep in FineWeb's order, and leaves the same texts."""

import random

import pyarrow as pa
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from finished_download import SCHEMA, document
from test_02_clean_stage import prose
from test_c4 import OurSentences
from test_document_scores import OurWords

from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.text_cleaning.document_scores import SCORE_COLUMNS, score_documents
from pipeline_lib.text_cleaning.language import load_identifier
from pipeline_lib.text_cleaning.shard import DocumentCleaner, Tally

RECIPE = {
    "quality_rules": ["gopher_repetition", "gopher_quality", "c4", "fineweb"],
    "c4": {"terminal_punctuation": False},
    "contamination": {"enabled": False},
    "personal_data": {"kinds": []},
}
POLICY = "Please read our privacy policy before you go on."
LINES = (
    "The river was wide and the men had to wait for the boat.",
    "She had a letter from the village in her hand.",
    "Wir bitten um Verständnis, dass diese Seite in Ihrem Browser use cookies und andere kleine Dateien.",
    POLICY,
    "Home | About | Contact us here",
    "Home",
    "Please enable JavaScript to go on.",
    "- a point of the list",
    "It is known that the bridge was built by hand.[3] It burnt down in that very winter.[4]",
)
LONGER_THAN_ITS_CUT = prose(1, sentences=5).replace("\n", " ").split()


def recipe_page() -> str:
    """Five lines of prose with 45 words, and a policy line with nine, which C4 takes out: 54 words of the 50 wanted."""
    lines = [" ".join(LONGER_THAN_ITS_CUT[9 * n : 9 * n + 9]).rstrip(".").capitalize() + "." for n in range(5)]
    return "\n".join([*lines, POLICY])


class OurWordsAndSentences(OurSentences, OurWords):
    """Both splitters are ours, so that only the rules and their order are compared."""

    word_tokenize = OurWords.word_tokenize


class LanguageFilterWithOurModel(LanguageFilter):
    """datatrove would download the model that we have, and wants a package that runs it."""

    def __new__(cls, languages):
        return object.__new__(cls)

    def __init__(self, languages):
        super().__init__(languages)
        self.model = self
        self._identifier = load_identifier(CleanSettings().language)

    def predict(self, page):
        found = self._identifier.identify(page.text)
        return (found.language, found.score), {"en": found.kept_score}


@pytest.fixture(scope="module")
def fineweb():
    """{id: text} of what five filters of datatrove's, in the order of its examples/fineweb.py, leave of some rows."""
    words = OurWordsAndSentences()
    filters = [
        LanguageFilterWithOurModel(["en"]),
        GopherRepetitionFilter(language=words),
        GopherQualityFilter(language=words),
        C4QualityFilter(filter_no_terminal_punct=False, language=words),
        FineWebQualityFilter(language=words),
    ]

    def kept(rows):
        pages = [Document(text=row["text"], id=row["id"]) for row in rows]
        return {page.id: page.text for page in pages if all(block.filter(page) is True for block in filters)}

    return kept


def ours(rows, engine="compiled"):
    cleaner = DocumentCleaner(CleanSettings(**RECIPE, quality_engine=engine), [], 0)
    kept = cleaner.clean(pa.Table.from_pylist(rows, schema=SCHEMA), Tally()).kept
    return dict(zip(kept["id"].to_pylist(), kept["text"].to_pylist(), strict=True))


def random_pages(pages):
    rng = random.Random(5)
    for number in range(pages):
        lines = prose(number, sentences=rng.randint(1, 7)).split("\n")
        lines += rng.choices(LINES, k=rng.randint(0, 6)) + [rng.choice(LINES)] * rng.choice([0, 0, 1, 4])
        rng.shuffle(lines)
        yield document(f"page-{number}", "\n".join(lines))


@pytest.mark.parametrize("engine", ["compiled", "datatrove"])
def test_the_recipe_keeps_the_pages_that_fineweb_keeps(fineweb, engine):
    rows = [document("policy", recipe_page()), *random_pages(400)]
    theirs = fineweb(rows)
    assert "policy" in theirs and POLICY not in theirs["policy"] and 100 < len(theirs) < 300
    assert ours(rows, engine) == theirs


def test_columns_beside_the_text_are_those_that_the_rules_judged():
    page = document("policy", recipe_page())
    cleaner = DocumentCleaner(CleanSettings(**RECIPE), [], 0)
    kept = cleaner.clean(pa.Table.from_pylist([page], schema=SCHEMA), Tally()).kept
    settings = CleanSettings()
    whole, cut = (
        score_documents(pa.array([text]), settings.gopher_quality.stop_words, settings.fineweb.short_line_characters)
        for text in (page["text"], kept["text"][0].as_py())
    )
    assert (whole["words"][0], cut["words"][0]) == (54, 45)
    after = ("characters", "terminal_lines", "short_lines", "duplicate_characters", "newlines_per_word")
    for name in SCORE_COLUMNS:
        assert kept[name][0].as_py() == (cut if name in after else whole)[name][0], name
