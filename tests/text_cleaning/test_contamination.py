"""Any 13 words in a row of an evaluation set are found, whatever their case, punctuation and layout."""

import json
import random
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.stage import UserError
from pipeline_lib.text_cleaning.contamination import NOBODY, build_index

WORDS = [f"w{number}" for number in range(2000)]


def write_set(folder, name, records):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


@pytest.fixture
def evaluation(tmp_path):
    rng = random.Random(7)
    questions = [" ".join(rng.choices(WORDS, k=40)) for _ in range(50)]
    choices = [[" ".join(rng.choices(WORDS, k=20)) for _ in range(4)] for _ in range(50)]
    records = [
        {"id": f"q{i}", "question": q, "choices": c} for i, (q, c) in enumerate(zip(questions, choices, strict=True))
    ]
    return records, write_set(tmp_path, "questions", records)


def test_a_planted_stretch_is_found_and_named_in_any_case_and_layout(evaluation):
    records, path = evaluation
    index = build_index([path], 13)
    rng = random.Random(3)
    texts = []
    for record in records:
        stretch = record["choices"][2].split()[5:18]
        texts.append(
            "Some words before.\n\n"
            + ",\n - ".join(stretch).upper()
            + "! And after. "
            + " ".join(rng.choices(WORDS, k=30))
        )
    counts, owners = index.matches(pa.array(texts))
    assert counts.tolist() == [1] * len(texts)
    assert [index.records[owner] for owner in owners] == [f"eval/questions.jsonl:{i + 1}" for i in range(len(texts))]


def test_twelve_words_are_not_enough_and_fields_are_not_joined(evaluation):
    records, path = evaluation
    index = build_index([path], 13)
    short = " ".join(records[0]["question"].split()[:12])
    joined = " ".join(records[0]["question"].split()[-7:] + records[0]["choices"][0].split()[:7])
    counts, owners = index.matches(pa.array([short, joined, "", "q0"]))
    assert counts.tolist() == [0, 0, 0, 0] and set(owners.tolist()) == {NOBODY}


def brute_force(texts, evaluation_texts, n):
    def ngrams(text):
        words = re.findall(r"\w+", text.lower())
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    known = {gram for text in evaluation_texts for gram in ngrams(text)}
    return [sum(gram in known for gram in ngrams(text)) for text in texts]


sentences = st.lists(st.sampled_from(["a", "b", "C", "é", "É", "d1", "x_y", ",", ".", "'", "\n"]), max_size=40).map(
    " ".join
)


@settings(deadline=None, max_examples=100)
@given(st.lists(sentences, min_size=1, max_size=4), st.lists(sentences, min_size=1, max_size=4))
def test_counts_equal_brute_force(tmp_path_factory, texts, evaluation_texts):
    path = write_set(tmp_path_factory.mktemp("sets"), "s", [{"id": 1, "deep": [{"text": t}]} for t in evaluation_texts])
    counts, _ = build_index([path], 4).matches(pa.array(texts))
    assert counts.tolist() == brute_force(texts, evaluation_texts, 4)


def test_genuine_questions_are_found_in_pages_that_quote_them(shared_data):
    path = shared_data / "gsm8k" / "train.jsonl"
    index = build_index([path], 13)
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()[:300]]
    pages = [f"<p>{record['question']}</p> is a nice riddle" for record in records]
    counts, _ = index.matches(pa.array(pages))
    long_enough = np.array([len(re.findall(r"\w+", record["question"])) >= 13 for record in records])
    assert (counts[long_enough] > 0).all()
    quotes = shared_data / "webdocs" / "us_gov_posts.jsonl.gz"
    import gzip

    with gzip.open(quotes) as lines:
        others, _ = index.matches(pa.array([json.loads(line)["text"] for line in lines]))
    assert (others > 0).sum() == 0


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"question": "fine"}\n{"question": \n')
    with pytest.raises(UserError, match=r"broken.jsonl:2 is not JSON"):
        build_index([path], 13)


def test_no_evaluation_sets_match_nothing():
    counts, _ = build_index([], 13).matches(pa.array(["any text " * 50]))
    assert counts.tolist() == [0]
