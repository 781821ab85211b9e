"""Pairs of Orca, OpenAI, UltraFeedback and Stack Exchange: which answer is chosen, what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_formatters import FORMAT_HANDLERS, PREFERENCE_HANDLERS, MalformedRecord

WHERE = "preference/set.jsonl:1"
USER = {"role": "user", "content": "q"}
SYSTEM = {"role": "system", "content": "s"}


def answer(text):
    return [{"role": "assistant", "content": text}]


def refused(name, record):
    with pytest.raises(MalformedRecord) as refusal:
        FORMAT_HANDLERS[name](record, WHERE)
    assert str(refusal.value).startswith(WHERE + ": ")
    return refusal.value.reason


ORCA = {"system": " s", "question": "q\n", "chosen": " good", "rejected": "bad "}
OPENAI = {
    "input": {"messages": [SYSTEM, USER], "tools": [], "parallel_tool_calls": True},
    "preferred_output": answer("good"),
    "non_preferred_output": answer("bad"),
}
STACK = {"question": "q", "response_j": "good", "response_k": "bad", "qid": 7}


@pytest.mark.parametrize(("name", "record"), [("orca-dpo", ORCA), ("openai-preference", OPENAI)])
def test_a_system_text_comes_before_the_question(name, record):
    expected = {"prompt": [SYSTEM, USER], "chosen": answer("good"), "rejected": answer("bad")}
    assert FORMAT_HANDLERS[name](record, WHERE) == expected


@pytest.mark.parametrize("none", ["", " ", None])
def test_orca_without_system_text(none):
    assert FORMAT_HANDLERS["orca-dpo"]({**ORCA, "system": none}, WHERE)["prompt"] == [USER]


def test_stack_exchange_prefers_response_j():
    expected = {"prompt": [USER], "chosen": answer("good"), "rejected": answer("bad")}
    assert FORMAT_HANDLERS["stack-exchange"](STACK, WHERE) == expected


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("orca-dpo", {**ORCA, "question": ""}, "empty_field"),
        ("orca-dpo", {**ORCA, "system": ["s"]}, "wrong_type"),
        ("orca-dpo", {**ORCA, "chosen": " "}, "empty_side"),
        ("orca-dpo", {**ORCA, "rejected": None}, "missing_field"),
        ("orca-dpo", {**ORCA, "rejected": answer("bad")}, "wrong_type"),
        ("orca-dpo", [ORCA], "wrong_type"),
        ("stack-exchange", {**STACK, "response_k": ""}, "empty_side"),
        ("stack-exchange", {"question": "q", "response_j": "good"}, "missing_field"),
        ("openai-preference", {**OPENAI, "input": [USER]}, "wrong_type"),
        ("openai-preference", {**OPENAI, "input": {}}, "missing_field"),
        ("openai-preference", {**OPENAI, "input": {"messages": [USER], "tools": [{"type": "function"}]}},
         "tools_offered"),
        ("openai-preference", {**OPENAI, "input": {"messages": [USER, *answer("a")]}}, "prompt_ends_with_answer"),
        ("openai-preference", {**OPENAI, "preferred_output": answer("a") * 2}, "answer_is_not_one_turn"),
        ("openai-preference", {**OPENAI, "preferred_output": answer("")}, "empty_side"),
        ("openai-preference", {**OPENAI, "non_preferred_output": "bad"}, "wrong_type"),
        ("openai-preference", {**OPENAI, "non_preferred_output": [{"role": "assistant", "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": "{}"}}]}]}, "tool_turn"),
    ],
)  # fmt: skip
def test_texts_and_turns_are_refused_by_name(name, record, reason):
    assert refused(name, record) == reason


def rated(*completions):
    answers = [{"response": text, "overall_score": score, "model": "m"} for text, score in completions]
    return {"instruction": "q", "source": "sharegpt", "completions": answers}


@pytest.mark.parametrize(
    ("completions", "chosen", "rejected"),
    [
        ([("a", 5.0), ("b", 8.5), ("c", 2), ("d", 6.0)], "b", "c"),
        ([("a", 1), ("b", 1), ("c", 9), ("d", 9)], "c", "a"),
        ([("a", -1.0), ("b", 0)], "b", "a"),
        ([("a", 3), ("b", 3), ("c", 4)], "c", "a"),
    ],
)
def test_ultrafeedback_sets_the_best_against_the_worst_the_first_of_equals(completions, chosen, rejected):
    made = FORMAT_HANDLERS["ultrafeedback"](rated(*completions), WHERE)
    assert made == {"prompt": [USER], "chosen": answer(chosen), "rejected": answer(rejected)}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (rated(), "fewer_than_two_answers"),
        (rated(("a", 5)), "fewer_than_two_answers"),
        (rated(("a", 5), ("b", 5.0)), "equal_scores"),
        (rated(("a", 5), ("b", None)), "score_is_no_number"),
        (rated(("a", 5), ("b", "4")), "score_is_no_number"),
        (rated(("a", True), ("b", 4)), "score_is_no_number"),
        (rated(("a", float("nan")), ("b", 4)), "score_is_no_number"),
        (rated(("a", 10**400), ("", 4)), "empty_side"),
        (rated((None, 5), ("b", 4)), "missing_field"),
        ({**rated(), "completions": None}, "wrong_type"),
        ({**rated(), "completions": ["a", "b"]}, "wrong_type"),
        ({**rated(("a", 5), ("b", 4)), "instruction": ""}, "empty_field"),
    ],
)
def test_ultrafeedback_refuses_by_name(record, reason):
    assert refused("ultrafeedback", record) == reason


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
whole = [
    ("orca-dpo", ORCA),
    ("stack-exchange", STACK),
    ("openai-preference", OPENAI),
    ("ultrafeedback", rated(("good", 5), ("bad", 4))),
    ("preference", {"prompt": [USER], "chosen": answer("good"), "rejected": answer("bad")}),
    ("sharegpt-preference", {"conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"}}),
    ("hh-rlhf", {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}),
    ("dolly", {"instruction": "q", "context": "c", "response": "a"}),
    ("oasst", {"tree_state": "ready_for_export", "prompt": {"text": "q", "role": "prompter", "replies": [
        {"text": "a", "role": "assistant", "rank": 0, "deleted": False, "review_result": True, "replies": []}]}}),
]  # fmt: skip


def places(value, path=()):
    """Every path into a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def with_value(record, path, value):
    """A copy of the record with another value at the path."""
    if not path:
        return value
    copy = json.loads(json.dumps(record))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return copy


def test_every_pair_format_is_tried_with_damage():
    assert PREFERENCE_HANDLERS.keys() <= {name for name, _ in whole}


@given(st.sampled_from(whole), st.data())
def test_a_record_with_any_value_anywhere_is_formatted_or_refused_with_a_reason(example, data):
    name, record = example
    assert FORMAT_HANDLERS[name](record, WHERE)
    damaged = with_value(record, data.draw(st.sampled_from(list(places(record)))), data.draw(values))
    try:
        made = FORMAT_HANDLERS[name](damaged, WHERE)
    except MalformedRecord as refusal:
        assert refusal.reason.replace("_", "").isalpha() and str(refusal).startswith(WHERE + ": ")
        return
    for key in ("messages",) if "messages" in made else ("prompt", "chosen", "rejected"):
        assert all(turn["content"] == turn["content"].strip() != "" for turn in made[key])


@pytest.mark.parametrize(
    ("name", "file", "kept"),
    [
        ("openai-preference", "preference/orca_dpo_pairs_azure.part1.jsonl", 142),
        ("orca-dpo", "hf_rows_quoted/orca_dpo_pairs_rows.jsonl", 2),
        ("stack-exchange", "preference/stack_exchange_paired_tiny.json", 25),
    ],
)
def test_genuine_pairs_are_all_kept(shared_data, name, file, kept):
    text = (shared_data / file).read_text("utf-8")
    records = [json.loads(line) for line in text.splitlines()] if file.endswith("l") else json.loads(text)
    made = [FORMAT_HANDLERS[name](record, WHERE) for record in records]
    assert len(made) == kept
    for record, pair in zip(records, made, strict=True):
        assert pair["chosen"] != pair["rejected"]
        written = json.dumps(record)
        for turn in pair["prompt"] + pair["chosen"] + pair["rejected"]:
            assert json.dumps(turn["content"])[1:-1] in written
