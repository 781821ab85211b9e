"""The formatters of reasoning in words and of questions with choices, and genuine records of their data sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_formatters import FORMAT_HANDLERS, MalformedRecord
from dataset_formatters.choices import choices_of, lettered, question_with, right_choice
from genuine_records import messages_of_all, read

WHERE = "reasoning/set.jsonl:3"
HUB = {
    "question": "Which gas do plants take in?",
    "choices": {"text": ["oxygen", "carbon dioxide", "helium"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
LISTED = [{"text": "oxygen", "label": "A"}, {"text": "carbon dioxide", "label": "B"}, {"text": "helium", "label": "C"}]
LOGIQA = {
    "context": "All cats are animals. Tom is a cat.",
    "question": "What follows?",
    "options": ["Tom is a dog.", "Tom is an animal.", "Nothing."],
    "answer": 1,
}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def made(name, record):
    return FORMAT_HANDLERS[name](record, WHERE)["messages"]


def refused(name, record):
    with pytest.raises(MalformedRecord) as refusal:
        FORMAT_HANDLERS[name](record, WHERE)
    assert str(refusal.value).startswith(WHERE + ": ")
    return refusal.value.reason


def without(record, name):
    return {key: value for key, value in record.items() if key != name}


def test_openorca_system_prompts_may_be_empty():
    record = {"id": "flan.1", "system_prompt": "Be long. ", "question": "q\n", "response": " r"}
    assert made("openorca", record) == [{"role": "system", "content": "Be long."}, user("q"), assistant("r")]
    for absent in ("", "  ", None):
        assert made("openorca", {**record, "system_prompt": absent}) == [user("q"), assistant("r")]
    assert made("openorca", without(record, "system_prompt")) == [user("q"), assistant("r")]
    assert refused("openorca", {**record, "system_prompt": ["s"]}) == "wrong_type"
    assert refused("openorca", {**record, "response": ""}) == "empty_field"
    assert refused("openorca", without(record, "question")) == "missing_field"


def test_cot_collection_gives_the_reason_then_the_answer_on_a_marked_line():
    record = {"source": "Is it hot?", "rationale": "It is July.\nSo it is hot. ", "target": " yes", "task": "t"}
    assert made("cot-collection", record) == [user("Is it hot?"), assistant("It is July.\nSo it is hot.\n#### yes")]
    assert made("cot-collection", {**record, "target": "one\ntwo"})[1]["content"].endswith("hot.\n#### one\ntwo")
    assert refused("cot-collection", {**record, "target": "a #### b"}) == "mark_in_answer"
    assert refused("cot-collection", {**record, "rationale": " "}) == "empty_field"
    assert refused("cot-collection", without(record, "target")) == "missing_field"
    assert refused("cot-collection", {**record, "target": ["yes"]}) == "wrong_type"


def test_arc_reads_three_layouts_alike():
    expected = [
        user("Which gas do plants take in?\n\nA. oxygen\nB. carbon dioxide\nC. helium"),
        assistant("B. carbon dioxide"),
    ]
    original = {"id": "1", "question": {"stem": HUB["question"], "choices": LISTED}, "answerKey": "B"}
    for record in (HUB, {**HUB, "choices": LISTED}, original):
        assert FORMAT_HANDLERS["arc"](record, WHERE) == {"messages": expected, "tools": None}


def test_arc_keeps_labels_that_are_numbers():
    record = {**HUB, "choices": {"text": ["hot", "cold"], "label": ["1", "2"]}, "answerKey": "2"}
    assert made("arc", record) == [user("Which gas do plants take in?\n\n1. hot\n2. cold"), assistant("2. cold")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answerKey": "D"}, "answer_is_no_choice"),
        ({"answerKey": "2"}, "answer_is_no_choice"),
        ({"answerKey": ""}, "empty_field"),
        ({"answerKey": 2}, "wrong_type"),
        ({"choices": {"text": ["a", "b"], "label": ["A", "A"]}}, "repeated_label"),
        ({"choices": {"text": ["a", "b"], "label": ["A", "A "]}}, "repeated_label"),
        ({"choices": {"text": ["a", "b"], "label": ["A", "B", "C"]}}, "labels_do_not_match_choices"),
        ({"choices": {"text": ["a"], "label": ["B"]}}, "too_few_choices"),
        ({"choices": LISTED[:1]}, "too_few_choices"),
        ({"choices": {"text": [], "label": []}}, "empty_field"),
        ({"choices": {"text": ["a", "b"]}}, "missing_field"),
        ({"choices": {"text": ["a", " "], "label": ["A", "B"]}}, "empty_choice"),
        ({"choices": [*LISTED, {"label": "D"}]}, "empty_choice"),
        ({"choices": [*LISTED, {"text": "d"}]}, "missing_field"),
        ({"choices": [*LISTED, "d"]}, "wrong_type"),
        ({"choices": {"text": ["a", 2], "label": ["A", "B"]}}, "wrong_type"),
        ({"choices": {"text": ["a", "b"], "label": ["A", "first"]}}, "unknown_label"),
        ({"choices": {"text": ["same", "same ", "c"], "label": ["A", "B", "C"]}}, "ambiguous_answer"),
        ({"choices": "A. a B. b"}, "wrong_type"),
        ({"choices": None}, "missing_field"),
        ({"question": {"stem": "q"}}, "missing_field"),
        ({"question": {"choices": LISTED}}, "missing_field"),
        ({"question": ["q"]}, "wrong_type"),
        ({"question": None}, "missing_field"),
    ],
)
def test_arc_refuses_by_name(change, reason):
    assert refused("arc", {**HUB, **change}) == reason


def test_wrong_choices_may_repeat_each_other():
    record = {**HUB, "choices": {"text": ["same", "right", "same"], "label": ["A", "B", "C"]}}
    assert made("arc", record)[1] == assistant("B. right")


def test_logiqa_reads_every_version_alike():
    asked = (
        "All cats are animals. Tom is a cat.\n\nWhat follows?\n\nA. Tom is a dog.\nB. Tom is an animal.\nC. Nothing."
    )
    text, question, options = LOGIQA["context"], LOGIQA["question"], LOGIQA["options"]
    for record in (
        LOGIQA,
        {"context": text, "question": question, "options": options, "label": "b"},
        {"context": text, "question": question, "answers": options, "label": 1},
        {"context": text, "question": question, "choices": options, "answer": "B"},
        {"context": text, "query": question, "options": options, "correct_option": 1},
        {"id": 2, "text": text, "question": question, "options": options, "answer": 1, "type": {"x": True}},
        {**LOGIQA, "options": ["A.Tom is a dog.", "B. Tom is an animal.", "C.Nothing."]},
        {**LOGIQA, "options": ["(A) Tom is a dog.", "(B) Tom is an animal.", "(C) Nothing."]},
    ):
        assert made("logiqa", record) == [user(asked), assistant("B. Tom is an animal.")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": 3}, "answer_is_no_choice"),
        ({"answer": -1}, "answer_is_no_choice"),
        ({"answer": 10**30}, "answer_is_no_choice"),
        ({"answer": "1"}, "answer_is_no_choice"),
        ({"answer": "D"}, "answer_is_no_choice"),
        ({"answer": True}, "wrong_type"),
        ({"answer": 1.0}, "wrong_type"),
        ({"answer": None}, "missing_field"),
        ({"label": "a"}, "ambiguous_layout"),
        ({"text": "t"}, "ambiguous_layout"),
        ({"options": ["one"]}, "too_few_choices"),
        ({"options": ["x"] * 27}, "too_many_choices"),
        ({"options": ["A.one", "b.two", "C.three"]}, "mixed_labels"),
        ({"options": ["A.one", "The B.two", 3]}, "mixed_labels"),
        ({"options": ["one", ""]}, "empty_choice"),
        ({"options": ["one", None]}, "wrong_type"),
        ({"options": ["one", "two", "two"]}, "ambiguous_answer"),
        ({"options": {"A": "one"}}, "wrong_type"),
        ({"context": ""}, "empty_field"),
        ({"question": None}, "missing_field"),
    ],
)
def test_logiqa_refuses_by_name(change, reason):
    assert refused("logiqa", {**LOGIQA, **change}) == reason


def test_the_entailment_version_of_logiqa_is_another_task():
    record = {"label": "entailed", "major_premise": ["p"], "minor_premise": ["q"], "conclusion": "c"}
    assert refused("logiqa", record) == "entailment_record"


words = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=6)


@given(st.lists(words, min_size=2, max_size=26, unique=True), st.data())
def test_the_answer_is_the_line_of_the_right_choice(texts, data):
    labels = data.draw(st.permutations("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))[: len(texts)]
    choices = choices_of(labels, texts, WHERE)
    number = data.draw(st.integers(0, len(texts) - 1))
    right = right_choice(choices, labels[number], WHERE)
    assert right.text == texts[number]
    assert question_with("q", choices).split("\n\n")[1].split("\n")[number] == str(right)


@given(st.lists(words, min_size=2, max_size=26), st.sampled_from(["{}) {}", "{}.{}", "({}){}"]))
def test_letters_that_all_choices_bring_along_are_read_once(texts, look):
    brought = [look.format(chr(ord("A") + number), text) for number, text in enumerate(texts)]
    assert [choice.text for choice in lettered(brought, WHERE)] == texts
    with pytest.raises(MalformedRecord) as refusal:
        lettered([*brought[:-1], "other"], WHERE)
    assert refusal.value.reason == "mixed_labels"


def test_choices_may_begin_with_a_letter_that_is_not_theirs():
    texts = ["B. Franklin", "Aristotle", "(A) and (B)"]
    assert [str(choice) for choice in lettered(texts, WHERE)] == ["A. B. Franklin", "B. Aristotle", "C. (A) and (B)"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 30) | st.floats() | st.sampled_from(["", " ", "A", "B", "1", "a\nb"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "label", "stem", "choices"]), inner, max_size=3)
    ),
    max_leaves=8,
)
complete = {
    "openorca": {"system_prompt": "s", "question": "q", "response": "r"},
    "cot-collection": {"source": "q", "rationale": "r", "target": "t"},
    "arc": HUB,
    "logiqa": LOGIQA,
}


@given(st.sampled_from(sorted(complete)), st.data())
def test_any_value_of_any_field_is_formatted_or_refused(name, data):
    record = dict(complete[name])
    for field in data.draw(st.sets(st.sampled_from([*sorted(record), "label", "text"]), min_size=1)):
        record[field] = data.draw(json_values)
    try:
        messages = made(name, record)
    except MalformedRecord as refusal:
        assert refusal.reason.replace("_", "").isalpha()
        return
    assert [turn["role"] for turn in messages][-2:] == ["user", "assistant"]
    assert all(turn["content"] == turn["content"].strip() != "" for turn in messages)


@pytest.mark.parametrize(
    ("name", "file", "count", "refused"),
    [
        ("openorca", "hf_rows_quoted/openorca_rows.jsonl", 2, {}),
        ("arc", "arc/ARC-Easy-Dev.sample.jsonl", 3, {}),
        ("arc", "ai2_science_ndmc/AI2-Elementary-NDMC-Feb2016-Train.jsonl", 432, {}),
        ("arc", "ai2_science_ndmc/AI2-8thGr-NDMC-Feb2016-Train.jsonl", 293, {}),
        ("arc", "cot/CommonsenseQA_dev_rand_split.jsonl", 1215, {"ambiguous_answer": 6}),
        ("arc", "arc/arc_easy.part1.jsonl", 0, {"missing_field": 1188}),
        ("logiqa", "logiqa2/dev.jsonl", 1567, {"ambiguous_answer": 2}),
    ],
)
def test_genuine_records_are_kept_or_refused_for_a_known_reason(shared_data, name, file, count, refused):
    kept, reasons = messages_of_all(name, read(shared_data / file))
    assert (len(kept), dict(reasons)) == (count, refused)


def test_genuine_arc_answers_are_the_texts_that_the_key_names(shared_data):
    for file in ("arc/ARC-Easy-Dev.sample.jsonl", "cot/CommonsenseQA_dev_rand_split.jsonl"):
        records, _ = messages_of_all("arc", read(shared_data / file))
        for record, (question, answer) in records:
            texts = {choice["label"]: choice["text"].strip() for choice in record["question"]["choices"]}
            assert answer["content"] == f"{record['answerKey']}. {texts[record['answerKey']]}"
            assert question["content"].startswith(record["question"]["stem"].strip() + "\n\nA. ")


def test_genuine_logiqa2_answers_are_the_options_that_the_index_names(shared_data):
    kept, _ = messages_of_all("logiqa", read(shared_data / "logiqa2" / "dev.jsonl"))
    for record, (question, answer) in kept:
        assert answer["content"] == f"{'ABCD'[record['answer']]}. {record['options'][record['answer']].strip()}"
        asked = f"{record['text'].strip()}\n\n{record['question'].strip()}\n\n"
        assert question["content"].startswith(asked)
        assert question["content"].count("\n", len(asked)) >= 3


def test_genuine_logiqa_blocks_of_lines_become_questions(shared_data):
    """The original file: per question an empty line, the letter, context, question and four options "A.text"."""
    lines = read(shared_data / "logiqa" / "Eval.txt").split("\n")
    blocks = [lines[start + 1 : start + 8] for start in range(0, len(lines) - 7, 8)]
    records = [{"label": b[0], "context": b[1], "question": b[2], "options": b[3:]} for b in blocks]
    kept, reasons = messages_of_all("logiqa", records)
    assert (len(kept), dict(reasons)) == (634, {"ambiguous_answer": 3, "mixed_labels": 14})
    for record, (_, answer) in kept:
        right = record["options"]["abcd".index(record["label"].strip())]
        assert answer["content"].replace(". ", ".", 1).split() == right.split()


@pytest.mark.parametrize(
    "file", ["cot/flan_strategyqa_train.tsv", "cot/flan_aqua_train.tsv.gz", "cot/flan_creak_train.tsv.gz"]
)
def test_genuine_reasons_and_answers_can_be_told_apart_again(shared_data, file):
    """The lines hold a question, its answer and the reason, the fields of CoT-Collection in another layout."""
    rows = [line.split("\t") for line in read(shared_data / file).rstrip("\n").split("\n")]
    records = [{"source": row[0], "target": row[1], "rationale": row[2]} for row in rows]
    kept, reasons = messages_of_all("cot-collection", records)
    assert len(kept) == len(records) > 2000 and not reasons
    for record, (_, answer) in kept:
        rationale, _, target = answer["content"].rpartition("\n#### ")
        assert (rationale, target) == (record["rationale"].strip(), record["target"].strip())
