"""The derived sets: what a record says is true, and nothing but the name decides what it says."""

import random
import re
from collections import Counter

import pytest

from pipeline_lib.sources.base import Dropped
from pipeline_lib.sources.python_docs.chat import chat_examples, parameters_answer
from pipeline_lib.sources.python_docs.choices import choice_questions
from pipeline_lib.sources.python_docs.domain import evaluation_signatures, training_signatures
from pipeline_lib.sources.python_docs.harvest import CatalogItem
from pipeline_lib.sources.python_docs.preference import described_pairs, evaluation_pairs, training_pairs
from pipeline_lib.sources.python_docs.questions import PARAMETERS, WHAT, WHICH, fill
from pipeline_lib.sources.python_docs.source import BEYOND, limited
from pipeline_lib.sources.python_docs.splits import HELD_OUT_SHARE, SHARES, is_held_out, split_of


def made_up_items(count: int) -> list[CatalogItem]:
    draw = random.Random(7)
    words = ("return", "read", "every", "file", "row", "tree", "node", "value", "list", "table", "index", "socket", "a")
    items = []
    for number in range(count):
        module = f"package.module_{number % (count // 8)}"
        kind = draw.choice(("function", "method", "class", "property"))
        short = f"thing_{number}"
        name = f"{module}.{'Owner.' if kind in ('method', 'property') else ''}{short}"
        parameters = tuple(f"p{index}" for index in range(draw.randrange(10))) if kind in ("function", "method") else ()
        signature = f"class {short}" if kind == "class" else f"def {short}({', '.join(parameters)})"
        summary = f"Do {number} {' '.join(draw.choices(words, k=draw.randrange(3, 24)))}."
        items.append(CatalogItem(name, module, kind, signature, parameters, summary, number))
    return items


ITEMS = made_up_items(1200)
BY_NAME = {item.name: item for item in ITEMS}
BY_SUMMARY = {item.summary: item for item in ITEMS}


def kept(records) -> list[dict]:
    return [record for record in records if not isinstance(record, Dropped)]


def test_splits_have_their_shares_and_depend_on_the_name_alone():
    names = [f"package.module_{number}.thing" for number in range(40_000)]
    counted = Counter(map(split_of, names))
    for split, share in SHARES:
        assert counted[split] / len(names) == pytest.approx(share / 1000, rel=0.1)
    assert sum(share for _, share in SHARES) == 1000
    assert sum(map(is_held_out, names)) / len(names) == pytest.approx(HELD_OUT_SHARE / 1000, rel=0.1)
    assert [split_of(name) for name in reversed(names)] == [split_of(name) for name in names][::-1]
    assert (split_of("json.dumps"), split_of("json.loads"), split_of("os.path.join")) == ("sft", "preference", "text")


def test_choice_questions_have_four_different_choices_and_one_right_answer():
    questions = kept(choice_questions(ITEMS))
    assert len(questions) > 1000
    for question in questions:
        item = BY_NAME[question["id"]]
        assert len(set(question["choices"])) == 4
        assert question["choices"][question["answer"]] == item.summary
        assert item.name in question["question"]
        for place, choice in enumerate(question["choices"]):
            assert place == question["answer"] or BY_SUMMARY[choice].module != item.module


def test_each_position_is_right_equally_often_and_in_no_fixed_order():
    answers = [question["answer"] for question in kept(choice_questions(ITEMS))]
    for start in range(0, len(answers) - 3, 4):
        assert sorted(answers[start : start + 4]) == [0, 1, 2, 3]
    assert len({tuple(answers[start : start + 4]) for start in range(0, len(answers) - 3, 4)}) == 24


def test_length_tells_nothing_about_which_choice_is_right():
    """Each rank of length, from shortest to longest, is right a quarter of the time (binomial, four sigma)."""
    questions = [q for q in kept(choice_questions(ITEMS)) if len({len(choice) for choice in q["choices"]}) == 4]
    ranks = Counter(
        sorted(question["choices"], key=len).index(question["choices"][question["answer"]]) for question in questions
    )
    for rank in range(4):
        assert abs(ranks[rank] - len(questions) / 4) < 4 * (len(questions) * 3 / 16) ** 0.5


def test_choices_are_of_similar_length():
    spreads = []
    for question in kept(choice_questions(ITEMS)):
        lengths = [len(choice) for choice in question["choices"]]
        spreads.append((max(lengths) - min(lengths)) / max(lengths))
    assert sorted(spreads)[len(spreads) // 2] < 0.05 and sorted(spreads)[len(spreads) * 99 // 100] < 0.4


def test_too_few_descriptions_of_similar_length_drop_the_question():
    assert list(choice_questions(ITEMS[:2])) == [Dropped("fewer than three descriptions of similar length")] * 2


def test_chat_examples_tell_the_truth_in_many_wordings():
    by_family = Counter()
    wordings = set()
    for record in chat_examples(ITEMS):
        name, family = record["id"].split("#")
        item = BY_NAME[name]
        by_family[family] += 1
        texts = {"what": WHAT, "which": WHICH, "parameters": PARAMETERS}[family]
        wordings |= {wording for wording in texts if fill(wording, item) == record["instruction"]}
        if family == "what":
            assert record["output"] == item.summary and record["input"] == ""
        elif family == "which":
            assert record["output"] == f"`{name}`" and item.summary in record["instruction"]
        else:
            assert record["input"] == item.signature
            assert re.findall(r"`(\w+)`", record["output"])[1:] == list(item.parameters)
            count = re.search(r"takes (\w+) parameter", record["output"])[1]
            assert count == str(len(item.parameters) or "no")
    assert by_family["what"] == len(ITEMS) and by_family["which"] > 300 and by_family["parameters"] > 150
    assert wordings == {*WHAT, *WHICH, *PARAMETERS}


def test_starred_parameters_keep_their_stars():
    item = CatalogItem("m.f", "m", "function", "def f(a, *b, **c)", ("a", "*b", "**c"), "S.", 0)
    assert parameters_answer(item) == "`f` takes 3 parameters: `a`, `*b` and `**c`."


def test_evaluation_asks_in_the_wordings_of_the_chat_examples():
    trained = {record["id"].removesuffix("#what"): record["instruction"] for record in chat_examples(ITEMS)}
    for record in kept(choice_questions(ITEMS)):
        assert record["question"] == trained[record["id"]]
    for record in kept(evaluation_pairs(ITEMS)):
        assert record["prompt"] == trained[record["id"]]


def test_the_rejected_description_is_a_neighbours():
    pairs = [pair for pair in described_pairs(ITEMS) if not isinstance(pair, Dropped)]
    assert len(pairs) > 1000
    for right, wrong in pairs:
        assert right.name != wrong.name and right.module == wrong.module
        owners = [item for item in ITEMS if item.owner == right.owner]
        assert wrong in owners or len(owners) == 1
    assert kept(training_pairs(ITEMS)) == [
        {
            "prompt": [{"role": "user", "content": record["prompt"]}],
            "chosen": [{"role": "assistant", "content": record["chosen"]}],
            "rejected": [{"role": "assistant", "content": record["rejected"]}],
            "id": record["id"],
        }
        for record in kept(evaluation_pairs(ITEMS))
    ]


def test_an_item_alone_in_its_module_makes_no_pair():
    assert list(training_pairs(ITEMS[:1])) == [Dropped("no other item of its split in its class or module")]


def test_domain_records_show_signature_and_place_and_are_worded_alike_in_training_and_evaluation():
    trained, asked = kept(training_signatures(ITEMS)), kept(evaluation_signatures(ITEMS))
    assert [{**record, "input": ""} for record in asked] == trained
    for record in asked:
        item = BY_NAME[record["id"]]
        assert record["instruction"].endswith(f"`{item.owner}`.\n\n{item.signature}")
        assert record["output"] == item.summary and record["output"] not in record["instruction"]


def test_a_limit_keeps_the_first_shuffles_them_and_accounts_for_the_rest():
    records = [{"id": str(number)} for number in range(100)]
    result = list(limited([*records[:50], Dropped("odd"), *records[50:]], 60, "key"))
    assert sorted(int(record["id"]) for record in result[:60]) == list(range(60))
    assert result[:60] != records[:60]
    assert result[60:] == [Dropped(BEYOND, documents=40), Dropped("odd")]
