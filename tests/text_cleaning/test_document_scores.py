"""Verdicts equal datatrove's, rule by rule, when both split words alike."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.word_tokenizers import WordTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.text_cleaning.document_scores import SCORE_COLUMNS, score_documents
from pipeline_lib.text_cleaning.normalise import normalise
from pipeline_lib.text_cleaning.rules import KEPT, active_rules, first_broken
from pipeline_lib.text_cleaning.words import split_words


class OurWords(WordTokenizer):
    """Gives datatrove our words, so that only the rules are compared (its English splitter, spaCy, is another one)."""

    def word_tokenize(self, text):
        return split_words(text)

    def sent_tokenize(self, text):
        raise NotImplementedError

    def span_tokenize(self, text):
        raise NotImplementedError


# datatrove's reasons in the order in which its filters check them, which is the order of our rules.
REASONS = {
    "gopher_quality": [
        "gopher_short_doc", "gopher_long_doc", "gopher_below_avg_threshold", "gopher_above_avg_threshold",
        "gopher_too_many_hashes", "gopher_too_many_ellipsis", "gopher_too_many_bullets", "gopher_too_many_end_ellipsis",
        "gopher_below_alpha_threshold", "gopher_enough_stop_words",
    ],
    "gopher_repetition": [
        "dup_para_frac", "dup_para_char_frac", "dup_line_frac", "dup_line_char_frac",
        *(f"top_{n}_gram" for n in (2, 3, 4)), *(f"duplicated_{n}_n_grams" for n in range(5, 11)),
    ],
    "fineweb": ["line_punct_ratio", "short_line_ratio", "char_dup_ratio", "list_ratio"],
}  # fmt: skip


@pytest.fixture(scope="module")
def oracles():
    words = OurWords()
    return {
        "gopher_quality": GopherQualityFilter(language=words),
        "gopher_repetition": GopherRepetitionFilter(language=words),
        "fineweb": FineWebQualityFilter(language=words),
    }


def scores_of(texts):
    defaults = CleanSettings()
    return score_documents(
        pa.array(texts, pa.large_string()), defaults.gopher_quality.stop_words, defaults.fineweb.short_line_characters
    )


def our_reasons(texts, group):
    """datatrove's word for the first rule of the group that each text breaks, None where it breaks none."""
    settings = CleanSettings(quality_rules=[group], language={"keep": []}, contamination={"enabled": False})
    rules = [rule for rule in active_rules(settings) if rule.name.startswith(group)]
    assert len(rules) == len(REASONS[group])
    verdicts = first_broken(scores_of(texts), rules)
    return [None if verdict == KEPT else REASONS[group][verdict] for verdict in verdicts.tolist()]


def their_reason(oracle, text):
    verdict = oracle.filter(Document(text=text, id="0"))
    return None if verdict is True else verdict[1]


@pytest.fixture(scope="module")
def genuine_texts(shared_data):
    texts = []
    for path in ("pretrain_text/c4_demo.jsonl.gz", "quality/dclm_agreement_data.jsonl.gz"):
        with gzip.open(shared_data / path) as lines:
            texts += [normalise(json.loads(line)["text"]) for line in lines]
    with gzip.open(shared_data / "webdocs/longhorn_docs.jsonl.gz") as lines:
        texts += [normalise(json.loads(line)["text"])[:4000] for line in list(lines)[:200]]
    return [normalise(text) for text in texts if text]


@pytest.mark.parametrize("group", sorted(REASONS))
def test_verdicts_and_reasons_on_genuine_text_are_datatroves(group, oracles, genuine_texts):
    theirs = [their_reason(oracles[group], text) for text in genuine_texts]
    assert our_reasons(genuine_texts, group) == theirs
    assert len(set(theirs)) >= 4, "the sample must exercise several rules"


small_vocabulary = st.lists(
    st.sampled_from(
        ["the", "of", "to be", "cat", "#", "...", "…", "•", "-", "\n", "\n\n", "a.", "12", "naïve?", "漢字。", "(x)"]
    ),
    min_size=1,
    max_size=150,
).map(" ".join)


def joining_hides_a_difference(words):
    """Whether two n-grams of different words are the same text once their words are joined without spaces."""
    for n in range(5, 11):
        ngrams = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
        if len({"".join(ngram) for ngram in ngrams}) != len(ngrams):
            return True
    return False


@settings(max_examples=150, deadline=None)
@given(small_vocabulary)
def test_verdicts_on_random_repetitive_text_are_datatroves(oracles, text):
    text = normalise(text.replace(" \n", "\n").replace("\n ", "\n"))
    if not text:
        return
    if joining_hides_a_difference(split_words(text)):
        return  # the documented difference: datatrove joins the words of an n-gram before it compares
    for group, oracle in oracles.items():
        if group == "gopher_quality" and not any(character.isalnum() for character in text):
            continue  # datatrove divides by zero words
        assert our_reasons([text], group) == [their_reason(oracle, text)], group


def test_every_column_is_filled_and_an_empty_text_scores_zero():
    columns = scores_of(["", "One line that ends. Another line that ends."])
    assert tuple(columns) == SCORE_COLUMNS
    assert all(values.dtype == np.float64 and values[0] == 0 for values in columns.values())
    assert columns["characters"][1] == 43


def test_scores_do_not_depend_on_the_batch_a_document_is_in(genuine_texts):
    together = scores_of(genuine_texts[:60])
    for at in (0, 17, 59):
        alone = scores_of([genuine_texts[at]])
        assert {name: values[at] for name, values in together.items()} == {name: v[0] for name, v in alone.items()}
    sliced = score_documents(pa.array(genuine_texts[:60]).slice(20, 5), CleanSettings().gopher_quality.stop_words, 30)
    assert sliced["characters"].tolist() == together["characters"][20:25].tolist()


def test_nulls_are_refused():
    with pytest.raises(ValueError, match="null"):
        score_documents(pa.array(["a", None]), ["the"], 30)
