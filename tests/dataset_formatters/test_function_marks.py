"""Formatters of function calls against texts that are nothing but marks, and records nested beyond reason."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_formatters import FORMAT_HANDLERS, MalformedRecord
from function_turns import GLAIVE_SYSTEM, SEARCH_PROMPT, WHERE, hermes, user

MARKS = [
    "<tool_call>", "</tool_call>", "<tool_call></tool_call>", "<tool_call> \n", "<tools>", "<tools></tools>", "USER:",
    "\n\nUSER:", "\n\nUSER: a", "\n", " ", "<|endoftext|>", "<functioncall>", "Action:", "Action:\n", "\nThought:", "'",
    "' ", "{", "[", "{}", '{"name":"f"}', "You are a function calling AI model. ", ", 'code':", "<<<code>>>", "<",
    "List[", "Optional[int],",
]  # fmt: skip


def places(text):
    """Yield records that hold a text wherever a formatter looks for marks."""
    tools = [{"name": "f"}]
    turns = [("human", "q"), ("gpt", '<tool_call>{"name": "f"}</tool_call>')]
    yield "glaive", {"system": GLAIVE_SYSTEM + text, "chat": "USER: q\n\n\nASSISTANT: a"}
    yield "glaive", {"chat": "USER: q" + text}
    yield "glaive", {"chat": 'USER: q\n\n\nASSISTANT: <functioncall> {"name": "f", "arguments": \'' + text}
    yield "hermes", hermes(("system", text), *turns, tools=tools)
    yield "hermes", hermes(("system", text), *turns)
    yield "hermes", hermes(("human", "q"), ("gpt", text), tools=tools)
    yield "hermes", hermes(*turns, ("tool", text), ("gpt", "a"), tools=tools)
    yield "xlam", {"query": "q", "answers": text, "tools": tools}
    yield "xlam", {"query": "q", "answers": tools, "tools": [{"name": "f", "parameters": {"a": {"type": text}}}]}
    yield "gorilla", {"code": "{'Instruction': a, 'Output': {" + text}
    yield "gorilla", {"code": "###Instruction: a\n###Output: <<<api_call>>>: " + text}
    yield "toolbench", hermes(("system", SEARCH_PROMPT + text), ("user", "q"), ("assistant", text))


@pytest.mark.parametrize("mark", MARKS)
def test_a_megabyte_of_marks_takes_linear_time(mark):
    for name, record in places(mark * (1_000_000 // len(mark))):
        started = time.process_time()
        with contextlib.suppress(MalformedRecord):
            FORMAT_HANDLERS[name](record, WHERE)
        assert time.process_time() - started < 3, name  # measured: 0.3 s at most; a quadratic reader takes minutes


@given(st.lists(st.sampled_from(MARKS) | st.text(max_size=5), max_size=12).map("".join))
def test_any_mixture_of_marks_is_formatted_or_refused_with_a_reason(text):
    for name, record in places(text):
        try:
            turns = FORMAT_HANDLERS[name](record, WHERE)["messages"]
        except MalformedRecord as refusal:
            assert refusal.reason.replace("_", "").isalpha()
            continue
        assert turns[-1]["role"] == "assistant"
        assert all(turn["content"] == turn["content"].strip() for turn in turns)


FIELDS = [
    "system", "chat", "conversations", "from", "value", "role", "content", "tools", "query", "answers", "code", "type",
    "question", "function", "ground_truth", "answer_generation", "train_messages", "function_call", "name", "response",
    "parameters", "arguments", "properties", "required",
]  # fmt: skip
WORDS = ["human", "gpt", "user", "assistant", "tool", "f", "Finish", "USER: a\n\nASSISTANT: b", '{"name": "f"}', ""]
RECORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=15,
)


@given(st.sampled_from(["glaive", "hermes", "xlam", "gorilla", "toolbench"]), RECORDS, RECORDS, RECORDS)
def test_any_values_in_the_fields_are_formatted_or_refused(name, first, second, third):
    turn = {"role": "user", "content": "q"}
    for record in (
        first,
        {"system": first, "chat": second},
        {"conversations": [first, second], "tools": third},
        {"query": "q", "answers": first, "tools": [{"name": "f", "parameters": second}]},
        {"question": [[turn]], "function": [{"name": "f", "parameters": first}], "ground_truth": [{"f": second}]},
        {"question": first, "function": second, "ground_truth": third},
        {"answer_generation": {"function": first, "train_messages": [[turn, second]], "valid_data": third}},
        {"answer_generation": {"train_messages": first}},
    ):
        with contextlib.suppress(MalformedRecord):
            assert FORMAT_HANDLERS[name](record, WHERE)["messages"][-1]["role"] == "assistant"


def nested(depth):
    value = 1
    for level in range(depth):
        value = {"type": "dict", "properties": {"a": value}} if level % 2 else {"type": "array", "items": value}
    return value


@pytest.mark.parametrize("depth", [15, 25, 20_000])
def test_deeply_nested_records_are_formatted_or_refused(depth):
    twice = [{"name": "f", "parameters": nested(depth)}, {"name": "f", "parameters": nested(depth)}]
    question = [[user("q")]]
    for name, record in [
        ("xlam", {"query": "q", "answers": [{"name": "f", "arguments": nested(depth)}], "tools": twice[:1]}),
        ("xlam", {"query": "q", "answers": [{"name": "f", "arguments": {}}], "tools": twice}),
        ("gorilla", {"question": question, "function": twice, "ground_truth": [{"f": {"a": [[nested(depth)]]}}]}),
        ("hermes", hermes(("human", "q"), ("gpt", "<tool_call>" + '{"a":' * depth + "</tool_call>"), tools=twice)),
        ("glaive", {"system": GLAIVE_SYSTEM + "[" * depth, "chat": "USER: q\n\n\nASSISTANT: a"}),
    ]:
        try:
            FORMAT_HANDLERS[name](record, WHERE)
        except MalformedRecord as refusal:
            assert refusal.reason in ("not_json", "malformed_answer", "malformed_call")
