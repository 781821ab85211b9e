"""The conversation formatters: what each layout becomes, what is refused and under which name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_formatters import CONVERSATION_HANDLERS, FORMAT_HANDLERS, PREFERENCE_HANDLERS, MalformedRecord, handler_for
from dataset_formatters.math import normalised_number
from pipeline_lib.stage import UserError

WHERE = "sft/set.jsonl:3"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def refused(name, record):
    with pytest.raises(MalformedRecord) as refusal:
        FORMAT_HANDLERS[name](record, WHERE)
    assert str(refusal.value).startswith(WHERE + ": ")
    return refusal.value.reason


def test_alpaca_puts_the_input_after_the_instruction():
    record = {"instruction": "Translate to French. ", "input": "Good day", "output": "Bonjour\n"}
    assert FORMAT_HANDLERS["alpaca"](record, WHERE) == {
        "messages": [user("Translate to French.\n\nGood day"), assistant("Bonjour")],
        "tools": None,
    }


@pytest.mark.parametrize("empty", ["", "  ", "<noinput>", None])
def test_alpaca_without_input_asks_the_instruction_alone(empty):
    record = {"instruction": "Say hi", "input": empty, "output": "hi"}
    assert FORMAT_HANDLERS["alpaca"](record, WHERE)["messages"][0] == user("Say hi")


def test_alpaca_system_text_comes_first():
    record = {"system": "Be brief.", "instruction": "Say hi", "output": "hi"}
    roles = [turn["role"] for turn in FORMAT_HANDLERS["alpaca"](record, WHERE)["messages"]]
    assert roles == ["system", "user", "assistant"]


@pytest.mark.parametrize("none", [None, [], "", "[]"])
def test_alpaca_history_is_the_turns_before_the_instruction(none):
    record = {"system": "s", "instruction": "q3", "output": "a3", "history": [["q1", " a1"], ["q2", "a2"]]}
    said = [user("q1"), assistant("a1"), user("q2"), assistant("a2"), user("q3"), assistant("a3")]
    assert FORMAT_HANDLERS["alpaca"](record, WHERE)["messages"] == [{"role": "system", "content": "s"}, *said]
    assert FORMAT_HANDLERS["alpaca"]({**record, "system": None, "history": none}, WHERE)["messages"] == said[-2:]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"instruction": "a"}, "missing_field"),
        ({"instruction": "a", "output": "  "}, "empty_field"),
        ({"instruction": "a", "output": 7}, "wrong_type"),
        (["a"], "wrong_type"),
        ({"instruction": "a", "output": "b", "history": [["q1"]]}, "wrong_type"),
        ({"instruction": "a", "output": "b", "history": [["q1", None]]}, "wrong_type"),
        ({"instruction": "a", "output": "b", "history": [{"user": "q1"}]}, "wrong_type"),
        ({"instruction": "a", "output": "b", "history": "q1"}, "wrong_type"),
        ({"instruction": "a", "output": "b", "history": [["q1", " "]]}, "empty_turn"),
    ],
)
def test_alpaca_refuses_by_name(record, reason):
    assert refused("alpaca", record) == reason


def test_sharegpt_maps_human_and_gpt():
    record = {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"},
        ]
    }
    messages = FORMAT_HANDLERS["sharegpt"](record, WHERE)["messages"]
    assert messages == [{"role": "system", "content": "s"}, user("q"), assistant("a")]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("gpt", "a")], "starts_with_assistant"),
        ([("human", "q")], "ends_without_answer"),
        ([("human", "q"), ("human", "q"), ("gpt", "a")], "turns_do_not_alternate"),
        ([("human", "q"), ("gpt", " ")], "empty_turn"),
        ([("human", "q"), ("function_call", "{}"), ("gpt", "a")], "malformed_call"),
        ([("human", "q"), ("alien", "a")], "unknown_role"),
        ([("human", "q"), (["gpt"], "a")], "unknown_role"),
        ([({"gpt": 1}, "q"), ("gpt", "a")], "unknown_role"),
        ([("human", "q"), ("gpt", "a"), ("system", "s")], "system_not_first"),
        ([("system", "s")], "no_turns"),
        ([("system", " "), ("human", "q"), ("gpt", "a")], "empty_system"),
        ([], "empty_field"),
    ],
)
def test_sharegpt_refuses_by_name(turns, reason):
    assert refused("sharegpt", {"conversations": [{"from": who, "value": what} for who, what in turns]}) == reason


@pytest.mark.parametrize(
    ("name", "key", "turn"),
    [
        ("sharegpt", "conversations", lambda role, text: {"from": role, "value": text}),
        ("messages", "messages", lambda role, text: {"role": role, "content": text}),
    ],
)
def test_the_system_text_of_a_record_comes_first_and_only_once(name, key, turn):
    said = [turn("human", "q"), turn("gpt", "a")]
    expected = [{"role": "system", "content": "s"}, user("q"), assistant("a")]
    for turns in (said, [turn("system", "s"), *said]):
        assert FORMAT_HANDLERS[name]({"system": " s", key: turns}, WHERE)["messages"] == expected
    for absent in ({}, {"system": None}, {"system": ""}):
        assert FORMAT_HANDLERS[name]({**absent, key: said}, WHERE)["messages"] == expected[1:]
    assert refused(name, {"system": "t", key: [turn("system", "s"), *said]}) == "two_systems"
    assert refused(name, {"system": ["s"], key: said}) == "wrong_type"


def test_messages_reads_text_parts_and_bare_lists():
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
    record = [{"role": "user", "content": parts}, {"role": "assistant", "content": "ok"}]
    assert FORMAT_HANDLERS["messages"](record, WHERE) == FORMAT_HANDLERS["messages"]({"messages": record}, WHERE)
    assert FORMAT_HANDLERS["messages"](record, WHERE)["messages"][0] == user("two parts")


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"role": "assistant", "content": [{"type": "image_url"}]}, "content_is_not_text"),
        ({"role": "assistant", "content": None}, "content_is_not_text"),
        ({"role": "assistant", "content": "", "tool_calls": [{}]}, "malformed_call"),
        ({"role": "assistant", "content": "I call it.", "function_call": {"name": "f"}}, "unknown_function"),
        ({"role": [], "content": "a"}, "unknown_role"),
        ({"content": "a"}, "unknown_role"),
        ("text", "wrong_type"),
    ],
)
def test_messages_refuses_by_name(turn, reason):
    assert refused("messages", {"messages": [user("q"), turn]}) == reason


@pytest.mark.parametrize("name", ["tools", "functions"])
@pytest.mark.parametrize("none", ["[]", " ", "null", [], None])
def test_no_tools_are_written_in_many_ways(name, none):
    sharegpt = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], name: none}
    messages = {"messages": [user("q"), assistant("a")], name: none}
    for format_name, record in (("sharegpt", sharegpt), ("messages", messages)):
        expected = {"messages": [user("q"), assistant("a")], "tools": None}
        assert FORMAT_HANDLERS[format_name](record, WHERE) == expected
        assert refused(format_name, {**record, name: "f(x)"}) == "not_json"


def test_gsm8k_drops_calculator_marks_and_keeps_one_spelling_of_the_answer():
    record = {"question": "How much?", "answer": "6*180 = <<6*180=1080>>1080 dollars.\n#### $1,080.00"}
    messages = FORMAT_HANDLERS["gsm8k"](record, WHERE)["messages"]
    assert messages == [user("How much?"), assistant("6*180 = 1080 dollars.\n#### 1080")]


@pytest.mark.parametrize(
    ("answer", "reason"), [("Forty-two.", "no_final_answer"), ("x\n#### none", "final_answer_is_not_a_number")]
)
def test_gsm8k_refuses_by_name(answer, reason):
    assert refused("gsm8k", {"question": "q", "answer": answer}) == reason


@given(st.integers(-(10**12), 10**12), st.booleans(), st.sampled_from(["", ".", ".0", ".00"]), st.booleans())
def test_every_spelling_of_an_integer_normalises_to_it(number, commas, tail, dollar):
    spelled = f"{number:,}" if commas else str(number)
    spelled = spelled.replace("-", "-$") if dollar and number < 0 else ("$" if dollar else "") + spelled
    assert normalised_number(spelled + tail) == str(number)


@pytest.mark.parametrize(
    ("spelled", "number"),
    [("1,234", "1234"), ("1 234", "1234"), ("-1 234.5", "-1234.5"), ("1,234,567.50", "1234567.5"), ("007", "7"),
     ("$ 1,080", "1080"), ("-$ 5", "-5"), ("- 5", "-5"), ("50 %", "50"), (".50", "0.5"), ("-0.0", "0")],
)  # fmt: skip
def test_one_number_has_one_spelling(spelled, number):
    assert normalised_number(spelled) == number


@pytest.mark.parametrize(
    "spelled",
    ["3, 4", "12 15", "1,2", "1,,234", "1,234 567", "1,2345", "1234,567", "12 345 6", "1.5 2", "3 4/5", "- -1"],
)
def test_several_numbers_are_not_one(spelled):
    assert refused("gsm8k", {"question": "q", "answer": f"x\n#### {spelled}"}) == "final_answer_is_not_a_number"


@given(st.lists(st.integers(0, 10**7), min_size=2, max_size=4), st.sampled_from([", ", " , ", "; ", "  "]))
def test_a_list_of_numbers_is_never_one_number(numbers, separator):
    assert normalised_number(separator.join(map(str, numbers))) is None


@given(st.text(max_size=40))
def test_a_normalised_number_is_stable_or_refused(text):
    number = normalised_number(text)
    assert number is None or (normalised_number(number) == number and float(number) is not None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(
            ["messages", "conversations", "role", "from", "content", "value", "instruction", "output", "input",
             "question", "answer", "prompt", "chosen", "rejected", "tools", "system", "history"]
        ),
        inner | st.sampled_from(["user", "assistant", "human", "gpt", "\n\nHuman: a\n\nAssistant: b", "#### 4"]),
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.sampled_from(sorted(FORMAT_HANDLERS)), json_values)
def test_any_json_value_is_formatted_or_refused_with_a_reason(name, record):
    try:
        made = FORMAT_HANDLERS[name](record, WHERE)
    except MalformedRecord as refusal:
        assert refusal.reason.replace("_", "").isalpha()
        return
    turns = made["messages"] if name in CONVERSATION_HANDLERS else made["prompt"] + made["chosen"]
    assert turns[-1]["role"] == "assistant"
    assert all(turn["content"] == turn["content"].strip() != "" for turn in turns)


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(UserError, match='unknown format "alpacca"; the nearest is "alpaca"'):
        handler_for("alpacca", CONVERSATION_HANDLERS, "chat")


def test_a_format_of_the_wrong_kind_says_what_it_makes():
    with pytest.raises(UserError, match="makes preference pairs"):
        handler_for("hh-rlhf", CONVERSATION_HANDLERS, "chat")
    assert handler_for("hh-rlhf", PREFERENCE_HANDLERS, "pairs") is FORMAT_HANDLERS["hh-rlhf"]
