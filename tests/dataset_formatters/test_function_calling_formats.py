"""Glaive, Hermes and xLAM: what their marks become, and what is refused under which name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_formatters.function_calling import json_sequence
from dataset_formatters.parameter_schemas import object_schema, type_schema, with_json_types
from function_turns import (
    CLOCK,
    GLAIVE_SYSTEM,
    TOOLS,
    WEATHER,
    assistant,
    calls,
    hermes,
    made,
    reason_of,
    result,
    user,
)

# Random conversations with functions, in the form that every formatter must give them.

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=40).map(str.strip).filter(bool)
VALUES = st.booleans() | st.integers() | TEXT | st.lists(TEXT | st.none(), max_size=2)
"""Not null itself: such an argument goes when the function does not declare it (tool_calls.py)."""
ARGUMENTS = st.dictionaries(TEXT, VALUES, max_size=3)
CALLS = st.lists(st.tuples(st.sampled_from(["weather", "clock"]), ARGUMENTS), min_size=1, max_size=3)


@st.composite
def conversations(draw, text, one_result_each=False):
    turns = []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(user(draw(text)))
        for made_calls in draw(st.lists(CALLS, max_size=2)):
            turns.append(calls(*made_calls, say=draw(st.just("") | text)))
            turns += [result(draw(text)) for _ in (made_calls if one_result_each else made_calls[:1])]
        turns.append(assistant(draw(text)))
    return turns


# Glaive

KEPT_SYSTEM = "You are a helpful assistant with access to the following functions. Use them if required"


def glaive(chat, *tools, system=GLAIVE_SYSTEM):
    return {"system": system + "\n\n".join(json.dumps(tool, indent=4) for tool in tools) + "\n", "chat": chat}


def glaive_chat(turns):
    """Render turns in the raw layout, with arguments between apostrophes."""
    chat = ""
    for turn in turns:
        text = turn["content"]
        for each in turn.get("tool_calls", ()):
            function = each["function"]
            arguments = function["arguments"].replace("'", "\\'")
            text += f' <functioncall> {{"name": "{function["name"]}", "arguments": \'{arguments}\'}}'
        speaker = {"user": "USER", "assistant": "ASSISTANT", "tool": "FUNCTION RESPONSE"}[turn["role"]]
        chat += f"{speaker}: {text}{' <|endoftext|>' if turn['role'] == 'assistant' else ''}\n\n\n"
    return chat


def without_speaker(text):
    return not any(mark in "\n\n" + text for mark in ("\n\nUSER:", "\n\nASSISTANT:", "\n\nFUNCTION RESPONSE:"))


@given(conversations(TEXT.filter(without_speaker)))
def test_glaive_turns_are_read_back_from_their_raw_layout(turns):
    messages, tools = made("glaive", glaive(glaive_chat(turns), WEATHER, CLOCK))
    assert messages == [{"role": "system", "content": KEPT_SYSTEM}, *turns]
    assert tools == TOOLS


def test_glaive_speakers_stand_at_the_beginning_or_after_a_blank_line():
    chat = "USER: Write\nUSER: hi\nASSISTANT: ho\n\n\nASSISTANT: A USER: and an\nUSER: each. <|endoftext|>\n\n\n"
    messages, tools = made("glaive", {"system": "", "chat": chat})
    assert messages == [user("Write\nUSER: hi\nASSISTANT: ho"), assistant("A USER: and an\nUSER: each.")]
    assert tools is None


def test_glaive_without_functions_keeps_its_system_text():
    chat = "USER: hi\n\n\nASSISTANT: hello <|endoftext|>"
    system = "You are a helpful assistant, with no access to external functions."
    messages, tools = made("glaive", {"system": f"SYSTEM: {system}\n", "chat": chat})
    assert messages[0] == {"role": "system", "content": system} and tools is None


def test_glaive_text_behind_the_list_of_functions_is_kept():
    record = glaive("USER: hi\n\n\nASSISTANT: hello <|endoftext|>", WEATHER)
    record["system"] += "Answer in verse.\n"
    messages, tools = made("glaive", record)
    assert messages[0]["content"] == KEPT_SYSTEM + "\n\nAnswer in verse." and tools == TOOLS[:1]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("""'{"city": "L\\'Aquila"}'""", {"city": "L'Aquila"}),
        ("""'{"city": "L'Aquila"}'""", {"city": "L'Aquila"}),
        ("""'{"city": "a \\"b\\"\\nc"}'""", {"city": 'a "b"\nc'}),
        ("""'{"city": "it's } 'here'"}'""", {"city": "it's } 'here'"}),
        ("""{"city": "Rome"}""", {"city": "Rome"}),
        ('"{\\"city\\": \\"Rome\\"}"', {"city": "Rome"}),
        ("'{}'", {}),
        ("''", {}),
    ],
)
def test_glaive_arguments_stand_between_apostrophes_or_as_json(written, meant):
    for end in ("", " </functioncall>"):
        chat = (
            f'USER: q\n\n\nASSISTANT: <functioncall> {{"name": "weather", "arguments": {written}}}{end} <|endoftext|>'
        )
        assert made("glaive", glaive(chat, WEATHER))[0][1:] == [user("q"), calls(("weather", meant))]


CALL_TEXT = '<functioncall> {"name": "weather", "arguments": \'{"city": "Rome"}\'}'


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("a <|endoftext|> b", "text_after_end"),
        (CALL_TEXT + " <|endoftext|>\n\n\nUSER: and?", "call_without_result"),
        ("<functioncall> weather", "not_json"),
        ('<functioncall> {"name": "weather", "arguments": {}} done', "text_after_call"),
        ('<functioncall> {"name": "weather", "arguments": \'{"city": \'}', "not_json"),
        ('<functioncall> {"name": "forecast", "arguments": \'{}\'}', "unknown_function"),
        ('<functioncall> {"name": "weather", "arguments": \'[1]\'}', "malformed_call"),
        ("<functioncall> []", "malformed_call"),
        ("<functioncall>", "not_json"),
        (" <|endoftext|>", "empty_turn"),
        ("a <|endoftext|>\n\n\nASSISTANT: b", "turns_do_not_alternate"),
        ("a <|endoftext|>\n\n\nFUNCTION RESPONSE: {}", "result_without_call"),
    ],
)
def test_glaive_refuses_by_name(answer, reason):
    assert reason_of("glaive", glaive("USER: q\n\n\nASSISTANT: " + answer, WEATHER)) == reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"system": "SYSTEM: s"}, "missing_field"),
        ({"system": "SYSTEM: s", "chat": "hello"}, "not_a_transcript"),
        ({"system": "SYSTEM: s", "chat": "hello\n\n\nUSER: q\n\n\nASSISTANT: a"}, "not_a_transcript"),
        ({"system": GLAIVE_SYSTEM + '{"name": ', "chat": "USER: q\n\n\nASSISTANT: a"}, "not_json"),
        ({"system": GLAIVE_SYSTEM + '{"name": "f"}, {"name": "g"}', "chat": "USER: q\n\n\nASSISTANT: a"}, "not_json"),
        ({"system": GLAIVE_SYSTEM + '{"title": "f"}', "chat": "USER: q\n\n\nASSISTANT: a"}, "malformed_tool"),
    ],
)
def test_glaive_records_that_make_no_sense_are_refused_by_name(record, reason):
    assert reason_of("glaive", record) == reason


@given(st.lists(st.dictionaries(TEXT, VALUES, max_size=2), max_size=3), st.sampled_from(["\n\n", "", " \n"]), TEXT)
def test_json_objects_in_a_row_are_read_until_something_else(values, between, rest):
    rest = rest.lstrip("{[")
    text = between.join(json.dumps(value) for value in values)
    assert json_sequence(text + between + rest) == (values, rest.strip())


# Hermes

HERMES_PROMPTS = [
    "You are a function calling AI model. You are provided with function signatures within <tools> </tools> XML tags."
    " You may call one or more functions to assist with the user query. Don't make assumptions about what values to"
    " plug into functions. <tools> {tools} </tools> For each function call return a json object with function name and"
    " arguments within <tool_call> </tool_call> tags with the following schema: <tool_call> {{'arguments':"
    " <args-dict>, 'name': <function-name>}} </tool_call> ",
    "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags."
    "You may call one or more functions to assist with the user query. Don't make assumptions about what values to"
    " plug into functions.Here are the available tools:<tools>\n{tools}\n</tools>Use the following pydantic model json"
    " schema for each tool call you will make: {{'title': 'FunctionCall', 'type': 'object', 'properties':"
    " {{'arguments': {{'title': 'Arguments', 'type': 'object'}}, 'name': {{'title': 'Name', 'type': 'string'}}}},"
    " 'required': ['arguments', 'name']}}For each function call return a json object with function name and arguments"
    " within <tool_call></tool_call> XML tags as follows:\n<tool_call>\n{{tool_call}}\n</tool_call>",
]


def hermes_turns(turns, write=json.dumps):
    """Render turns in the raw layout; results that follow each other share a turn."""
    rendered = []
    for turn in turns:
        blocks = []
        for each in turn.get("tool_calls", ()):
            function = each["function"]
            value = {"arguments": json.loads(function["arguments"]), "name": function["name"]}
            blocks.append(f"<tool_call>\n{write(value)}\n</tool_call>")
        if turn["role"] == "tool":
            block = f"<tool_response>\n{turn['content']}\n</tool_response>\n"
            if rendered[-1][0] == "tool":
                rendered[-1] = ("tool", rendered[-1][1] + block)
            else:
                rendered.append(("tool", block))
        else:
            who = {"user": "human", "assistant": "gpt"}[turn["role"]]
            rendered.append((who, "\n".join([turn["content"], *blocks])))
    return rendered


@given(conversations(TEXT, one_result_each=True), st.sampled_from([json.dumps, repr]))
def test_hermes_turns_are_read_back_from_their_tags(turns, write):
    messages, tools = made("hermes", hermes(*hermes_turns(turns, write), tools=json.dumps(TOOLS)))
    assert messages == turns and tools == TOOLS


@pytest.mark.parametrize("prompt", HERMES_PROMPTS)
@pytest.mark.parametrize("write", [json.dumps, repr, lambda tools: "\n".join(map(json.dumps, tools))])
def test_hermes_own_prompt_is_dropped_and_its_tools_are_read(prompt, write):
    turns = [("system", prompt.format(tools=write(TOOLS))), ("human", "q"), ("gpt", "a")]
    for fields in ({}, {"tools": "[]"}, {"tools": None}, {"tools": json.dumps(TOOLS)}):
        assert made("hermes", hermes(*turns, **fields)) == ([user("q"), assistant("a")], TOOLS)
    turns[0] = ("system", f"You are Bob,\n\n\n  terse. {turns[0][1]} Answer in verse.")
    kept = "You are Bob,\n\n\n  terse.\n\nAnswer in verse."
    assert made("hermes", hermes(*turns))[0][0] == {"role": "system", "content": kept}


def test_hermes_rows_without_functions_are_plain_conversations():
    system = "You answer in JSON. Here's the schema you must adhere to:\n<schema>\n{'title': 'A'}\n</schema>"
    turns = [("system", system), ("human", "q"), ("gpt", '{"a": 1}')]
    expected = [{"role": "system", "content": system}, user("q"), assistant('{"a": 1}')]
    assert made("hermes", hermes(*turns)) == (expected, None)
    assert made("hermes", hermes(*turns, tools="null")) == (expected, None)
    offered = made("hermes", hermes(*turns, tools=json.dumps(TOOLS)))
    assert offered == (expected, TOOLS)


CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("human", "q"), ("gpt", CALL + " Done.")], "text_after_call"),
        ([("human", "q"), ("gpt", CALL + " and " + CALL)], "text_after_call"),
        ([("human", "q"), ("gpt", "<tool_call>{}")], "unpaired_tag"),
        ([("human", "q"), ("gpt", "a </tool_call>")], "unpaired_tag"),
        ([("human", "q"), ("gpt", "<tool_call>weather(Rome)</tool_call>")], "not_json"),
        ([("human", "q"), ("gpt", "<tool_call>[]</tool_call>")], "malformed_call"),
        ([("human", "q"), ("gpt", CALL.replace("weather", "forecast"))], "unknown_function"),
        ([("human", "q"), ("gpt", CALL), ("tool", "It is <tool_response>3</tool_response>")], "text_around_result"),
        ([("human", "q"), ("gpt", CALL), ("tool", "<tool_response>3")], "unpaired_tag"),
        ([("human", "q"), ("gpt", CALL), ("tool", "<tool_response>3</tool_response>" * 2)], "result_without_call"),
        ([("human", "q"), ("tool", "3"), ("gpt", "a")], "result_without_call"),
        ([("system", HERMES_PROMPTS[0].format(tools="[{")), ("human", "q"), ("gpt", "a")], "not_json"),
        ([("system", " "), ("human", "q"), ("gpt", "a")], "empty_system"),
    ],
)
def test_hermes_refuses_by_name(turns, reason):
    assert reason_of("hermes", hermes(*turns, tools=None if "AI model" in turns[0][1] else json.dumps(TOOLS))) == reason


# xLAM

XLAM_PARAMETERS = {
    "city": {"description": "Where.", "type": "str"},
    "days": {"description": "How many.", "type": "int, optional"},
    "unit": {"description": "Which.", "type": "str", "default": "C"},
}
XLAM_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"description": "Where.", "type": "string"},
        "days": {"description": "How many.", "type": "integer"},
        "unit": {"description": "Which.", "default": "C", "type": "string"},
    },
    "required": ["city"],
}


def test_xlam_parameters_become_a_schema_and_answers_calls():
    tools = [{"name": "weather", "description": "Of a city.", "parameters": XLAM_PARAMETERS}]
    answers = [{"name": "weather", "arguments": {"city": city}} for city in ("Rome", "Åre")]
    record = {"id": 3, "query": "Both?", "answers": json.dumps(answers), "tools": json.dumps(tools)}
    messages, read = made("xlam", record)
    assert messages == [user("Both?"), calls(("weather", {"city": "Rome"}), ("weather", {"city": "Åre"}))]
    assert read == [{"type": "function", "function": {**tools[0], "parameters": XLAM_SCHEMA}}]
    assert made("xlam", {**record, "answers": answers, "tools": tools}) == (messages, read)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"answers": "[]"}, "no_answer"),
        ({"answers": None}, "missing_field"),
        ({"answers": "weather"}, "not_json"),
        ({"query": " "}, "empty_field"),
        ({"tools": "[]"}, "unknown_function"),
        ({"tools": [{"name": "weather", "parameters": [1]}]}, "malformed_tool"),
    ],
)
def test_xlam_refuses_by_name(changed, reason):
    record = {"query": "q", "answers": [{"name": "weather", "arguments": {}}], "tools": [{"name": "weather"}]}
    assert made("xlam", record)[0] == [user("q"), calls(("weather", {}))]
    assert reason_of("xlam", {**record, **changed}) == reason


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("str", {"type": "string"}),
        ("List[int]", {"type": "array", "items": {"type": "integer"}}),
        ("List[Union[int, str]]", {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}),
        ("Tuple[float, float]", {"type": "array", "items": {"type": "number"}}),
        ("Tuple[float, str]", {"type": "array"}),
        ("Dict[str, List[int]]", {"type": "object"}),
        ("Optional[bool]", {"type": "boolean"}),
        ("list", {"type": "array"}),
        ("Any", {}),
        ("Callable[[float], float]", {"type": "Callable[[float], float]"}),
        ("datetime", {"type": "datetime"}),
        ("List[int", {"type": "List[int"}),
        ("", {"type": ""}),
    ],
)
def test_types_become_schemas_and_unknown_ones_stay(name, schema):
    assert type_schema(name) == schema


def test_schemas_stay_and_odd_parameters_are_kept():
    assert object_schema(WEATHER["parameters"]) is WEATHER["parameters"]
    assert object_schema({"type": {"type": "str"}}) == {
        "type": "object",
        "properties": {"type": {"type": "string"}},
        "required": ["type"],
    }
    odd = object_schema({"a": "a city", "b": {"type": 7}, "c": {"type": "Optional[str]"}})
    assert odd["properties"] == {"a": {"description": "a city"}, "b": {"type": 7}, "c": {"type": "string"}}
    assert odd["required"] == ["a", "b"]


def test_json_names_of_types_reach_nested_schemas_but_not_parameters_called_type():
    written = {
        "type": "dict",
        "properties": {"type": {"type": "float"}, "of": {"type": "array", "items": {"type": "any"}}},
    }
    assert with_json_types(written) == {
        "type": "object",
        "properties": {"type": {"type": "number"}, "of": {"type": "array", "items": {}}},
    }


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("glaive", {"chat": "USER: q\n\n\nASSISTANT: a <|endoftext|>"}),
        ("hermes", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
        ("xlam", {"query": "q", "answers": [{"name": "clock"}], "tools": [CLOCK]}),
        ("gorilla", {"code": "###Instruction: q\n###Output: <<<api_call>>>: f()"}),
        ("toolbench", {"query": "q", "response": "a"}),
    ],
)
def test_what_belongs_to_the_question_is_not_left_out(name, record):
    assert made(name, record)[0][0] == user("q")
    assert reason_of(name, {**record, "history": [["q0", "a0"]]}) == "unread_input"
