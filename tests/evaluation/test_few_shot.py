"""Prompts with examples: the prompts and the scores of plain lm-eval, and no example that is asked."""

import json
import math
from pathlib import Path

import datasets
import lm_eval
import pytest
import yaml
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM

from pipeline_lib.config import PROJECT_ROOT
from pipeline_lib.config.task_files import TaskFile, read_task_file
from pipeline_lib.evaluation.few_shot import Example, read_examples
from pipeline_lib.evaluation.harness import build_task, run_task
from pipeline_lib.evaluation.language_model import EvaluatedModel, render_chat
from pipeline_lib.evaluation.shared_prefix import separate_rows, shared_rows
from pipeline_lib.stage import UserError

FOLDER = PROJECT_ROOT / "configs" / "eval_tasks"


@pytest.fixture(autouse=True)
def _no_look_at_the_machine(monkeypatch):
    """lm-eval asks pip for all packages each time, five seconds that have nothing to do with prompts and scores."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def records(kind, count, start=0):
    return [
        {
            "id": f"{kind}{n}",
            "q": f"What is the value of `{kind}{n}`?",
            "choices": [f"The list {n}.", "An error.", f"Tom has {n} apples", "Sort"],
            "answer": n % 4,
            "text": f"It is {n} + {n} = {2 * n}.\n#### {2 * n}",
        }
        for n in range(start, start + count)
    ]


ITEMS, POOL = records("item", 14), records("pool", 9, 3)
COMMON = {"task": "quiz", "doc_to_text": "Question: {{q}}\nAnswer:", "description": "Answer what is asked.\n\n"}
CHOICE = {**COMMON, "output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "answer"}
SCORED = {**COMMON, "output_type": "loglikelihood", "doc_to_target": " {{text}}", "target_delimiter": ""}
GENERATED = {
    **COMMON,
    "output_type": "generate_until",
    "doc_to_target": "{{text.split('####')[-1].strip()}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 6},
}
WORDED = {"doc_to_target": "text", "fewshot_delimiter": "\n---\n", "target_delimiter": "  "}
METRIC = {"multiple_choice": "acc", "loglikelihood": "acc", "generate_until": "exact_match"}
KINDS = pytest.mark.parametrize("asked", [CHOICE, SCORED, GENERATED], ids=lambda asked: asked["output_type"])


def examples(pool=POOL):
    return [Example(record) for record in pool]


def task_file(asked, **changes):
    metric = METRIC[asked["output_type"]]
    shown = {"num_fewshot": 2, "fewshot_split": "pool"}
    return TaskFile(**{**asked, "source": "items", "metrics": {metric: metric}, **shown, **changes})


def plain_task(asked, items=ITEMS, pool=POOL, **changes):
    """lm-eval's own class, of the same keys."""
    metric = {"metric": METRIC.get(asked["output_type"]), "aggregation": "mean", "higher_is_better": True}
    data = {"test": datasets.Dataset.from_list(items), "pool": datasets.Dataset.from_list(pool)}
    return ConfigurableTask(
        config={
            "metric_list": [metric],
            **asked,
            "num_fewshot": 2,
            "fewshot_split": "pool",
            **changes,
            "test_split": "test",
            "custom_dataset": lambda **_: data,
            "metadata": {},
        }
    )


class Listening(LM):
    """Notes what it is asked, and passes it on."""

    def __init__(self, model):
        super().__init__()
        self.model, self.asked = model, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def _ask(self, kind, requests):
        self.asked += [request.args for request in requests]
        return getattr(self.model, kind)(requests)

    def loglikelihood(self, requests):
        return self._ask("loglikelihood", requests)

    def loglikelihood_rolling(self, requests):
        return self._ask("loglikelihood_rolling", requests)

    def generate_until(self, requests):
        return self._ask("generate_until", requests)

    def apply_chat_template(self, *arguments, **named):
        return self.model.apply_chat_template(*arguments, **named)

    @property
    def tokenizer_name(self):
        return "listening"


@pytest.fixture(scope="module")
def long_llama(tokenizer, new_llama):
    return new_llama(tokenizer, seed=3, context=512)


@pytest.fixture(scope="module")
def both(long_llama, tokenizer):
    """Our model class and lm-eval's, of the same weights."""
    theirs = HFLM(pretrained=long_llama, tokenizer=tokenizer, batch_size=2, device="cpu", max_length=512)
    return EvaluatedModel(long_llama, tokenizer, batch_tokens=2048), theirs


def plain_samples(model, oracle, chat):
    """Return what plain lm-eval says of each item, in the order of the items."""
    made = simple_evaluate(
        model,
        tasks=[oracle],
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        bootstrap_iters=0,
        log_samples=True,
    )
    return sorted(made["samples"][oracle.config.task], key=lambda one: one["doc_id"])


def ask_both(both, file, oracle, pool, chat=False):
    """Return (our samples, the requests they came from), (lm-eval's samples, its requests)."""
    ours, theirs = (Listening(model) for model in both)
    samples = run_task(ours, file, ITEMS, chat, None, examples(pool))
    expected = plain_samples(theirs, oracle, chat)
    return (samples, ours.asked), (expected, theirs.asked)


@KINDS
@pytest.mark.parametrize("sampler", ["default", "first_n"])
@pytest.mark.parametrize("worded", [False, True])
def test_prompts_and_scores_are_those_of_plain_lm_eval(both, asked, sampler, worded):
    config = {"sampler": sampler, **(WORDED if worded else {})}
    if worded and asked is CHOICE:
        config["doc_to_target"] = 0 if sampler == "default" else "{{choices[answer]}}"
    file = task_file(asked, num_fewshot=3, fewshot_config=config)
    oracle = plain_task(asked, num_fewshot=3, fewshot_config=dict(config))
    (samples, our_requests), (expected, their_requests) = ask_both(both, file, oracle, POOL)
    assert our_requests == their_requests and len(set(our_requests[0][0].split("Question:"))) == 5
    metric = METRIC[asked["output_type"]]
    assert [sample.score for sample in samples] == [float(one[metric]) for one in expected]
    if asked is GENERATED:
        assert [sample.response for sample in samples] == [one["resps"][0][0] for one in expected]


def test_four_choice_scores_with_examples_are_not_all_alike(both):
    """What the comparison above could not notice if every item were wrong."""
    (samples, _), _ = ask_both(both, task_file(CHOICE), plain_task(CHOICE), POOL)
    assert 0 < sum(sample.score for sample in samples) < len(samples)


def test_bits_per_byte_are_those_of_lm_evals_log_likelihoods(both):
    file = task_file(SCORED, metrics={"bits": "bits_per_byte"})
    (samples, _), (expected, _) = ask_both(both, file, plain_task(SCORED), POOL)
    for sample, one in zip(samples, expected, strict=True):
        size = len(one["target"].encode())
        assert sample.weight == size
        assert sample.score == pytest.approx(-one["resps"][0][0][0] / math.log(2) / size, rel=1e-4)


@KINDS
def test_examples_are_turns_of_a_chat_as_in_plain_lm_eval(both, tokenizer, monkeypatch, asked):
    """The template ends without white space, which lm-eval would charge to the answer."""
    ending = tokenizer.chat_template.replace("assistant\n{% endif", "assistant:{% endif")
    assert ending != tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", ending)
    file = task_file(asked, doc_to_text="{{q}}?", chat={"doc_to_text": "q"})
    oracle = plain_task({**asked, "doc_to_text": "q"})
    (samples, our_requests), (expected, their_requests) = ask_both(both, file, oracle, POOL, chat=True)
    assert our_requests == their_requests
    turns = our_requests[0][0].split("<|im_start|>")[1:]
    assert [turn.split("\n")[0] for turn in turns] == ["system", *["user", "assistant"] * 2, "user", "assistant:"]
    metric = METRIC[asked["output_type"]]
    assert [sample.score for sample in samples] == [float(one[metric]) for one in expected]


def test_a_chat_model_may_be_shown_another_number_of_examples(both):
    file = task_file(GENERATED, chat={"num_fewshot": 0, "doc_to_text": "q"})
    ours = Listening(both[0])
    run_task(ours, file, ITEMS[:2], True, None, examples())
    assert ours.asked[0][0].count("<|im_start|>user") == 1
    run_task(ours, file, ITEMS[:2], False, None, examples())
    assert ours.asked[2][0].count("Question:") == 3


def test_plain_and_chat_models_are_shown_the_same_examples_when_they_are_shown_as_many():
    def shown(chat, **changes):
        file = task_file(GENERATED, chat=changes)
        task = build_task(file, ITEMS, chat, None, examples())
        return [[one["id"] for one in task.sampler.sample(file.shots(chat), eval_doc=doc)] for doc in task.task_docs]

    assert shown(True, doc_to_text="q") == shown(False)
    fewer = shown(True, num_fewshot=1)
    assert fewer == shown(True, num_fewshot=1) != [few[:1] for few in shown(False)]


def test_every_model_is_shown_the_same_examples(both):
    first, second = Listening(both[0]), Listening(both[0])
    for model in (first, second):
        run_task(model, task_file(CHOICE), ITEMS, False, None, examples())
    assert first.asked == second.asked
    assert len({prompt.rpartition("Question:")[0] for prompt, _ in first.asked}) > 5, "drawn for every item"


def test_examples_in_the_task_file_are_those_of_a_source(both):
    samples = [{key: value for key, value in record.items() if key != "id"} for record in POOL[:3]]
    written = task_file(GENERATED, fewshot_split=None, fewshot_config={"sampler": "first_n", "samples": samples})
    named = task_file(GENERATED, fewshot_config={"sampler": "first_n"})
    one, other = Listening(both[0]), Listening(both[0])
    run_task(one, written, ITEMS[:3], False, None, read_examples(written, []))
    run_task(other, named, ITEMS[:3], False, None, examples())
    assert one.asked == other.asked


def test_numbers_as_ids_of_samples_are_texts_like_those_of_records_and_unique():
    samples = [{**record, "id": n} for n, record in enumerate([ITEMS[2], *POOL[:2]])]
    file = task_file(GENERATED, fewshot_split=None, fewshot_config={"doc_to_target": "text", "samples": samples})
    task = build_task(file, ITEMS, False, None, read_examples(file, []))
    assert task.left_out == ("0",) and [example["id"] for example in task.examples] == ["1", "2"]
    samples[2]["id"] = "1"
    with pytest.raises(UserError, match=r"^task quiz: fewshot_config\.samples has the id '1' 2 times; make it"):
        read_examples(task_file(GENERATED, fewshot_split=None, fewshot_config={"samples": samples}), [])


# -- no example is asked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["default", "first_n"])
@KINDS
def test_an_example_that_asks_the_same_as_an_item_is_left_out_by_name(asked, sampler):
    twin = {**ITEMS[5], "id": "twin", "q": ITEMS[5]["q"].upper().replace(" ", "\n "), "answer": 2}
    twin["choices"] = twin["choices"][::-1]
    config = {"sampler": sampler, "doc_to_target": 0 if asked is CHOICE else "text"}
    task = build_task(task_file(asked, fewshot_config=config), ITEMS, False, None, examples([twin, *POOL]))
    assert task.left_out == ("twin",)
    assert [example["id"] for example in task.examples] == [record["id"] for record in POOL][: len(task.examples)]
    shown = [task.fewshot_context(doc, 2) for doc in task.task_docs]
    assert not any(twin["q"] in prompt for prompt in shown)


PREFERENCE = read_task_file(FOLDER, "preference")


@pytest.mark.parametrize("chat", [False, True])
def test_an_example_with_the_right_answer_of_an_item_is_left_out_whatever_its_other_choices_are(chat):
    """Preference data has many pairs of one prompt; the chosen answer would stand before the question for it."""
    pairs = [{"id": f"p{n}", "prompt": f"What is {n}?", "chosen": f"A number, {n}.", "rejected": "x"} for n in range(3)]
    twin = {**pairs[1], "id": "twin", "rejected": "another", "chosen": "a NUMBER,  1."}
    other = {**pairs[1], "id": "other", "chosen": "One.", "rejected": "A number, 1."}
    file = TaskFile(**{**PREFERENCE.model_dump(exclude_unset=True), "num_fewshot": 1, "fewshot_split": "pool"})
    task = build_task(file, pairs, chat, None, examples([twin, other]))
    assert task.left_out == ("twin",) and [example["id"] for example in task.examples] == ["other"]


def test_the_right_choice_of_an_example_is_the_one_of_its_own_wording():
    """The items' wording names a choice by number, and the examples spell it."""
    twin = {**ITEMS[5], "id": "twin", "answer": "The list 5.", "choices": ["The list 5.", "another"]}
    items = [{**item, "answer": 0} for item in ITEMS]
    file = task_file(CHOICE, fewshot_config={"doc_to_target": "{{choices[0]}}"})
    assert build_task(file, items, False, None, examples([twin, *POOL])).left_out == ("twin",)
    other = {**twin, "choices": ["another", "The list 5."]}
    assert build_task(file, items, False, None, examples([other, *POOL])).left_out == ()


def test_an_example_of_a_whole_answer_is_left_out_by_its_prompt_unless_all_items_have_the_same():
    again = {**ITEMS[5], "id": "again", "text": "It is another answer."}
    assert build_task(task_file(SCORED), ITEMS, False, None, examples([again, *POOL])).left_out == ("again",)
    file = task_file(SCORED, doc_to_text="Write a sum.")
    twin = {**again, "id": "twin", "text": ITEMS[5]["text"]}
    pool = [{**record, "text": f"{record['id']} is free."} for record in POOL]
    task = build_task(file, ITEMS, False, None, examples([again, twin, *pool]))
    assert task.left_out == ("twin",) and len(task.examples) == 1 + len(pool)


def test_an_example_with_its_own_wording_is_compared_by_what_it_asks():
    config = {"doc_to_text": "Q. {{q}}", "doc_to_target": "text"}
    twin = {**ITEMS[5], "id": "twin"}
    task = build_task(task_file(GENERATED, fewshot_config=config), ITEMS, False, None, examples([twin, *POOL]))
    assert task.left_out == ("twin",)
    other = [{"id": f"e{n}", "ask": f"How many {n}?", "text": "4"} for n in range(2)]
    config["doc_to_text"] = "Q. {{ask}}"
    task = build_task(task_file(GENERATED, fewshot_config=config), ITEMS, False, None, examples(other))
    assert task.left_out == () and len(task.examples) == 2


@pytest.mark.parametrize(
    ("pool", "problem"),
    [
        (POOL[:1], "num_fewshot is 2 and there are 1 examples; add others or show fewer"),
        ([ITEMS[3], POOL[0]], r"there are 2 examples, of which 1 ask the same as an item \(item3\); add"),
        ([POOL[0], {**POOL[1], "q": None}], "example pool4 lacks 'q', which the task file names"),
        ([POOL[0], {**POOL[1], "answer": 4}], "example pool4: no choice number 4 among 4"),
        ([POOL[0], {**POOL[1], "choices": ["a", ""]}], "example pool4: choice number 1 is empty"),
    ],
)
def test_examples_that_do_not_fit_are_named_before_any_model_is_asked(pool, problem):
    with pytest.raises(UserError, match=f"^task quiz: {problem}|^task quiz: .*{problem}") as caught:
        build_task(task_file(CHOICE), ITEMS, False, None, examples(pool)).check_every_record()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", [7, "", []])
def test_an_example_without_an_answer_that_can_be_shown_is_named(answer):
    broken = {**POOL[1], "text": answer}
    file = task_file(GENERATED, fewshot_config={"doc_to_target": "text"})
    with pytest.raises(UserError, match="example pool4: doc_to_target is not a text that a prompt can show"):
        build_task(file, ITEMS, False, None, examples([POOL[0], broken])).check_every_record()


# -- the task files of lm-eval and of the project ----------------------------------------------------------------------


class Answering(LM):
    """Gives the same answers whatever it is asked, and notes the prompts."""

    def __init__(self, answers, tokenizer):
        super().__init__()
        self.answers, self.tokenizer, self.prompts = answers, tokenizer, []

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood

    def generate_until(self, requests):
        self.prompts = [request.args for request in requests]
        return self.answers

    def apply_chat_template(self, *arguments, **named):
        return render_chat(self.tokenizer, *arguments, **named)

    @property
    def tokenizer_name(self):
        return "answering"


def gsm8k_like(name, count):
    return [
        {"id": f"{name}{n}", "question": f"{name} has {n} apples?", "answer": f"<<{n}>>{n} so\n#### {n * 1000:,}"}
        for n in range(count)
    ]


def gsm8k_agrees(items, pool, answers, tokenizer, chat):
    """Assert that gsm8k_5shot and lm-eval's own gsm8k.yaml ask and score the same; return the scores."""
    ours, theirs = Answering(answers, tokenizer), Answering(answers, tokenizer)
    samples = run_task(ours, read_task_file(FOLDER, "gsm8k_5shot"), items, chat, None, examples(pool))
    config = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text("utf-8"))
    for key in ("dataset_path", "dataset_name", "tag", "training_split", "fewshot_split", "num_fewshot", "test_split"):
        config.pop(key)
    config["filter_list"] = config["filter_list"][:1]  # strict-match
    oracle = plain_task(config, items, pool, num_fewshot=5)
    made = plain_samples(theirs, oracle, chat)
    assert [prompt for prompt, _ in ours.prompts] == [prompt for prompt, _ in theirs.prompts]
    assert {tuple(settings["until"]) for _, settings in ours.prompts + theirs.prompts} == {
        ("Question:", "</s>", "<|im_end|>")
    }
    assert {settings.get("max_gen_toks", 256) for _, settings in ours.prompts + theirs.prompts} == {256}
    assert ours.prompts[0][0].count("####") == 5
    assert ours.prompts[0][0].count("<|im_start|>") == (12 if chat else 0)
    scores = [sample.score for sample in samples]
    assert scores == [one["exact_match"] for one in made]
    return scores


CHAT = pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])


@CHAT
def test_gsm8k_5shot_asks_and_scores_as_lm_evals_own_task(tokenizer, chat):
    answers = [" #### 0", "#### 1,000.", "#### 2,00", "3000", "x #### $4", "#### 5000\n#### 7"]
    assert gsm8k_agrees(gsm8k_like("Tom", 6), gsm8k_like("Ann", 11), answers, tokenizer, chat) == [1, 1, 0, 0, 0, 1]


@CHAT
def test_gsm8k_5shot_asks_genuine_records_as_lm_evals_own_task(shared_data, tokenizer, chat):
    lines = (shared_data / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()[:300]
    taken = [{**json.loads(line), "id": str(n)} for n, line in enumerate(lines)]
    answers = [record["answer"] if n % 3 else "none" for n, record in enumerate(taken[:60])]
    assert sum(gsm8k_agrees(taken[:60], taken[60:], answers, tokenizer, chat)) == 40


def test_a_long_prompt_is_read_once_for_all_of_its_choices(both):
    """Four choices behind five examples: a quarter of the tokens, and the same numbers (test_shared_prefix.py)."""
    ours = Listening(both[0])
    run_task(ours, task_file(CHOICE, num_fewshot=5), ITEMS, False, None, examples())
    windows = [(n, *pair) for n, pair in enumerate(both[0].split_pairs(ours.asked))]
    alone, together = (
        sum(len(row.tokens) for row in rows) for rows in (separate_rows(windows), shared_rows(windows, 512))
    )
    assert together < 0.4 * alone, (together, alone)
