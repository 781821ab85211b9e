"""lm-eval asks our model the project's task files; every score is recomputed here from first principles."""

import json
import math
import re

import pytest
import torch

from pipeline_lib.config import PROJECT_ROOT
from pipeline_lib.config.task_files import TaskFile, read_task_file
from pipeline_lib.evaluation.harness import build_task, run_task
from pipeline_lib.stage import UserError

FOLDER = PROJECT_ROOT / "configs" / "eval_tasks"
QUESTIONS = [
    {
        "id": f"q{n}",
        "question": f"What does `f{n}` do?",
        "choices": [f"Return {n}.", "Raise an error é.", "Add", "Sort it"],
        "answer": n % 4,
    }
    for n in range(12)
]
PAIRS = [
    {"id": f"p{n}", "prompt": f"What is `x{n}`?", "chosen": f"A number, {n}.", "rejected": 'It\'s a "queue".'}
    for n in range(9)
]
DOCUMENTS = [{"id": f"d{n}", "text": "The sum of all elements. naïve 東京 " * (n + 1)} for n in range(6)]
ANSWERS = [{"id": f"a{n}", "instruction": f"def f(x, y={n})", "output": f"Return the value é {n}."} for n in range(7)]
SUMS = [
    {"id": f"s{n}", "question": f"Tom has {n} apples.", "answer": f"He has {n} = <<{n}={n}>>{n}\n#### 1,00{n}"}
    for n in range(5)
]


def log_likelihood(evaluated, context, continuation):
    """Sum of log probabilities of the tokens of `continuation`, by one plain forward pass."""
    first = evaluated.tokenizer(context, add_special_tokens=False)["input_ids"]
    whole = evaluated.tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    shared = next((i for i, (a, b) in enumerate(zip(first, whole, strict=False)) if a != b), len(first))
    with torch.no_grad():
        logits = evaluated.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(logits[i - 1, whole[i]].item() for i in range(shared, len(whole)))


def prompt(evaluated, text, chat, plain):
    return evaluated.apply_chat_template([{"role": "user", "content": text}]) if chat else plain.format(text)


@pytest.mark.parametrize("chat", [False, True])
def test_four_choice_accuracy_is_log_likelihood_per_byte(evaluated, chat):
    samples = run_task(evaluated, read_task_file(FOLDER, "python_choice"), QUESTIONS, chat, None)
    assert [sample.item for sample in samples] == [question["id"] for question in QUESTIONS]
    for sample, question in zip(samples, QUESTIONS, strict=True):
        start = prompt(evaluated, question["question"], chat, "Question: {}\nAnswer:")
        rates = [
            log_likelihood(evaluated, start, choice if chat else f" {choice}") / len(choice.encode())
            for choice in question["choices"]
        ]
        best = rates.index(max(rates))
        assert sample.score == float(best == question["answer"]) and sample.weight == 1.0
        assert sample.response == question["choices"][best]
        assert sample.target == question["choices"][question["answer"]]


@pytest.mark.parametrize("chat", [False, True])
def test_preference_is_a_two_choice_question(evaluated, chat):
    samples = run_task(evaluated, read_task_file(FOLDER, "preference"), PAIRS, chat, None)
    for sample, pair in zip(samples, PAIRS, strict=True):
        start = prompt(evaluated, pair["prompt"], chat, "Question: {}\nAnswer:")
        chosen, rejected = (
            log_likelihood(evaluated, start, pair[side] if chat else f" {pair[side]}") / len(pair[side].encode())
            for side in ("chosen", "rejected")
        )
        assert sample.score == float(chosen > rejected)
        assert sample.target == pair["chosen"]


def test_bits_per_byte_of_documents_counts_utf8_bytes_of_the_whole_text(evaluated):
    samples = run_task(evaluated, read_task_file(FOLDER, "heldout_docs"), DOCUMENTS[:2], False, None)
    for sample, document in zip(samples, DOCUMENTS, strict=False):
        text = document["text"]
        expected = log_likelihood(evaluated, text[0], text[1:])  # "T" is a token of its own here
        expected += log_likelihood(evaluated, evaluated.tokenizer.eos_token, text[0])
        size = len(text.encode())
        assert sample.weight == size
        assert sample.score == pytest.approx(-expected / math.log(2) / size, rel=1e-4)


def test_documents_are_the_same_for_chat_models_and_are_cut_to_the_configured_length(evaluated):
    task = read_task_file(FOLDER, "heldout_docs")
    assert run_task(evaluated, task, DOCUMENTS, True, 100) == run_task(evaluated, task, DOCUMENTS, False, 100)
    assert all(96 < sample.weight <= 100 for sample in run_task(evaluated, task, DOCUMENTS, True, 100)[3:])


@pytest.mark.parametrize("chat", [False, True])
def test_domain_scores_the_answer_alone(evaluated, chat):
    samples = run_task(evaluated, read_task_file(FOLDER, "domain"), ANSWERS, chat, None)
    for sample, record in zip(samples, ANSWERS, strict=True):
        start = prompt(evaluated, record["instruction"], chat, "Question: {}\nAnswer: ")
        size = len(record["output"].encode())
        expected = -log_likelihood(evaluated, start, record["output"]) / math.log(2) / size
        assert (sample.weight, sample.score) == (size, pytest.approx(expected, rel=1e-4))


@pytest.mark.parametrize("chat", [False, True])
def test_a_template_of_the_text_to_be_scored_scores_what_its_key_would(evaluated, chat):
    """Also a text that reads like a Python list."""
    domain, documents = read_task_file(FOLDER, "domain"), read_task_file(FOLDER, "heldout_docs")
    answers = [*ANSWERS, {"id": "list", "instruction": "def g()", "output": "[1]"}]
    made = domain.model_copy(update={"doc_to_target": "{{ output }}"})
    assert run_task(evaluated, made, answers, chat, None) == run_task(evaluated, domain, answers, chat, None)
    made = documents.model_copy(update={"doc_to_target": "{{ text }}"})
    assert run_task(evaluated, made, DOCUMENTS, chat, 100) == run_task(evaluated, documents, DOCUMENTS, chat, 100)


def test_a_template_that_makes_no_text_to_be_scored_is_a_user_error_that_names_the_record(evaluated):
    for name, records in (("domain", ANSWERS), ("heldout_docs", DOCUMENTS)):
        task = read_task_file(FOLDER, name).model_copy(update={"doc_to_target": "{{ id[:0] if '2' in id else id }}"})
        with pytest.raises(UserError, match=f"task {name}: item {records[2]['id']}: doc_to_target is not a text: ''"):
            run_task(evaluated, task, records, False, None)


class Answering:
    """The evaluated model, but with the given answers instead of generated ones."""

    def __init__(self, evaluated, answers):
        self._evaluated, self._answers, self.prompts = evaluated, answers, []

    def __getattr__(self, name):
        return getattr(self._evaluated, name)

    def generate_until(self, requests):
        self.prompts = [request.args[0] for request in requests]
        return self._answers


def test_arithmetic_compares_the_number_after_the_last_hashes(evaluated):
    answers = ["7\n#### 1000", "#### 3\n#### 1,001", "#### 1002.", "1003", "#### $1004 and more"]
    model = Answering(evaluated, answers)
    samples = run_task(model, read_task_file(FOLDER, "arithmetic"), SUMS, True, None)
    assert [sample.score for sample in samples] == [1.0, 1.0, 1.0, 0.0, 1.0]
    assert [sample.response for sample in samples] == answers
    assert samples[1].target == "1,001"
    assert model.prompts[0] == prompt(evaluated, "Tom has 0 apples.", True, "")


def test_a_random_model_answers_something_and_gets_no_credit_for_it(evaluated):
    for chat in (False, True):
        samples = run_task(evaluated, read_task_file(FOLDER, "arithmetic"), SUMS[:2], chat, None)
        assert [sample.score for sample in samples] == [0.0, 0.0]


def test_records_that_lack_what_the_templates_name_are_a_user_error(evaluated):
    for name, good, key in (
        ("python_choice", QUESTIONS, "question"),
        ("python_choice", QUESTIONS, "choices"),
        ("heldout_docs", DOCUMENTS, "text"),
        ("arithmetic", SUMS, "answer"),
        ("preference", PAIRS, "rejected"),
    ):
        for broken in ({k: v for k, v in good[2].items() if k != key}, {**good[2], key: None}):
            with pytest.raises(UserError, match=f"task {name}: item {good[2]['id']} lacks '{key}'"):
                run_task(evaluated, read_task_file(FOLDER, name), [*good[:2], broken], False, None)
    for text in (7, ""):
        with pytest.raises(UserError, match="item x: text is not a text"):
            run_task(evaluated, read_task_file(FOLDER, "heldout_docs"), [{"id": "x", "text": text}], False, None)


CHOICE = {
    "task": "quiz", "source": "x", "metrics": {"accuracy": "acc_bytes"}, "output_type": "multiple_choice",
    "doc_to_text": "q", "doc_to_choice": "choices", "doc_to_target": "answer",
}  # fmt: skip
ASKED = {
    "task": "quiz", "source": "x", "metrics": {"exact_match": "exact_match"}, "output_type": "generate_until",
    "doc_to_text": "q", "doc_to_target": "answer", "generation_kwargs": {"max_gen_toks": 4},
}  # fmt: skip


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("task", "record", "problem"),
    [
        (CHOICE, {"choices": ["Add", ""]}, "choice number 1 is empty, so there is nothing to score"),
        (CHOICE, {"choices": []}, r"doc_to_choice is not a list of choices: \[\]"),
        (CHOICE, {"answer": 2}, "no choice number 2 among 2"),
        (CHOICE, {"answer": -1}, "no choice number -1 among 2"),
        (CHOICE | {"doc_to_choice": "{{choices[0]}}"}, {"choices": ["a b"]}, "doc_to_choice makes 'a b', which does"),
        (CHOICE | {"doc_to_choice": "{{choices[0]}}"}, {"choices": ["7"]}, "doc_to_choice is not a list of choices: 7"),
        (CHOICE | {"doc_to_choice": "{{[1, q]}}"}, {}, "choice number 0 is not a text: 1"),
        (ASKED, {"q": " \n"}, "doc_to_text is empty, so there is nothing to answer"),
        (ASKED | {"doc_to_text": "{{choices[1]}}"}, {"choices": ["a"]}, "doc_to_text cannot be filled in: list"),
        (ASKED | {"doc_to_target": "{{ 1 // answer }}"}, {"answer": 0}, "doc_to_target cannot be filled in: Zero"),
        (ASKED | {"doc_to_text": "answer"}, {}, "doc_to_text is not a text: 1"),
    ],
)
def test_a_record_that_does_not_fit_is_named_before_any_model_is_asked(task, record, problem, chat):
    """Be it the first, which lm-eval tries, or a later one."""
    good = {"id": "good", "q": "Is it?", "choices": ["['a', 'b']", "Sort"], "answer": 1}
    for records in ([good, {**good, **record, "id": "bad"}], [{**good, **record, "id": "bad"}, good]):
        with pytest.raises(UserError, match=rf"^task quiz: item (bad|good): {problem}") as caught:
            build_task(TaskFile(**task), records, chat, None).check_every_record()
        assert "\n" not in str(caught.value)


def test_a_record_that_does_not_fit_is_named_where_no_check_came_before(evaluated):
    records = [QUESTIONS[0], {**QUESTIONS[1], "choices": ["Add", "", "Sort", "Stop"]}]
    for chat in (False, True):
        with pytest.raises(UserError, match="task python_choice: item q1: choice number 1 is empty"):
            run_task(evaluated, read_task_file(FOLDER, "python_choice"), records, chat, None)
    for answer in (4, -1):
        records = [QUESTIONS[0], {**QUESTIONS[1], "answer": answer}]
        with pytest.raises(UserError, match="item q1: no choice number"):
            run_task(evaluated, read_task_file(FOLDER, "python_choice"), records, False, None)


def test_a_choice_that_is_a_space_is_scored(evaluated):
    records = [{**QUESTIONS[0], "choices": [" ", "a"]}]
    for chat in (False, True):
        (sample,) = run_task(evaluated, read_task_file(FOLDER, "python_choice"), records, chat, None)
        assert sample.target == " "


def test_a_chat_model_without_a_template_is_a_user_error(evaluated, monkeypatch):
    monkeypatch.setattr(evaluated.tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="no chat template"):
        run_task(evaluated, read_task_file(FOLDER, "domain"), ANSWERS, True, None)


def test_data_that_looks_like_a_template_or_code_stays_text(evaluated):
    nasty = "{{ 7 * 7 }} __import__('os').system('true') [1, 2]"
    record = {"id": "x", "prompt": nasty, "chosen": nasty + "'", "rejected": '["a"]'}
    (sample,) = run_task(evaluated, read_task_file(FOLDER, "preference"), [record], False, None)
    assert sample.target == record["chosen"]
    (sample,) = run_task(
        evaluated, read_task_file(FOLDER, "domain"), [{"id": "x", "instruction": nasty, "output": "[1]"}], True, None
    )
    assert (sample.target, sample.weight) == ("[1]", 3.0)


def test_genuine_gsm8k_records_yield_their_numbers(evaluated, shared_data):
    lines = (shared_data / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()[:300]
    records = [{**json.loads(line), "id": str(n)} for n, line in enumerate(lines)]
    perfect = Answering(evaluated, [record["answer"] for record in records])
    samples = run_task(perfect, read_task_file(FOLDER, "gsm8k"), records, True, None)
    assert all(sample.score == 1.0 for sample in samples)
    expected = [re.search(r"#### (.*)$", record["answer"])[1].strip() for record in records]
    assert [sample.target for sample in samples] == expected
    wrong = Answering(evaluated, [record["answer"] + "1" for record in records])
    assert not any(sample.score for sample in run_task(wrong, read_task_file(FOLDER, "gsm8k"), records, True, None))


def test_genuine_arc_and_hellaswag_records_run_as_multiple_choice(evaluated, shared_data):
    def load(path):
        return [{**json.loads(line), "id": str(n)} for n, line in enumerate(path.read_text("utf-8").splitlines()[:20])]

    common = {"source": "x", "metrics": {"accuracy": "acc_bytes"}, "output_type": "multiple_choice"}
    arc = TaskFile(task="arc", doc_to_text="query", doc_to_choice="choices", doc_to_target="gold", **common)
    hellaswag = TaskFile(task="hellaswag", doc_to_text="ctx", doc_to_choice="endings", doc_to_target="label", **common)
    for task, path in ((arc, "arc/arc_challenge.part1.jsonl"), (hellaswag, "hellaswag/hellaswag_val.part1.jsonl")):
        records = load(shared_data / path)
        samples = run_task(evaluated, task, records, False, None)
        assert len(samples) == 20 and {sample.score for sample in samples} <= {0.0, 1.0}
