"""Conversations with functions for the tests of formatters: turns, records around them, and what a formatter says."""

import json

import pytest

from dataset_formatters import FORMAT_HANDLERS, MalformedRecord

WHERE = "sft/calls.jsonl:5"
WEATHER = {
    "name": "weather",
    "description": "Weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK = {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": CLOCK}]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def result(text):
    return {"role": "tool", "content": text}


def calls(*pairs, say=""):
    made = [
        {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}
        for name, arguments in pairs
    ]
    return {"role": "assistant", "content": say, "tool_calls": made}


def made(name, record):
    conversation = FORMAT_HANDLERS[name](record, WHERE)
    tools = conversation["tools"]
    return conversation["messages"], None if tools is None else json.loads(tools)


def reason_of(name, record):
    with pytest.raises(MalformedRecord) as refusal:
        FORMAT_HANDLERS[name](record, WHERE)
    assert str(refusal.value).startswith(WHERE + ": ")
    return refusal.value.reason


GLAIVE_SYSTEM = "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
SEARCH_PROMPT = "You are AutoGPT, you can use many tools(functions) to do the following task.\nLet's Begin!\n"


def hermes(*turns, **fields):
    return {"conversations": [{"from": who, "value": value} for who, value in turns], **fields}
