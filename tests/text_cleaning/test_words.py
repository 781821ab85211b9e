"""The compiled splitter and a plain one agree on every text."""

import gzip
import json

from hypothesis import example, given
from hypothesis import strategies as st
from reference_words import reference_words

from pipeline_lib.text_cleaning.words import hash_words, split_words

characters = st.one_of(
    st.sampled_from("ab1,.'’-/@:_()[] \n漢ไ\u0301é…=#\U0001f600\U000e0101"), st.characters(exclude_categories=["Cs"])
)


def test_words_of_a_line_of_everything():
    text = "Don't call os.path.join(a, 3.14) — 1,000 ways... see (https://a.b/c?d=e#f). 漢字 naïve well-known ____ end."
    assert split_words(text) == [
        "Don't", "call", "os.path.join", "(", "a", ",", "3.14", ")", "—", "1,000", "ways", "...", "see", "(",
        "https://a.b/c?d=e#f", ")", ".", "漢", "字", "naïve", "well-known", "____", "end", ".",
    ]  # fmt: skip


@given(st.text(characters, max_size=40))
@example("a://")
@example("://a")
@example("1,")
@example("a'")
@example("\U0010ffff\U0010ffff")
def test_compiled_and_plain_splitter_agree(text):
    assert split_words(text) == reference_words(text)


def test_both_splitters_agree_on_genuine_text(shared_data):
    with gzip.open(shared_data / "pretrain_text" / "c4_demo.jsonl.gz") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            assert split_words(text) == reference_words(text)


def test_different_words_have_different_hashes():
    words = [f"{stem}{number}" for stem in ("a", "é", "漢", "") for number in range(5000)]
    assert len(set(hash_words(words).tolist())) == len(words)
