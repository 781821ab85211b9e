"""Calls of functions in an answer: read, and compared with the ones that are right.

An answer calls a function as the project's chat template writes it, <tool_call>{"name": ..., "arguments": {...}}
</tool_call>, any number of times, with any text around them. Nothing of it is executed or expanded: it is read as JSON.

What is right is a list of calls in one of two layouts, and an empty list where no function fits the question:

    {"name": "f", "arguments": {"x": 1}}      this call and no other
    {"f": {"x": [1, 2], "unit": ["", "m"]}}   BFCL's possible_answer: each argument with the values that are accepted,
                                              "" among them when it may be left out

Values are equal as JSON values: 5 is 5.0, true is not 1, and texts differ by a single character (BFCL's own checker
forgives case and punctuation). Calls may come in any order.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dataset_formatters.record import MalformedRecord
from dataset_formatters.tool_calls import calls_of, parsed, tool_schemas

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_BLANK = re.compile(r"\s*")
_BEGINNING = re.compile(r"""\s*\[\s*(\[\s*)?\{\s*["']role["']""")
_STANDARD_TYPES = {"dict": "object", "float": "number", "tuple": "array", "String": "string"}


@dataclass(frozen=True)
class Call:
    """A function with its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class AcceptedCall:
    """A right call: {argument: accepted values}; alternatives: objects in the values spell some too, as BFCL's do."""

    name: str
    arguments: dict[str, list[Any]]
    alternatives: bool


def read_calls(answer: str) -> list[Call] | None:
    """Return the calls that a text makes, None when one of them cannot be read."""
    calls, place = [], 0
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    while (start := answer.find(OPEN, place)) >= 0:
        if CLOSE in answer[place:start]:
            return None
        try:
            value, end = decoder.raw_decode(answer, _BLANK.match(answer, start + len(OPEN)).end())
        except (ValueError, RecursionError):
            return None
        end = _BLANK.match(answer, end).end()
        if not answer.startswith(CLOSE, end) or not _is_call(value):
            return None
        calls.append(Call(value["name"], value["arguments"]))
        place = end + len(CLOSE)
    return None if CLOSE in answer[place:] else calls


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _is_call(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"name", "arguments"}:
        return False
    return isinstance(value["name"], str) and isinstance(value["arguments"], dict)


def score(answer: str, tools: Sequence[dict[str, Any]], right: Sequence[AcceptedCall]) -> dict[str, float]:
    """Return 0 or 1 for each measure of an answer.

    calls_valid      there are calls where there must be, and all are of offered functions with the required arguments
    functions_match  the functions that are called are the right ones, each as often
    calls_match      so are their arguments
    """
    calls = read_calls(answer)
    if calls is None:
        return {"calls_valid": 0.0, "functions_match": 0.0, "calls_match": 0.0}
    offered = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    is_valid = all(
        call.name in offered and set(offered[call.name].get("required") or ()) <= call.arguments.keys()
        for call in calls
    )
    same = Counter(call.name for call in calls) == Counter(accepted.name for accepted in right)
    return {
        "calls_valid": float(is_valid and bool(calls or not right)),
        "functions_match": float(same),
        "calls_match": float(same and is_valid and _pair_up(calls, right)),
    }


def _pair_up(calls: Sequence[Call], right: Sequence[AcceptedCall]) -> bool:
    """Whether each call can be given a right call of its own (augmenting paths: one call may fit several)."""
    fits = [[place for place, accepted in enumerate(right) if _fits(call, accepted)] for call in calls]
    taken: dict[int, int] = {}

    def find(number: int, seen: set[int]) -> bool:
        for place in fits[number]:
            if place not in seen:
                seen.add(place)
                if place not in taken or find(taken[place], seen):
                    taken[place] = number
                    return True
        return False

    return len(calls) == len(right) and all(find(number, set()) for number in range(len(calls)))


def _fits(call: Call, accepted: AcceptedCall) -> bool:
    if call.name != accepted.name:
        return False
    return _object_fits(call.arguments, accepted.arguments, accepted.alternatives)


def _object_fits(given: dict[str, Any], accepted: dict[str, list[Any]], alternatives: bool) -> bool:
    if not given.keys() <= accepted.keys():
        return False
    return all(
        any(_value_fits(given[key], value, alternatives) for value in values)
        if key in given
        else alternatives and "" in values
        for key, values in accepted.items()
    )


def _value_fits(given: Any, value: Any, alternatives: bool) -> bool:
    if isinstance(value, dict):
        if not isinstance(given, dict):
            return False
        spelled = alternatives and all(isinstance(inner, list) for inner in value.values())
        return _object_fits(given, value if spelled else {key: [inner] for key, inner in value.items()}, alternatives)
    if isinstance(value, list):
        return (
            isinstance(given, list)
            and len(given) == len(value)
            and all(_value_fits(one, other, alternatives) for one, other in zip(given, value, strict=True))
        )
    if isinstance(value, bool) or isinstance(given, bool):
        return given is value
    return given == value


def accepted_calls(value: Any, where: str) -> list[AcceptedCall]:
    """Return the right calls of a list in either layout. Raises MalformedRecord."""
    if not isinstance(value, list):
        raise MalformedRecord("wrong_type", where, f"the right calls must be a list, not {type(value).__name__}")
    return [_accepted(entry, where) for entry in value]


def _accepted(entry: Any, where: str) -> AcceptedCall:
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, arguments),) = entry.items()
        if isinstance(arguments, dict) and all(isinstance(values, list) for values in arguments.values()):
            return AcceptedCall(name, arguments, alternatives=True)
    ((call),) = calls_of([entry], where)
    function = call["function"]
    arguments = json.loads(function["arguments"])
    return AcceptedCall(function["name"], {key: [value] for key, value in arguments.items()}, alternatives=False)


def offered_tools(value: Any, where: str) -> list[dict[str, Any]]:
    """Return the functions of a record as a chat template takes them. Raises MalformedRecord.

    BFCL writes Python's names for types ("dict", "float", "tuple") where JSON schema has its own.
    """
    tools = tool_schemas(value, where)
    if not tools:
        raise MalformedRecord("empty_field", where, "no function is offered")
    for function in (tool["function"] for tool in tools):
        required = (function.get("parameters") or {}).get("required") or []
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise MalformedRecord(
                "malformed_tool", where, f'"required" of tool {function["name"]!r} is no list of names'
            )
    return _with_standard_types(tools)


def _with_standard_types(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_standard_types(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    made = {key: _with_standard_types(inner) for key, inner in value.items()}
    if isinstance(kind := made.get("type"), str):
        made["type"] = _STANDARD_TYPES.get(kind, kind)
    return made


def conversation(value: Any, where: str) -> list[dict[str, Any]]:
    """Return the messages of a record, whose last one is to be answered, in OpenAI's layout. Raises MalformedRecord.

    value: a list of messages (BFCL: a list of one such list), its JSON, or the text of a question. A question may begin
    with a bracket too ("[3, 1] sorted?"): a text is messages when it reads as a list of objects.
    """
    if isinstance(value, str):
        messages = _messages_of(value, where)
        value = [_asked(value)] if messages is None else messages
    if isinstance(value, list) and value and all(isinstance(turn, list) for turn in value):
        if len(value) > 1:
            raise MalformedRecord("several_turns", where, f"{len(value)} turns are asked, and one answer is scored")
        (value,) = value
    if not isinstance(value, list) or not value:
        raise MalformedRecord("wrong_type", where, "the messages must be a list of at least one")
    messages = [_message(entry, where) for entry in value]
    if messages[-1]["role"] not in ("user", "tool"):
        raise MalformedRecord("no_question", where, f"the last message is of the {messages[-1]['role']}")
    return messages


def _messages_of(text: str, where: str) -> list[Any] | None:
    """Return the list of objects, or of lists of objects, that a text spells; None for any other text.

    Raises MalformedRecord for one that begins as messages do and does not read: cut off, it is no question either.
    """
    if not text.lstrip().startswith("["):
        return None
    try:
        value = parsed(text, "the messages", where)
    except MalformedRecord:
        if _BEGINNING.match(text):
            raise
        return None
    turns = [turn for entry in value for turn in (entry if isinstance(entry, list) else [entry])]
    return value if all(isinstance(turn, dict) for turn in turns) else None


def _asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _message(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or entry.get("role") not in ("system", "user", "assistant", "tool"):
        raise MalformedRecord("wrong_type", where, 'a message must have a "role": system, user, assistant or tool')
    calls = calls_of(entry["tool_calls"], where) if entry.get("tool_calls") else []
    content = entry.get("content") or ""
    if not isinstance(content, str) or not (content.strip() or calls or entry["role"] == "tool"):
        raise MalformedRecord("empty_turn", where, f"a message of the {entry['role']} has no text")
    made = {"role": entry["role"], "content": content}
    if calls:
        made["tool_calls"] = calls
    return made
