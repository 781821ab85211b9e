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
from pipeline_lib.text_cleaning.contamination import build_index
from pipeline_lib.text_cleaning.personal_data import PersonalData

WORDS = [f"w{number}" for number in range(2000)]


def write_set(folder, name, records):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def replaced_by(personal_data):
    return lambda texts: personal_data.replace_batch(texts)[0]


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
    matches = index.matches(pa.array(texts))
    assert matches.counts.tolist() == [1] * len(texts)
    assert index.first_record(matches) == [f"eval/questions.jsonl:{i + 1}" for i in range(len(texts))]
    documents, first = index.documents_per_record(matches)
    assert documents.tolist() == [1] * len(records) and first.tolist() == list(range(len(records)))


@pytest.mark.parametrize("replacement", ["tag", "stable"])
def test_a_record_with_personal_data_is_found_before_and_after_it_was_replaced(tmp_path, replacement):
    question = "Write to ada.lovelace@engines.org about all of the seven wheels before Tuesday at nine sharp"
    path = write_set(tmp_path, "letters", [{"id": "a", "question": question}, {"id": "b", "question": "w1 w2"}])
    personal_data = PersonalData(["email"], replacement, seed=5)
    texts = pa.array([question, "nothing of it"], pa.large_string())
    replaced, _ = personal_data.replace_batch(texts)
    assert replaced[0] != texts[0]
    index = build_index([path], 13, [replaced_by(personal_data)])
    for form in (texts, replaced):
        matches = index.matches(form)
        assert matches.counts[0] > 0 and matches.counts[1] == 0
        assert index.first_record(matches) == ["eval/letters.jsonl:1", None]
    assert build_index([path], 13).matches(replaced).counts[0] == 0
    assert index.ngrams.tolist() == [matches.counts[0], 0]


def test_a_record_that_is_too_short_once_personal_data_is_replaced_cannot_be_found(tmp_path):
    short = "Write to ada.lovelace@engines.org about the seven wheels before Tuesday"
    path = write_set(tmp_path, "letters", [{"question": short}, {"question": short + " at nine sharp please"}])
    assert build_index([path], 11).ngrams.tolist() == [2, 6]
    assert build_index([path], 11, [replaced_by(PersonalData(["email"]))]).ngrams.tolist() == [0, 3]


def test_twelve_words_are_not_enough_and_fields_are_not_joined(evaluation):
    records, path = evaluation
    index = build_index([path], 13)
    short = " ".join(records[0]["question"].split()[:12])
    joined = " ".join(records[0]["question"].split()[-7:] + records[0]["choices"][0].split()[:7])
    matches = index.matches(pa.array([short, joined, "", "q0"]))
    assert matches.counts.tolist() == [0, 0, 0, 0] and index.first_record(matches) == [None] * 4


def ngrams(text, n):
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def brute_force(texts, evaluation_texts, n):
    known = {gram for text in evaluation_texts for gram in ngrams(text, n)}
    return [sum(gram in known for gram in ngrams(text, n)) for text in texts]


def test_every_planted_stretch_is_found_in_a_large_corpus(tmp_path):
    rng = random.Random(11)
    records = [{"question": " ".join(rng.choices(WORDS, k=rng.randint(13, 60)))} for _ in range(2000)]
    index = build_index([write_set(tmp_path, "many", records)], 13)
    texts, planted = [], []
    for _ in range(5000):
        words = rng.choices(WORDS, k=rng.randint(0, 200))
        planted.append(rng.randrange(len(records)) if rng.random() < 0.5 else None)
        if planted[-1] is not None:
            asked = records[planted[-1]]["question"].split()
            start, place = rng.randint(0, len(asked) - 13), rng.randint(0, len(words))
            words[place:place] = asked[start : start + 13]
        texts.append(rng.choice([" ", "\n", " -- "]).join(words))
    matches = index.matches(pa.array(texts))
    names = [None if record is None else f"eval/many.jsonl:{record + 1}" for record in planted]
    assert index.first_record(matches) == names and matches.counts.sum() == sum(name is not None for name in names)
    documents, _ = index.documents_per_record(matches)
    assert documents.tolist() == np.bincount([r for r in planted if r is not None], minlength=2000).tolist()


def test_a_stretch_that_many_records_have_makes_all_of_them_dirty(tmp_path):
    licence = " ".join(WORDS[:15])
    index = build_index([write_set(tmp_path, "s", [{"q": f"{licence} one"}, {"q": "other"}, {"q": licence}])], 13)
    documents, first = index.documents_per_record(index.matches(pa.array(["nothing", licence, licence + " two"])))
    assert documents.tolist() == [2, 0, 2] and first.tolist() == [1, -1, 1] and index.ngrams.tolist() == [4, 0, 3]


sentences = st.lists(st.sampled_from(["a", "b", "C", "é", "É", "d1", "x_y", ",", ".", "'", "\n"]), max_size=40).map(
    " ".join
)


@settings(deadline=None, max_examples=100)
@given(st.lists(sentences, min_size=1, max_size=4), st.lists(sentences, min_size=1, max_size=4))
def test_counts_equal_brute_force(tmp_path_factory, texts, evaluation_texts):
    path = write_set(tmp_path_factory.mktemp("sets"), "s", [{"id": 1, "deep": [{"text": t}]} for t in evaluation_texts])
    index = build_index([path], 4)
    matches = index.matches(pa.array(texts))
    assert matches.counts.tolist() == brute_force(texts, evaluation_texts, 4)
    documents, first = index.documents_per_record(matches)
    shared = [[found > 0 for found in brute_force(texts, [asked], 4)] for asked in evaluation_texts]
    assert documents.tolist() == [sum(row) for row in shared]
    assert first.tolist() == [row.index(True) if any(row) else -1 for row in shared]
    grams = [len(set(ngrams(asked, 4))) for asked in evaluation_texts]
    assert index.ngrams.tolist() == grams


def test_genuine_questions_are_found_in_pages_that_quote_them(shared_data):
    path = shared_data / "gsm8k" / "train.jsonl"
    index = build_index([path], 13)
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()[:300]]
    pages = [f"<p>{record['question']}</p> is a nice riddle" for record in records]
    counts = index.matches(pa.array(pages)).counts
    long_enough = np.array([len(re.findall(r"\w+", record["question"])) >= 13 for record in records])
    assert (counts[long_enough] > 0).all()
    quotes = shared_data / "webdocs" / "us_gov_posts.jsonl.gz"
    import gzip

    with gzip.open(quotes) as lines:
        others = index.matches(pa.array([json.loads(line)["text"] for line in lines])).counts
    assert others.sum() == 0


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"question": "fine"}\n{"question": \n')
    with pytest.raises(UserError, match=r"broken.jsonl:2 is not JSON"):
        build_index([path], 13)


def test_no_evaluation_sets_match_nothing():
    assert build_index([], 13).matches(pa.array(["any text " * 50])).counts.tolist() == [0]
