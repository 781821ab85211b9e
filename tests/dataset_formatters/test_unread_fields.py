"""Nothing is lost: a format shows what belongs to a question or a turn, or it refuses the record under a name."""

import json

import pytest

from dataset_formatters import (
    FORMAT_HANDLERS,
    MalformedRecord,
    detect_dataset_format,
    general,
    math,
    message_trees,
    preference,
    reasoning,
)
from dataset_formatters.record import QUESTION_FIELDS, has_entries

WHERE = "sft/set.jsonl:3"
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SAID = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
TOOLS = [{"type": "function", "function": {"name": "lost_and_found"}}]
GIVEN = {**dict.fromkeys(QUESTION_FIELDS, "lost_and_found"), "tools": TOOLS, "functions": json.dumps(TOOLS)}
GIVEN["history"] = [["lost_and_found", "yes"]]

READS = {
    "messages": {"system", "tools", "functions"},
    "sharegpt": {"system", "tools", "functions"},
    "alpaca": {"system", "input", "history"},
    "dolly": {"context"},
    "openorca": {"system_prompt"},
    "logiqa": {"context"},
    "preference": {"system"},
    "sharegpt-preference": {"system"},
    "orca-dpo": {"system"},
    "openai-preference": {"input"},
}
WHOLE = {
    "messages": {"messages": TURNS},
    "sharegpt": {"conversations": SAID},
    "alpaca": {"instruction": "q", "output": "a"},
    "dolly": {"instruction": "q", "response": "a"},
    "oasst": {"prompt": {"role": "prompter", "text": "q", "replies": [{"role": "assistant", "text": "a"}]}},
    "gsm8k": {"question": "q", "answer": "2 and 2\n#### 4"},
    "orca-math": {"question": "q", "answer": "It is 4."},
    "metamath": {"query": "q", "response": "The answer is: 4"},
    "mathinstruct": {"instruction": "q", "output": "print(4)"},
    "math": {"problem": "q", "solution": "\\boxed{4}"},
    "aqua": {"question": "q", "options": ["A)1", "B)4"], "rationale": "Add.", "correct": "B"},
    "arc": {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    "logiqa": {"context": "c", "question": "q", "answers": ["a", "b"], "label": 1},
    "openorca": {"question": "q", "response": "a"},
    "cot-collection": {"source": "q", "rationale": "r", "target": "a"},
    "preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "sharegpt-preference": {"conversations": SAID[:1], "chosen": SAID[1], "rejected": SAID[1]},
    "hh-rlhf": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "orca-dpo": {"question": "q", "chosen": "a", "rejected": "b"},
    "openai-preference": {
        "input": {"messages": TURNS[:1]},
        "preferred_output": TURNS[1:],
        "non_preferred_output": TURNS[1:],
    },
    "ultrafeedback": {
        "instruction": "q",
        "completions": [{"response": "a", "overall_score": 5}, {"response": "b", "overall_score": 4}],
    },
    "stack-exchange": {"question": "q", "response_j": "a", "response_k": "b"},
}


def made_or_reason(name, record):
    try:
        return FORMAT_HANDLERS[name](record, WHERE)
    except MalformedRecord as refusal:
        return refusal.reason


def test_every_format_without_marks_in_its_texts_is_tried():
    modules = (general, message_trees, math, reasoning)
    assert WHOLE.keys() == {*preference.PREFERENCES, *(name for each in modules for name in each.CONVERSATIONS)}


@pytest.mark.parametrize("name", WHOLE)
def test_a_part_of_the_question_is_shown_or_the_record_is_refused(name):
    record = WHOLE[name]
    for field in QUESTION_FIELDS:
        if field == "input" == next(iter(READS.get(name, ())), None):
            continue  # the prompt itself
        made = made_or_reason(name, {**record, field: GIVEN[field]})
        if field in READS.get(name, ()):
            assert "lost_and_found" in json.dumps(made), field
        else:
            assert made == "unread_input", field


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("nothing", ["", " ", None, [], "[]", {}])
def test_an_empty_field_is_nothing_lost(name, nothing):
    unread = [field for field in QUESTION_FIELDS if field not in READS.get(name, ())]
    assert FORMAT_HANDLERS[name]({**WHOLE[name], **dict.fromkeys(unread, nothing)}, WHERE) == FORMAT_HANDLERS[name](
        WHOLE[name], WHERE
    )


@pytest.mark.parametrize(
    ("value", "has"),
    [("0", True), ("false", True), ("text", True), ([0], True), ("[[]]", True), ("1" * 5000, True), ("[" * 9999, True),
     ("", False), (" ", False), ("[]", False), ("{}", False), ("null", False), ('""', False), ([], False),
     (None, False)],
)  # fmt: skip
def test_a_field_that_holds_anything_has_entries(value, has):
    assert has_entries(value) is has


@pytest.mark.parametrize(
    "record",
    [
        {"question": "q", "context": "CREATE TABLE head (age INTEGER)", "answer": "SELECT age FROM head"},
        {"query": "q", "response": "a", "history": [["q0", "a0"]], "system": "s"},
        {"question": "q", "response": "a", "context": "c", "system": "s"},
        {"instruction": "q", "response": "a", "system": "s", "history": [["q0", "a0"]]},
        {"instruction": "q", "output": "a", "tools": TOOLS},
        {"instruction": "q", "output": "a", "system_prompt": "s"},
        {"conversations": SAID, "system_prompt": "s"},
        {"messages": TURNS, "system_prompt": "s"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "tools": TOOLS},
    ],
)
def test_no_format_is_named_that_would_lose_a_part_of_the_question(record):
    assert detect_dataset_format([record] * 20) is None


def test_the_system_text_of_a_pair_comes_first_whether_its_sides_repeat_it_or_not():
    user, system = TURNS[0], {"role": "system", "content": "s"}
    expected = {
        "prompt": [system, user],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    good, bad = expected["chosen"], expected["rejected"]
    for prompt, before in (("q", []), ([user], []), ([user], [user]), ([system, user], [system, user]),
                           ([user], [system, user]), (None, [user])):  # fmt: skip
        record = {"system": " s", "prompt": prompt, "chosen": [*before, *good], "rejected": [*before, *bad]}
        assert made_or_reason("preference", record) == expected
    record = {"system": "t", "prompt": [system, user], "chosen": good, "rejected": bad}
    assert made_or_reason("preference", record) == "two_systems"
    assert made_or_reason("preference", {**record, "system": ["t"]}) == "wrong_type"


def layouts(turns):
    """The same turns in each layout that is read turn by turn, as (format, record)."""
    said = [{"from": turn["role"], "value": turn["content"], **rest(turn)} for turn in turns]
    pair = {"chosen": turns, "rejected": [*turns[:-1], {"role": "assistant", "content": "another"}]}
    yield "messages", {"messages": turns}
    yield "messages", turns
    yield "sharegpt", {"conversations": said}
    yield "preference", pair
    yield "preference", {"prompt": turns[:-1], "chosen": turns[-1:], "rejected": pair["rejected"][-1:]}
    yield "sharegpt-preference", {"conversations": said[:-1], "chosen": said[-1], "rejected": said[-1]}
    yield "openai-preference", {
        "input": {"messages": turns[:-1]}, "preferred_output": turns[-1:], "non_preferred_output": turns[-1:]
    }  # fmt: skip


def rest(turn):
    return {key: value for key, value in turn.items() if key not in ("role", "content")}


CHAT = [*TURNS, {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]


@pytest.mark.parametrize("place", [1, 3])
@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"weight": 0}, "judged_bad"),
        ({"weight": 0.0}, "judged_bad"),
        ({"weight": 0.5}, "unknown_weight"),
        ({"weight": "0"}, "unknown_weight"),
        ({"weight": []}, "unknown_weight"),
        ({"thinking": "t"}, "unread_reasoning"),
        ({"reasoning": [{"text": "t"}]}, "unread_reasoning"),
        ({"reasoning_content": " t"}, "unread_reasoning"),
        ({"refusal": "I cannot."}, "unread_refusal"),
    ],
)
def test_what_a_turn_says_beside_its_content_is_not_lost(place, beside, reason):
    turns = [{**turn, **beside} if number == place else turn for number, turn in enumerate(CHAT)]
    for name, record in layouts(turns):
        assert made_or_reason(name, record) == reason, (name, record)


def test_turns_that_say_nothing_more_are_read_as_ever():
    nothing = {"weight": 1, "thinking": None, "reasoning_content": "", "reasoning": [], "refusal": None}
    turns = [{**turn, **nothing} for turn in CHAT]
    turns[0]["weight"] = turns[2]["weight"] = 0  # of the user's turns nothing is learnt anyway
    for (name, record), (_, plain) in zip(layouts(turns), layouts(CHAT), strict=True):
        assert FORMAT_HANDLERS[name](record, WHERE) == FORMAT_HANDLERS[name](plain, WHERE)


def test_a_call_that_is_not_to_be_learnt_is_refused_too():
    called = {"name": "lost_and_found", "arguments": "{}"}
    turns = [TURNS[0], {"role": "assistant", "tool_calls": [{"function": called}], "weight": 0}]
    assert made_or_reason("messages", {"messages": turns, "tools": TOOLS}) == "judged_bad"
    said = [SAID[0], {"from": "function_call", "value": json.dumps(called), "weight": 0}]
    assert made_or_reason("sharegpt", {"conversations": said, "tools": TOOLS}) == "judged_bad"
