"""Functions a conversation offers and calls, in the layout of OpenAI's chat API, which TRL and chat templates read.

    tools       [{"type": "function", "function": {"name", "description", "parameters": JSON schema}}, ...]
    tool_calls  [{"type": "function", "function": {"name", "arguments": text of a JSON object}}, ...]

Arguments are JSON text because those of different functions have different keys, which no Parquet column of objects can
hold; rendering gives the chat template the object. Data sets write both in many ways: as JSON inside of a string, as a
Python literal, without the outer {"type", "function"}. A call of a function that is not offered, or whose arguments are
not an object, is refused: a model trained on it would learn to invent functions.

Trap: a data set that did keep objects in a Parquet column has the keys of all functions in each call and each schema,
null where they do not belong. Nulls that no schema declares are therefore taken out.
"""

import ast
import json
from typing import Any

from .record import MalformedRecord, Message, Where, whole_characters

LONGEST_LITERAL = 100_000
"""Characters; a text of more is not read as a Python literal, which takes far more memory than JSON."""


_VALUES = frozenset({"default", "const", "enum", "examples"})
"""Keywords of a JSON schema that hold values, among which null is one."""


def parsed(text: str, what: str, where: Where) -> Any:
    """Return the value of a text that is JSON or, as some data sets have it, a Python literal (never evaluated).

    Raises MalformedRecord (not_json); `what` names the text for people.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        if len(text) <= LONGEST_LITERAL:
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        pass
    raise MalformedRecord("not_json", where, f"{what} is not JSON: {text[:60]!r}")


def call(name: Any, arguments: Any, where: Where) -> dict[str, Any]:
    """Return one entry of tool_calls; `arguments` is an object or the text of one, none at all means {}.

    Raises MalformedRecord (malformed_call, not_json).
    """
    if not isinstance(name, str) or not name.strip():
        raise MalformedRecord("malformed_call", where, f"a call names no function but {name!r}")
    if isinstance(arguments, str) and arguments.strip():
        arguments = parsed(arguments, f"the arguments of {name}", where)
    arguments = arguments or {}
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise MalformedRecord("malformed_call", where, f"the arguments of {name} are no object")
    name = whole_characters(name.strip(), where)
    return {"type": "function", "function": {"name": name, "arguments": _json(arguments, where)}}


def call_of(value: Any, where: Where) -> dict[str, Any]:
    """Return one entry of tool_calls from {"name", "arguments"}, bare or under "function", or from the text of one.

    "parameters" is another spelling of "arguments". Raises MalformedRecord (malformed_call, not_json).
    """
    if isinstance(value, str):
        value = parsed(value, "a call", where)
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        raise MalformedRecord("malformed_call", where, f"a call must be an object, not {type(value).__name__}")
    return call(value.get("name"), value.get("arguments", value.get("parameters")), where)


def calls_of(value: Any, where: Where) -> list[dict[str, Any]]:
    """Return tool_calls from one call or a list of calls, or from the text of either. Raises MalformedRecord."""
    if isinstance(value, str):
        value = parsed(value, "a call", where)
    return [call_of(each, where) for each in (value if isinstance(value, list) else [value])]


def calling(calls: list[dict[str, Any]], content: str = "") -> Message:
    """Return the assistant's turn that makes these calls, after the text `content`."""
    return {"role": "assistant", "content": content, "tool_calls": calls}


def result(content: str) -> Message:
    """Return the turn that answers a call; several follow each other in the order of the calls."""
    return {"role": "tool", "content": content}


def tool_schemas(value: Any, where: Where) -> list[dict[str, Any]]:
    """Return `tools` from a list of functions, bare or under "function", or from the text of such a list.

    None, "" and [] are no tools. Raises MalformedRecord (malformed_tool, repeated_tool, not_json).
    """
    if isinstance(value, str):
        value = parsed(value, "the list of tools", where) if value.strip() else None
    entries = value if isinstance(value, list) else [value] if value else []
    tools: dict[str, dict[str, Any]] = {}
    for entry in entries:
        tool = _tool_schema(entry, where)
        name = tool["function"]["name"]
        try:
            differs = tools.setdefault(name, tool) != tool
        except RecursionError:
            raise MalformedRecord("not_json", where, f"tool {name!r} is nested too deeply") from None
        if differs:
            raise MalformedRecord("repeated_tool", where, f"two different tools are called {name!r}")
    return list(tools.values())


def _tool_schema(entry: Any, where: Where) -> dict[str, Any]:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise MalformedRecord("malformed_tool", where, "a tool must be an object with the name of its function")
    for name, kind in (("description", str), ("parameters", dict)):
        if not isinstance(function.get(name), kind | None):
            raise MalformedRecord(
                "malformed_tool", where, f'"{name}" of tool {function["name"]!r} is no {kind.__name__}'
            )
    named = _without_nulls({**function, "name": function["name"].strip()}, where)
    return {"type": "function", "function": named}


def _without_nulls(schema: Any, where: Where) -> Any:
    """Return a JSON schema without keywords and properties that are null; values it lists may be null."""
    try:
        if isinstance(schema, list):
            return [_without_nulls(each, where) for each in schema]
        if not isinstance(schema, dict):
            return schema
        given = {key: value for key, value in schema.items() if value is not None or key in _VALUES}
        return {key: value if key in _VALUES else _without_nulls(value, where) for key, value in given.items()}
    except RecursionError:
        raise MalformedRecord("not_json", where, "a tool is nested too deeply") from None


def calls_of_offered(messages: list[Message], tools: list[dict[str, Any]], where: Where) -> list[Message]:
    """Return the messages with each call as its function declares it: without null arguments that it does not have.

    Raises MalformedRecord (unknown_function) when a turn calls a function that is not among `tools`.
    """
    offered = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    return [
        {**turn, "tool_calls": [_declared(each, offered, where) for each in turn["tool_calls"]]}
        if turn.get("tool_calls")
        else turn
        for turn in messages
    ]


def _declared(call_: dict[str, Any], offered: dict[str, Any], where: Where) -> dict[str, Any]:
    function = call_["function"]
    if function["name"] not in offered:
        raise MalformedRecord("unknown_function", where, f"{function['name']!r} is called, not offered")
    if "null" not in function["arguments"]:
        return call_
    arguments = _without_foreign(json.loads(function["arguments"]), offered[function["name"]])
    return {**call_, "function": {**function, "arguments": _json(arguments, where)}}


def _without_foreign(value: Any, schema: Any) -> Any:
    """Return a value without keys that are null and not among the properties of its schema, where that has some."""
    if not isinstance(schema, dict):
        return value
    if isinstance(value, list):
        return [_without_foreign(each, schema.get("items")) for each in value]
    properties = schema.get("properties")
    if not isinstance(value, dict) or not isinstance(properties, dict):
        return value
    given = {key: each for key, each in value.items() if each is not None or key in properties}
    return {key: _without_foreign(each, properties.get(key)) for key, each in given.items()}


def tools_text(tools: list[dict[str, Any]], where: Where) -> str | None:
    """Return the tools of a conversation as the JSON that its column holds, None for none."""
    return _json(tools, where) if tools else None


def _json(value: Any, where: Where) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise MalformedRecord("not_json", where, f"cannot be written as JSON ({error})") from None
    return whole_characters(text, where)
