"""Functions in conversations: the spellings that are read, the order that turns must have, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_formatters import FORMAT_HANDLERS, MalformedRecord
from dataset_formatters.tool_calls import LONGEST_LITERAL, call, calls_of, parsed, tool_schemas
from dataset_formatters.turns import conversation

WHERE = "sft/set.jsonl:3"
WEATHER = {"name": "weather", "description": "Of a city.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": WEATHER}]
ASKS = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Åre"}'}}

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {"role": "assistant", "content": "", "tool_calls": [ASKS]}
TWO_CALLS = {"role": "assistant", "content": "", "tool_calls": [ASKS, ASKS]}
RESULT = {"role": "tool", "content": "-3"}


def reason_of(function, *arguments):
    with pytest.raises(MalformedRecord) as refusal:
        function(*arguments)
    assert str(refusal.value).startswith(WHERE + ": ")
    return refusal.value.reason


@pytest.mark.parametrize(
    "turns",
    [
        [USER, CALL],
        [USER, CALL, RESULT, ANSWER],
        [USER, ANSWER, USER, CALL, RESULT, CALL, RESULT, ANSWER],
        [USER, TWO_CALLS, RESULT, RESULT, ANSWER, USER, ANSWER],
        [USER, TWO_CALLS, RESULT, ANSWER],
        [USER, CALL, {"role": "tool", "content": ""}, ANSWER],
    ],
)
def test_calls_and_results_stand_between_the_user_and_the_answer(turns):
    assert conversation(turns, WHERE, TOOLS) == {"messages": turns, "tools": json.dumps(TOOLS)}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([USER, CALL, ANSWER], "call_without_result"),
        ([USER, CALL, USER, ANSWER], "call_without_result"),
        ([USER, CALL, CALL], "call_without_result"),
        ([USER, RESULT, ANSWER], "result_without_call"),
        ([USER, ANSWER, RESULT, ANSWER], "result_without_call"),
        ([USER, CALL, RESULT, RESULT, ANSWER], "result_without_call"),
        ([USER, CALL, RESULT, ANSWER, USER, CALL, RESULT, RESULT, ANSWER], "result_without_call"),
        ([USER, CALL, RESULT, USER, ANSWER], "result_without_answer"),
        ([USER, CALL, RESULT], "ends_without_answer"),
        ([USER, CALL, RESULT, ANSWER, ANSWER], "turns_do_not_alternate"),
        ([RESULT, ANSWER], "starts_with_assistant"),
    ],
)
def test_other_orders_are_refused_by_name(turns, reason):
    assert reason_of(conversation, turns, WHERE, TOOLS) == reason


def test_a_function_must_be_offered_to_be_called():
    assert reason_of(conversation, [USER, CALL], WHERE) == "unknown_function"
    other = [{"type": "function", "function": {**WEATHER, "name": "forecast"}}]
    assert reason_of(conversation, [USER, CALL], WHERE, other) == "unknown_function"


ARGUMENTS = st.dictionaries(
    st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()), max_size=4
)


@given(ARGUMENTS)
def test_every_spelling_of_a_call_means_the_same(arguments):
    wanted = call("f", arguments, WHERE)
    assert json.loads(wanted["function"]["arguments"]) == arguments
    bare = {"name": "f", "arguments": arguments}
    spellings = [
        bare,
        {"name": "f", "parameters": arguments},
        {"name": "f", "arguments": json.dumps(arguments)},
        {"name": "f", "arguments": repr(arguments)},
        {"id": "call_1", "type": "function", "function": bare},
        json.dumps(bare),
        repr(bare),
    ]
    for spelling in spellings:
        assert calls_of(spelling, WHERE) == [wanted]
    assert calls_of(json.dumps([bare, bare]), WHERE) == [wanted, wanted]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"arguments": {}}, "malformed_call"),
        ({"name": " ", "arguments": {}}, "malformed_call"),
        ({"name": "f", "arguments": [1]}, "malformed_call"),
        ({"name": "f", "arguments": "[1]"}, "malformed_call"),
        ({"name": "f", "arguments": "city=Rome"}, "not_json"),
        ({"name": "f", "arguments": "{1: 2}"}, "malformed_call"),
        ({"name": "f", "arguments": {"x": float("nan")}}, "not_json"),
        ("f(x)", "not_json"),
        ("1", "malformed_call"),
        ([["f"]], "malformed_call"),
    ],
)
def test_calls_that_make_no_sense_are_refused_by_name(value, reason):
    assert reason_of(calls_of, value, WHERE) == reason


def test_literals_are_read_and_never_evaluated():
    assert parsed("{'a': True, 'b': None}", "x", WHERE) == {"a": True, "b": None}
    for text in ("__import__('os').getcwd()", "[1][0]", "{" * 5000, "'" + "a" * LONGEST_LITERAL + "'", "(" * 300):
        assert reason_of(parsed, text, "x", WHERE) == "not_json"


def test_tools_have_one_form_however_they_are_written():
    for given_tools in (TOOLS, [WEATHER], WEATHER, json.dumps(TOOLS), repr([WEATHER]), [WEATHER, WEATHER]):
        assert tool_schemas(given_tools, WHERE) == TOOLS
    for none in (None, "", " ", [], "[]"):
        assert tool_schemas(none, WHERE) == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("tools", "not_json"),
        (["weather"], "malformed_tool"),
        ([{"description": "no name"}], "malformed_tool"),
        ([{"name": "f", "parameters": [1]}], "malformed_tool"),
        ([{"name": "f", "description": {}}], "malformed_tool"),
        ([{"name": "f"}, {"name": "f", "description": "another"}], "repeated_tool"),
    ],
)
def test_tools_that_make_no_sense_are_refused_by_name(value, reason):
    assert reason_of(tool_schemas, value, WHERE) == reason


def openai(*turns, **fields):
    return {"messages": [USER, *turns], "tools": TOOLS, **fields}


def test_openai_messages_with_calls():
    asks = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Åre"}'}}
    answers = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "-3"}
    for turn in ({"tool_calls": [asks]}, {"tool_calls": [asks], "content": None}, {"function_call": asks["function"]}):
        made = FORMAT_HANDLERS["messages"](openai({"role": "assistant", **turn}, answers, ANSWER), WHERE)
        assert made == {"messages": [USER, CALL, RESULT, ANSWER], "tools": json.dumps(TOOLS)}
    said = {"role": "assistant", "content": "I look.", "tool_calls": [asks]}
    assert FORMAT_HANDLERS["messages"](openai(said), WHERE)["messages"][1] == {**CALL, "content": "I look."}


def test_results_come_in_the_order_of_the_calls_that_they_name():
    asks = [{**ASKS, "id": identity} for identity in ("c1", "c2")]
    one, two = ({"role": "tool", "content": text, "tool_call_id": text} for text in ("c1", "c2"))
    calls = {"role": "assistant", "tool_calls": asks}
    for results in ((one, two), (two, one)):
        made = FORMAT_HANDLERS["messages"](openai(calls, *results, ANSWER), WHERE)["messages"]
        assert [turn["content"] for turn in made[2:4]] == ["c1", "c2"] and "tool_call_id" not in made[2]
    nameless = {"role": "tool", "content": "x"}
    assert FORMAT_HANDLERS["messages"](openai(calls, nameless, ANSWER), WHERE)["messages"][2]["content"] == "x"
    assert FORMAT_HANDLERS["messages"](openai(calls), WHERE)["messages"][1]["tool_calls"] == [ASKS, ASKS]
    for results, reason in (
        ((two,), "call_without_result"),
        ((one, one), "result_without_call"),
        ((one, {**two, "tool_call_id": "c3"}), "result_without_call"),
    ):
        assert reason_of(FORMAT_HANDLERS["messages"], openai(calls, *results, ANSWER), WHERE) == reason


def test_nulls_that_a_parquet_column_of_objects_adds_are_taken_out():
    """pyarrow gives every object of a column the keys of all."""
    import pyarrow

    tool = {"name": "look", "parameters": {"type": "object", "properties": {"n": {"type": "integer", "default": 1}}}}
    other = {"name": "find", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    given = [
        openai(
            {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}, tools=[schema]
        )
        for name, arguments, schema in (("look", {"n": None}, tool), ("find", {"city": "Rome"}, other))
    ]
    through_parquet = pyarrow.Table.from_pylist(given).to_pylist()
    assert through_parquet != given
    for record, plain in zip(through_parquet, given, strict=True):
        assert FORMAT_HANDLERS["messages"](record, WHERE) == FORMAT_HANDLERS["messages"](plain, WHERE)
    kept = FORMAT_HANDLERS["messages"](through_parquet[0], WHERE)["messages"][1]["tool_calls"][0]
    assert kept["function"]["arguments"] == '{"n": null}'


def test_nulls_inside_of_arguments_go_only_where_a_schema_says_that_they_are_foreign():
    inner = {"type": "object", "properties": {"a": {}}}
    schema = {"type": "object", "properties": {"one": inner, "many": {"type": "array", "items": inner}, "free": {}}}
    arguments = {"one": {"a": None, "b": None}, "many": [{"b": None, "a": 1}], "free": {"b": None}, "z": None}
    turn = {"role": "assistant", "content": "", "tool_calls": [call("f", arguments, WHERE)]}
    tools = tool_schemas([{"name": "f", "parameters": schema}], WHERE)
    made = conversation([USER, turn], WHERE, tools)["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(made) == {"one": {"a": None}, "many": [{"a": 1}], "free": {"b": None}}
    kept = {"enum": ["a", None], "default": None}
    listed = {"name": "f", "parameters": {"properties": {"x": {**kept, "minimum": None}, "y": None}}}
    assert tool_schemas([listed], WHERE)[0]["function"]["parameters"] == {"properties": {"x": kept}}


@pytest.mark.parametrize("place", ["name", "arguments", "tools", "content"])
def test_half_of_a_character_is_refused_wherever_json_spells_it(place):
    half = json.loads('"x \\ud83d"')
    name = half if place == "name" else "f"
    tools = [{"name": name, "description": half if place == "tools" else ""}]
    arguments = json.dumps({"a": half if place == "arguments" else 1})
    asks = {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}
    if place == "content":
        asks["content"] = half
    record = {"messages": [USER, asks], "tools": json.dumps(tools)}
    assert reason_of(FORMAT_HANDLERS["messages"], record, WHERE) == "not_utf8"
    pair = {"prompt": "q", "chosen": "a", "rejected": half}
    assert reason_of(FORMAT_HANDLERS["preference"], pair, WHERE) == "not_utf8"


def test_only_the_assistant_calls():
    for turn in ({"role": "user", "content": "q", "tool_calls": [ASKS]}, {**RESULT, "tool_calls": [ASKS]}):
        assert reason_of(FORMAT_HANDLERS["messages"], {"messages": [turn], "tools": TOOLS}, WHERE) == "malformed_call"
    twice = openai(ANSWER, functions=[WEATHER])
    assert reason_of(FORMAT_HANDLERS["messages"], twice, WHERE) == "two_tool_lists"


def test_sharegpt_calls_are_turns_of_their_own():
    turns = [("human", "q"), ("function_call", '{"name": "weather", "arguments": {"city": "Åre"}}')]
    turns += [("observation", "-3"), ("gpt", "a")]
    record = {"conversations": [{"from": who, "value": what} for who, what in turns], "tools": json.dumps([WEATHER])}
    assert FORMAT_HANDLERS["sharegpt"](record, WHERE) == {
        "messages": [USER, CALL, RESULT, ANSWER],
        "tools": json.dumps(TOOLS),
    }
    record["conversations"][3]["tool_calls"] = [ASKS]
    assert reason_of(FORMAT_HANDLERS["sharegpt"], record, WHERE) == "malformed_call"


def test_preference_pairs_do_not_call():
    pair = {"prompt": [USER], "chosen": [CALL], "rejected": [ANSWER]}
    assert reason_of(FORMAT_HANDLERS["preference"], pair, WHERE) == "tool_turn"
    pair = {"prompt": [USER, CALL, RESULT, ANSWER, USER], "chosen": [ANSWER], "rejected": [ANSWER]}
    assert reason_of(FORMAT_HANDLERS["preference"], pair, WHERE) == "tool_turn"
