"""Chat and instruction formats: role/content messages, Alpaca, ShareGPT."""

import json
from typing import Any

from .record import MalformedRecord, Where, conversation, list_field, message, text_field

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
TOOL_ROLES = frozenset({"tool", "function", "function_call", "observation", "function_response", "tool_response"})


def role_of(name: Any, where: Where) -> str:
    """Return system, user or assistant for the many names data sets give them. Raises MalformedRecord."""
    key = name.strip().lower() if isinstance(name, str) else None
    if key in TOOL_ROLES:
        raise MalformedRecord("tool_turn", where, f"a {key} turn needs a function-calling format")
    if key not in ROLES:
        raise MalformedRecord("unknown_role", where, f"unknown role {name!r}")
    return ROLES[key]


def content_of(value: Any, where: Where) -> str:
    """Return the text of a message's content: a string, or a list of {"type": "text", "text": ...} parts."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in value):
            raise MalformedRecord("content_is_not_text", where, "a part of the content is not text")
        return "".join(part["text"] for part in value).strip()
    raise MalformedRecord("content_is_not_text", where, f"content is {type(value).__name__}, not text")


def role_content_turns(turns: list, where: Where) -> list[dict[str, str]]:
    """Return the messages of a list of {"role", "content"} turns. Raises MalformedRecord."""
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise MalformedRecord("wrong_type", where, f"a turn must be an object, not {type(turn).__name__}")
        role = role_of(turn.get("role"), where)
        refuse_calls(turn, where)
        messages.append(message(role, content_of(turn.get("content"), where)))
    return messages


def from_value_turns(turns: list, where: Where) -> list[dict[str, str]]:
    """Return the messages of a list of ShareGPT's {"from", "value"} turns. Raises MalformedRecord."""
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise MalformedRecord("wrong_type", where, f"a turn must be an object, not {type(turn).__name__}")
        role = role_of(turn.get("from"), where)
        refuse_calls(turn, where)
        messages.append(message(role, content_of(turn.get("value"), where)))
    return messages


def refuse_tools(record: dict[str, Any], where: Where) -> None:
    """Raise MalformedRecord (tool_turn) for a record with tools: without them its turns would not be understood."""
    for name in ("tools", "functions"):
        if _has_entries(record.get(name)):
            raise MalformedRecord("tool_turn", where, f'a record with "{name}" needs a function-calling format')


def refuse_calls(turn: dict[str, Any], where: Where) -> None:
    """Raise MalformedRecord (tool_turn) for a turn that calls a function beside or instead of its content."""
    for name in ("tool_calls", "function_call"):
        if _has_entries(turn.get(name)):
            raise MalformedRecord("tool_turn", where, f'a turn with "{name}" needs a function-calling format')


def _has_entries(value: Any) -> bool:
    """Whether a field holds anything; some data sets write lists as JSON inside of a string, and none as "[]"."""
    if not isinstance(value, str):
        return bool(value)
    try:
        return bool(json.loads(value))
    except (ValueError, RecursionError):
        return bool(value.strip())


def with_system(record: dict[str, Any], messages: list[dict[str, str]], where: Where) -> list[dict[str, str]]:
    """Return the messages after the optional "system" text of their record.

    Raises MalformedRecord; reason two_systems when they begin with another one.
    """
    system = text_field(record, "system", where, required=False)
    if not system:
        return messages
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] != system:
            raise MalformedRecord("two_systems", where, '"system" differs from the system turn')
        return messages
    return [message("system", system), *messages]


def format_messages(record: Any, where: Where) -> dict[str, Any]:
    """Read {"messages": [{"role", "content"}, ...]} (the OpenAI layout), or that list alone.

    An optional "system" field comes first.
    """
    if isinstance(record, list):
        return conversation(role_content_turns(record, where), where)
    turns = role_content_turns(list_field(record, "messages", where), where)
    refuse_tools(record, where)
    return conversation(with_system(record, turns, where), where)


def format_alpaca(record: Any, where: Where) -> dict[str, Any]:
    """Read {"instruction", "input", "output"}: the optional input follows the instruction after a blank line.

    "<noinput>" in the input field is the Self-Instruct spelling of "none". An optional "system" field comes first,
    then the turns of an optional "history": [[question, answer], ...].
    """
    instruction = text_field(record, "instruction", where)
    extra = text_field(record, "input", where, required=False)
    output = text_field(record, "output", where)
    question = instruction if extra in ("", "<noinput>") else f"{instruction}\n\n{extra}"
    turns = [*_earlier_turns(record, where), message("user", question), message("assistant", output)]
    return conversation(with_system(record, turns, where), where)


def _earlier_turns(record: dict[str, Any], where: Where) -> list[dict[str, str]]:
    history = record.get("history")
    if not _has_entries(history):
        return []
    pairs = history if isinstance(history, list) else [history]
    if any(not isinstance(pair, list) or [type(text) for text in pair] != [str, str] for pair in pairs):
        raise MalformedRecord("wrong_type", where, '"history" must be a list of [question, answer] texts')
    return [
        message(role, text.strip()) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def format_sharegpt(record: Any, where: Where) -> dict[str, Any]:
    """Read {"conversations": [{"from": "human"|"gpt"|"system", "value"}, ...]}; an optional "system" comes first."""
    turns = from_value_turns(list_field(record, "conversations", where), where)
    refuse_tools(record, where)
    return conversation(with_system(record, turns, where), where)


CONVERSATIONS = {"messages": format_messages, "alpaca": format_alpaca, "sharegpt": format_sharegpt}
