"""Function calls in answers: read back as the chat template writes them, and scored on records of BFCL's layout."""

import copy
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_formatters.record import MalformedRecord
from pipeline_lib.config import PROJECT_ROOT
from pipeline_lib.config.evaluate import EvaluateSettings
from pipeline_lib.config.task_files import read_task_file
from pipeline_lib.evaluation.call_task import call_records
from pipeline_lib.evaluation.function_calls import Call, accepted_calls, conversation, offered_tools, read_calls, score
from pipeline_lib.evaluation.harness import build_task, run_task
from pipeline_lib.evaluation.items import Items
from pipeline_lib.evaluation.questionnaire import Questionnaire
from pipeline_lib.evaluation.task_checks import check_shown_functions
from pipeline_lib.packing.chat_template import CHAT_TEMPLATE
from pipeline_lib.stage import UserError

TASK = read_task_file(PROJECT_ROOT / "configs" / "eval_tasks", "function_calling")
BFCL = TASK.model_copy(update={"doc_to_text": "question", "doc_to_tools": "function", "doc_to_target": "ground_truth"})
WEATHER = {
    "name": "weather",
    "description": "Tell the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": tool} for tool in (WEATHER, CLOCK)]
ROME, OSLO = ({"name": "weather", "arguments": {"city": city, "days": 2}} for city in ("Rome", "Oslo"))


def written(*calls):
    return "\n".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls)


def scores(answer, right):
    made = score(answer, TOOLS, accepted_calls(right, "here"))
    return made["calls_valid"], made["functions_match"], made["calls_match"]


# -- reading -----------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
some_calls = st.lists(
    st.builds(Call, st.from_regex(r"[a-z_.]{1,12}", fullmatch=True), st.dictionaries(st.text(), values, max_size=3)),
    max_size=4,
)


@settings(deadline=None)  # the first template is compiled
@given(some_calls, st.text().filter(lambda text: "tool_call>" not in text))
def test_calls_written_by_the_chat_template_are_read_back(calls, content):
    from transformers.utils.chat_template_utils import render_jinja_template

    turn = {"role": "assistant", "content": content}
    turn["tool_calls"] = [{"function": {"name": call.name, "arguments": call.arguments}} for call in calls]
    (text,), _ = render_jinja_template([[turn]], chat_template=CHAT_TEMPLATE)
    assert read_calls(text.removeprefix("<|im_start|>assistant\n").removesuffix("<|im_end|>\n")) == calls


@pytest.mark.parametrize(
    "answer",
    [
        "<tool_call>",
        "</tool_call>",
        '<tool_call>{"name": "clock", "arguments": {}}',
        '{"name": "clock", "arguments": {}}</tool_call>',
        "<tool_call>clock()</tool_call>",
        "<tool_call>{'name': 'clock', 'arguments': {}}</tool_call>",
        '<tool_call>[{"name": "clock", "arguments": {}}]</tool_call>',
        '<tool_call>{"name": "clock", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "clock"}</tool_call>',
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "clock", "arguments": {}} or so</tool_call>',
        '<tool_call>{"name": "clock", "arguments": {"x": NaN}}</tool_call>',
        written(ROME) + "<tool_call>" + written(OSLO),
        "<tool_call>" + "[" * 100_000,
    ],
)
def test_what_is_no_call_spoils_the_answer(answer):
    assert read_calls(answer) is None
    assert scores(answer, [ROME]) == (0, 0, 0) and scores(answer, []) == (0, 0, 0)


# -- scoring -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        (written(ROME), [ROME], (1, 1, 1)),
        ("I look.\n" + written(OSLO, ROME) + " So.", [ROME, OSLO], (1, 1, 1)),
        (written(ROME), [ROME, OSLO], (1, 0, 0)),
        (written(ROME, ROME), [ROME, OSLO], (1, 1, 0)),
        (written(OSLO), [ROME], (1, 1, 0)),
        (written({"name": "clock", "arguments": {}}), [ROME], (1, 0, 0)),
        (written({"name": "sun", "arguments": {}}), [ROME], (0, 0, 0)),
        (written({"name": "weather", "arguments": {"days": 2}}), [ROME], (0, 1, 0)),
        (written({"name": "weather", "arguments": {"city": "Rome", "days": 2.0}}), [ROME], (1, 1, 1)),
        (written({"name": "weather", "arguments": {"city": "Rome", "days": "2"}}), [ROME], (1, 1, 0)),
        (written({"name": "weather", "arguments": {"city": "Rome"}}), [ROME], (1, 1, 0)),
        (written({"name": "weather", "arguments": {"city": "rome", "days": 2}}), [ROME], (1, 1, 0)),
        ("It rains.", [ROME], (0, 0, 0)),
        ("It rains.", [], (1, 1, 1)),
        (written(ROME), [], (1, 0, 0)),
        (written(ROME), [{"weather": {"city": ["Rome", "Roma"], "days": ["", 1, 2]}}], (1, 1, 1)),
        (
            written({"name": "weather", "arguments": {"city": "Roma"}}),
            [{"weather": {"city": ["Rome", "Roma"], "days": ["", 1]}}],
            (1, 1, 1),
        ),
        (
            written({"name": "weather", "arguments": {"city": "Rome"}}),
            [{"weather": {"city": ["Rome"], "days": [1]}}],
            (1, 1, 0),
        ),
        (written({"name": "clock", "arguments": {}}), [{"clock": {}}], (1, 1, 1)),
    ],
)
def test_the_three_measures(answer, right, expected):
    assert scores(answer, right) == expected


def test_a_truth_value_is_no_number_and_nested_alternatives_are_alternatives():
    right = [{"clock": {"at": [{"zone": ["utc", "z"], "dst": ["", True]}], "steps": [[1, 2]]}}]

    def asked(at, steps=(1, 2)):
        return scores(written({"name": "clock", "arguments": {"at": at, "steps": list(steps)}}), right)[2]

    assert asked({"zone": "z"}) == asked({"zone": "utc", "dst": True}, (1.0, 2)) == 1
    assert asked({"zone": "z", "dst": 1}) == asked({"dst": True}) == asked({"zone": "z"}, (2, 1)) == 0
    assert asked({"zone": "z"}, (True, 2)) == asked({"zone": "z", "more": 1}) == asked("z") == 0


numbers = st.integers(0, 3)


@given(st.lists(numbers, max_size=4), st.lists(st.lists(numbers, min_size=1, max_size=3), max_size=4))
def test_calls_in_any_order_match_exactly_when_some_order_of_them_does(made, right):
    answer = written(*({"name": "clock", "arguments": {"x": number}} for number in made))
    expected = len(made) == len(right) and any(
        all(number in accepted for number, accepted in zip(order, right, strict=True))
        for order in itertools.permutations(made)
    )
    assert scores(answer, [{"clock": {"x": accepted}} for accepted in right])[2] == expected


# -- records and the task ----------------------------------------------------------------------------------------------


def record(name="r", **changes):
    asked = [{"role": "user", "content": f"How is the weather in {name}?"}]
    return {"id": name, "messages": asked, "tools": [WEATHER, {"function": CLOCK}], "calls": [ROME], **changes}


class Answering:
    """The evaluated model, but with the given answers instead of generated ones."""

    def __init__(self, evaluated, answers):
        self._evaluated, self._answers, self.asked = evaluated, answers, []

    def __getattr__(self, name):
        return getattr(self._evaluated, name)

    def generate_until(self, requests):
        self.asked = [request.args for request in requests]
        return self._answers


def test_a_model_is_shown_functions_and_messages_by_its_chat_template(evaluated, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", CHAT_TEMPLATE)
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {**ROME, "arguments": '{"city": "Rome"}'}}]},
        {"role": "tool", "content": "sun"},
        {"role": "user", "content": "And the time {{ 7 * 7 }}?"},
    ]
    asked = [record("a"), record("b", messages=json.dumps(talk), calls="[]"), record("c", messages="Oslo?")]
    model = Answering(evaluated, [written(ROME), "Noon.", written(OSLO)])
    samples = run_task(model, TASK, asked, True, None)
    by_metric = {name: [one.score for one in samples if one.metric == name] for name in TASK.metrics}
    assert by_metric == {"valid_format": [1, 1, 1], "right_tool": [1, 1, 1], "success": [1, 1, 0]}
    assert [sample.item for sample in samples[:3]] == ["a", "b", "c"] and samples[0].response == written(ROME)
    assert json.loads(samples[0].target) == [ROME]
    tools = offered_tools(asked[0]["tools"], "here")
    assert model.asked[0][0] == tokenizer.apply_chat_template(
        asked[0]["messages"], tools=tools, tokenize=False, add_generation_prompt=True
    )
    second = model.asked[1][0]
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call><|im_end|>' in second
    assert "{{ 7 * 7 }}" in second and second.endswith("<|im_start|>assistant\n") and '"name": "clock"' in second
    assert model.asked[0][1]["max_gen_toks"] == 256


def test_the_random_model_answers_and_gets_no_credit(new_llama, tokenizer, monkeypatch):
    from pipeline_lib.evaluation.language_model import EvaluatedModel

    monkeypatch.setattr(tokenizer, "chat_template", CHAT_TEMPLATE)
    model = EvaluatedModel(new_llama(tokenizer, seed=1, context=1024), tokenizer, batch_tokens=4096)
    assert {sample.score for sample in run_task(model, TASK, [record("a")], True, None)} == {0.0}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tools": None}, "lacks 'tools', which the task file names"),
        ({"tools": []}, "no function is offered"),
        ({"tools": [{"description": "x"}]}, "a tool must be an object with the name of its function"),
        ({"tools": [{"name": "f", "parameters": {"required": "x"}}]}, "\"required\" of tool 'f' is no list of names"),
        ({"calls": [{"name": "sun", "arguments": {}}]}, "the right answer calls 'sun', which is not offered"),
        ({"calls": {"name": "weather"}}, "the right calls must be a list, not dict"),
        ({"calls": ["__import__('os')"]}, "a call is not JSON"),
        ({"messages": []}, "the messages must be a list of at least one"),
        ({"messages": [[{"role": "user", "content": "a"}]] * 2}, "2 turns are asked, and one answer is scored"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "the last message is",
        ),
        ({"messages": [{"role": "human", "content": "a"}]}, 'a message must have a "role": system, user'),
        ({"messages": [{"role": "user", "content": " "}]}, "a message of the user has no text"),
    ],
)
def test_a_record_that_is_no_conversation_with_calls_is_named(changes, problem):
    with pytest.raises(UserError, match=f"^task function_calling: item bad:? {problem}") as caught:
        build_task(TASK, [record("good"), record("bad", **changes)], True, None)
    assert "\n" not in str(caught.value)


def test_models_without_a_chat_template_and_templates_without_functions_are_user_errors(evaluated):
    with pytest.raises(UserError, match=r"add init\.function_calling and pretrained\.function_calling to evaluate\.sk"):
        run_task(evaluated, TASK, [record()], False, None)
    with pytest.raises(UserError, match="item r: the chat template does not show the function 'weather'"):
        run_task(evaluated, TASK, [record()], True, None)


# -- how templates write calls -----------------------------------------------------------------------------------------


def trl_template(name):
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")


EACH_CALL = "{%- for m in messages %}{%- for c in m.tool_calls or [] %}"
TEXT_OF_ARGUMENTS = EACH_CALL + "{{ 'f' + c.function.arguments }}{%- endfor %}{%- endfor %}"


def check_notation(folder, tokenizer, template, task=TASK):
    """Check the functions of one record as stage 11 does, for a model whose tokenizer has this template."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    other.save_pretrained(folder)
    settings = EvaluateSettings(models=["sft"], tasks=[task.task], comparisons=[])
    items = {task.task: Items([record()], 1)}
    check_shown_functions(Questionnaire(settings, {task.task: task}, items, {}, {}, folder), lambda name: folder)


@pytest.mark.parametrize("name", ["ours", "qwen2_5_training", "qwen3_training"])
def test_a_template_that_writes_calls_as_they_are_read_is_asked(tmp_path, tokenizer, name):
    check_notation(tmp_path, tokenizer, CHAT_TEMPLATE if name == "ours" else trl_template(name))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("lfm2_v2_training", r"<\|tool_call_start\|>\[weather\(number=1, text=.*\)\]<\|tool_call_end\|>"),
        ("qwen3_6_training", "<function=weather>"),
    ],
)
def test_a_template_with_another_notation_is_refused_by_showing_it(tmp_path, tokenizer, name, written):
    """Every answer would count as wrong, and a wrong call as right where none is due."""
    match = f"function_calling.yaml: sft: its chat template writes a call as .*{written}.*, and answers are read as"
    with pytest.raises(UserError, match=match) as caught:
        check_notation(tmp_path, tokenizer, trl_template(name))
    assert "\n" not in str(caught.value)


def test_a_template_that_trips_over_a_call_is_refused(tmp_path, tokenizer, evaluated, monkeypatch):
    """It takes the text of arguments only; before a model is asked, and in a history."""
    text_only = TEXT_OF_ARGUMENTS + CHAT_TEMPLATE
    with pytest.raises(UserError, match="sft: its chat template refuses a call of 'weather': can only concatenate str"):
        check_notation(tmp_path, tokenizer, text_only)
    monkeypatch.setattr(tokenizer, "chat_template", text_only)
    talk = [{"role": "assistant", "tool_calls": [{"function": ROME}]}, {"role": "tool", "content": "sun"}]
    with pytest.raises(UserError, match="item r: the chat template refuses it: can only concatenate str"):
        run_task(evaluated, TASK, [record(messages=talk)], True, None)


def test_marks_of_calls_that_decoding_leaves_out_are_refused(tmp_path, tokenizer):
    """A tokenizer that has them among its special tokens: answers are decoded without those."""
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    with pytest.raises(UserError, match=r"as '<tool_call>.*, of which decoding leaves '\{\"name\": \"weather\""):
        check_notation(tmp_path, other, CHAT_TEMPLATE)


def test_a_stop_inside_of_a_call_as_the_template_writes_it_is_refused(tmp_path, tokenizer):
    """Qwen's template has the call on a line of its own, ours has not."""
    task = TASK.model_copy(update={"generation_kwargs": TASK.generation_kwargs.model_copy(update={"until": "\n"})})
    check_notation(tmp_path, tokenizer, CHAT_TEMPLATE, task)
    for stop in ("</tool_call>", ">", "}</"):
        cut = task.model_copy(update={"generation_kwargs": task.generation_kwargs.model_copy(update={"until": [stop]})})
        with pytest.raises(UserError, match=rf"sft: generation_kwargs\.until \['{stop}'\] cuts a call as the chat"):
            check_notation(tmp_path, tokenizer, CHAT_TEMPLATE, cut)
    with pytest.raises(UserError, match=r"sft: generation_kwargs.until '\\n' cuts a call as the chat template writes"):
        check_notation(tmp_path, tokenizer, trl_template("qwen2_5_training"), task)


@pytest.mark.parametrize("text", ["[3, 1, 2] sorted?", " [1, 2]", "[note] Rome?", '[{"x": 1}] has what keys?'])
def test_a_question_may_begin_with_a_bracket(text):
    assert conversation(text, "here") == [{"role": "user", "content": text}]


def test_messages_as_json_are_messages_and_those_of_several_turns_are_refused():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rome?"}]
    assert conversation(json.dumps(turns), "here") == conversation(json.dumps([turns]), "here") == turns
    with pytest.raises(MalformedRecord, match="2 turns are asked"):
        conversation(json.dumps([turns, turns]), "here")
    for cut_off in (json.dumps(turns)[:-1], json.dumps([turns])[:-1]):
        with pytest.raises(MalformedRecord, match="the messages is not JSON"):
            conversation(cut_off, "here")
    with pytest.raises(MalformedRecord, match="a list of at least one"):
        conversation("[]", "here")


IDS = (
    "{% for m in messages %}{% if m.role == 'tool' and not (m.tool_call_id and m.name) %}"
    "{{ raise_exception('a result of what?') }}{% endif %}{% for c in m.tool_calls or [] %}"
    "[{{ c.id }}]{% endfor %}{{ m.tool_call_id }}{{ m.name }}{% endfor %}"
)


def test_a_history_is_written_for_evaluation_as_it_is_for_training(evaluated, tokenizer, monkeypatch):
    """Some templates ask for ids of calls and for the names of results, which records seldom have."""
    from pipeline_lib.post_training.chat_tokens import tokenize_conversations

    monkeypatch.setattr(tokenizer, "chat_template", IDS + CHAT_TEMPLATE)
    calls = [{"function": ROME}, {"function": {"name": "clock", "arguments": {}}}]
    talk = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": "I look.", "tool_calls": calls},
        {"role": "tool", "content": "sun"},
        {"role": "tool", "content": "noon"},
    ]
    model = Answering(evaluated, ["Sun."])
    run_task(model, TASK, [record(messages=talk)], True, None)
    prompt = model.asked[0][0]
    assert prompt.startswith("[000000000][000000001]000000000weather000000001clock")
    whole = [*conversation(talk, "here"), {"role": "assistant", "content": "Sun."}]
    tools = json.dumps(offered_tools(record()["tools"], "here"))
    (trained,) = tokenize_conversations(tokenizer, [whole], [tools])
    assert tokenizer.decode(trained.ids) == prompt + "Sun.<|im_end|>\n"


def first_accepted(value):
    """Return one of the answers that BFCL's layout spells."""
    if isinstance(value, dict):
        kept = {key: [one for one in values if one != ""] for key, values in value.items()}
        return {key: first_accepted(values[0]) for key, values in kept.items() if values}
    return [first_accepted(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["simple_python", "multiple", "parallel", "irrelevance"])
def test_genuine_bfcl_records_score_their_own_answers(shared_data, evaluated, tokenizer, monkeypatch, name):
    monkeypatch.setattr(tokenizer, "chat_template", CHAT_TEMPLATE)
    folder = shared_data / "gorilla" / "bfcl"

    def lines(path):
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    asked = lines(folder / f"BFCL_v4_{name}.json")
    if name == "irrelevance":
        asked = [{**one, "ground_truth": []} for one in asked]
    else:
        answers = lines(folder / "possible_answer" / f"BFCL_v4_{name}.json")
        asked = [{**one, **answer} for one, answer in zip(asked, answers, strict=True)]
        assert all(one["id"] == answer["id"] for one, answer in zip(asked, answers, strict=True))
    right, wrong = [], []
    for one in asked:
        calls = [
            {"name": function, "arguments": first_accepted(arguments)}
            for call in one["ground_truth"]
            for function, arguments in call.items()
        ]
        right.append(written(*reversed(calls)))
        wrong.append(written(*calls, {"name": one["function"][0]["name"], "arguments": {"never": 0}}))
    assert len(call_records(BFCL, asked)) == len(asked) >= 100
    for answers, expected in ((right, 1.0), (wrong, 0.0)):
        samples = run_task(Answering(evaluated, answers), BFCL, asked, True, None)
        assert {sample.item for sample in samples if sample.metric == "success" and sample.score != expected} == set()
        if expected:
            assert {s.item for s in samples if s.score != 1.0} == set()
