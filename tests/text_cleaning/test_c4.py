"""The C4 rules keep the lines and the documents that datatrove's filter keeps."""

import gzip
import json

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter
from datatrove.utils.word_tokenizers import WordTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.config.clean import C4Settings
from pipeline_lib.text_cleaning.c4 import apply_c4, count_sentences
from pipeline_lib.text_cleaning.normalise import normalise


class OurSentences(WordTokenizer):
    """Gives datatrove our sentence counts, so that only the rules are compared."""

    def word_tokenize(self, text):
        raise NotImplementedError

    def sent_tokenize(self, text):
        raise NotImplementedError

    def span_tokenize(self, text):
        return [(0, 0)] * (count_sentences(text) if text else 0)


def theirs(text, terminal_punctuation=True):
    document = Document(text=text, id="0")
    oracle = C4QualityFilter(language=OurSentences(), filter_no_terminal_punct=terminal_punctuation)
    return document.text if oracle.filter(document) is True else None


def ours(text, terminal_punctuation=True):
    settings = C4Settings(terminal_punctuation=terminal_punctuation)
    result = apply_c4(text, settings)
    removed = result.lorem_ipsum or result.curly_bracket or result.sentences < settings.min_sentences
    return None if removed else result.text


@pytest.mark.parametrize("terminal_punctuation", [True, False])
def test_genuine_pages_keep_the_same_lines(shared_data, terminal_punctuation):
    kept = 0
    for path in ("pretrain_text/c4_demo.jsonl.gz", "webdocs/us_gov_posts.jsonl.gz"):
        with gzip.open(shared_data / path) as lines:
            for line in list(lines)[:300]:
                text = normalise(json.loads(line)["text"])
                assert ours(text, terminal_punctuation) == theirs(text, terminal_punctuation)
                kept += ours(text, terminal_punctuation) is not None
    assert 100 < kept < 600


pieces = st.sampled_from(
    ["It is so.", "Is it so?", 'He said "no."', "use of cookies is on.", "Enable JavaScript now.",
     "Lorem ipsum dolor sit.", "a { b }.", "[12]", "[edit]", "two words.", "to be continued...", "x" * 1001, "  ", "\n"]
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.lists(pieces, max_size=25).map(" ".join))
def test_random_pages_keep_the_same_lines(text):
    for terminal_punctuation in (True, False):
        assert ours(text, terminal_punctuation) == theirs(text, terminal_punctuation)


@pytest.mark.parametrize(
    ("line", "sentences"),
    [("One. Two! Three?", 3), ("No end", 1), ("Ver. 3.14 is out.", 2), ('"Go." She went', 2), ("はい。 いいえ。", 2)],
)
def test_sentences_are_counted_by_their_ends(line, sentences):
    assert count_sentences(line) == sentences
