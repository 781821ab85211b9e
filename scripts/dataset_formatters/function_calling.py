"""Data sets of function calls: Glaive, Hermes, xLAM; Gorilla and ToolBench have modules of their own.

They write calls and results as marks inside of texts; here these become tool_calls, tool turns and tools
(tool_calls.py), and what explains the marks to the model is dropped: the chat template of the model that is trained
explains its own.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from . import gorilla, toolbench
from .general import from_value_turns, tools_of
from .parameter_schemas import object_schema, with_parameters
from .record import MalformedRecord, Message, Where, list_field, message, refuse_unread, text_field
from .tool_calls import call, calling, calls_of, parsed, result, tool_schemas
from .turns import conversation

_SPEAKER = re.compile(r"(?:\A|\n\n)(USER|ASSISTANT|FUNCTION RESPONSE):")
_ROLE = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_END_OF_TURN = "<|endoftext|>"
_CALL_MARK = "<functioncall>"
_TOOLS_MARK = "Use them if required -"
_QUOTED_ARGUMENTS = re.compile(r"""\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"arguments"\s*:\s*'""")


def format_glaive(record: Any, where: Where) -> dict[str, Any]:
    """Read {"system", "chat"} of glaive-function-calling-v2.

        system   SYSTEM: ... Use them if required -\\n{function as JSON}\\n{another one}
        chat     USER: ...\\n\\n\\nASSISTANT: <functioncall> {"name", "arguments": '{...}'} <|endoftext|>
                 \\n\\n\\nFUNCTION RESPONSE: ...

    A speaker stands at the beginning or after a blank line; "USER:" elsewhere is text. The system message is what the
    list of functions leaves of it. Raises MalformedRecord; reason text_after_call when more than calls follows a call,
    text_after_end when a turn goes on behind its end mark.
    """
    refuse_unread(record, ("system",), where)
    system, tools = _glaive_system(text_field(record, "system", where, required=False), where)
    pieces = _SPEAKER.split(text_field(record, "chat", where))
    if pieces[0].strip() or len(pieces) < 3:
        raise MalformedRecord("not_a_transcript", where, 'the chat does not begin with "USER:" or "ASSISTANT:"')
    turns = [_glaive_turn(_ROLE[who], text, where) for who, text in zip(pieces[1::2], pieces[2::2], strict=True)]
    return conversation([message("system", system), *turns] if system else turns, where, tools)


def _glaive_system(text: str, where: Where) -> tuple[str, list[dict[str, Any]]]:
    """Return the system message without the list of functions, and the list."""
    before, mark, functions = text.removeprefix("SYSTEM:").strip().partition(_TOOLS_MARK)
    if not mark:
        return before, []
    offered, rest = json_sequence(functions)
    if rest.startswith(("{", "[", ",")):
        raise MalformedRecord("not_json", where, f"the list of tools is not JSON: {rest[:60]!r}")
    kept = (before + mark).removesuffix("-").strip()
    return f"{kept}\n\n{rest}" if rest else kept, tool_schemas(offered, where)


def json_sequence(text: str) -> tuple[list[Any], str]:
    """Return the JSON objects that a text begins with, lists of them included, and what follows the last one."""
    decoder, values = json.JSONDecoder(), []
    position = len(text) - len(text.lstrip())
    while text[position : position + 1] in ("{", "["):
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        values += value if isinstance(value, list) else [value]
        while text[position : position + 1].isspace():
            position += 1
    return values, text[position:].rstrip()


def _glaive_turn(role: str, text: str, where: Where) -> Message:
    text, *after = text.split(_END_OF_TURN)
    if any(piece.strip() for piece in after):
        raise MalformedRecord("text_after_end", where, f"a turn of {role} goes on behind {_END_OF_TURN}")
    if role == "tool":
        return result(text.strip())
    said, *calls = text.split(_CALL_MARK) if role == "assistant" else [text]
    if not calls:
        return message(role, said.strip())
    return calling([_glaive_call(each, where) for each in calls], said.strip())


def _glaive_call(text: str, where: Where) -> dict[str, Any]:
    """Return the call of {"name": "f", "arguments": '{...}'}: JSON, but for the quotes around the arguments.

    Nothing but apostrophes is escaped between these quotes, and not always; a Python literal would lose the backslashes
    that belong to the JSON.
    """
    text = text.strip().removesuffix("</functioncall>").strip()
    head = _QUOTED_ARGUMENTS.match(text)
    arguments = text[head.end() :].removesuffix("}").rstrip() if head and text.endswith("}") else ""
    if arguments.endswith("'"):
        return call(head[1], arguments[:-1].replace("\\'", "'"), where)
    values, rest = json_sequence(text)
    if values and rest:
        raise MalformedRecord("text_after_call", where, f"text follows a call in its turn: {rest[:60]!r}")
    calls = calls_of(text, where)
    if len(calls) != 1:
        raise MalformedRecord("malformed_call", where, f"{_CALL_MARK} marks {len(calls)} calls")
    return calls[0]


def format_hermes(record: Any, where: Where) -> dict[str, Any]:
    """Read {"conversations": [{"from": "system"|"human"|"gpt"|"tool", "value"}], "tools"} of Hermes' data set.

    Calls are <tool_call> blocks of a gpt turn, results <tool_response> blocks of a tool turn, one message each. The
    functions are those under "tools", else those of <tools> in the system text. Where a row offers functions, its
    system text loses that list and the sentences of Hermes' own prompt, which explain these tags; whatever else it says
    is kept. Rows without functions (JSON mode) are plain conversations.

    Raises MalformedRecord; reasons unpaired_tag, text_after_call (a message has its text before its calls) and
    text_around_result.
    """
    turns = from_value_turns(list_field(record, "conversations", where), where)
    refuse_unread(record, ("tools", "functions"), where)
    tools = tools_of(record, where)
    messages: list[Message] = []
    for turn in turns:
        if turn["role"] == "system" and not messages:
            system, listed = _hermes_system(turn["content"], bool(tools), where)
            tools = tools or listed
            messages += [message("system", system)] if system or not turn["content"] else []
        elif turn["role"] == "assistant" and "tool_calls" not in turn:
            messages.append(_hermes_answer(turn["content"], where))
        elif turn["role"] == "tool":
            messages += _hermes_results(turn["content"], where)
        else:
            messages.append(turn)
    return conversation(messages, where, tools)


def tagged(text: str, tag: str, where: Where) -> tuple[list[str], list[str]]:
    """Return the pieces of a text outside of its <tag>...</tag> blocks (one more than blocks), and the blocks' texts.

    Raises MalformedRecord (unpaired_tag).
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    outside, blocks = [], []
    position = 0
    while (start := text.find(opening, position)) >= 0:
        end = text.find(closing, start)
        if end < 0:
            raise MalformedRecord("unpaired_tag", where, f"{opening} is never closed")
        outside.append(text[position:start])
        blocks.append(text[start + len(opening) : end].strip())
        position = end + len(closing)
    outside.append(text[position:])
    if any(closing in piece for piece in outside):
        raise MalformedRecord("unpaired_tag", where, f"{closing} closes nothing")
    return outside, blocks


def _hermes_answer(text: str, where: Where) -> Message:
    (said, *after), blocks = tagged(text, "tool_call", where)
    if not blocks:
        return message("assistant", text)
    if any(piece.strip() for piece in after):
        raise MalformedRecord("text_after_call", where, "text follows a call in its turn")
    calls = [each for block in blocks for each in calls_of(block, where)]
    if not calls:
        raise MalformedRecord("malformed_call", where, "<tool_call> holds no call")
    return calling(calls, said.strip())


def _hermes_results(text: str, where: Where) -> list[Message]:
    outside, blocks = tagged(text, "tool_response", where)
    if blocks and any(piece.strip() for piece in outside):
        raise MalformedRecord("text_around_result", where, "text stands outside of <tool_response>")
    return [result(block) for block in blocks or [text]]


def _sentence(words: str) -> str:
    """Return a pattern for a sentence whose words may stand on several lines; "~" is white space or none."""
    pieces = [r"\s+".join(re.escape(word) for word in piece.split()) for piece in words.split("~")]
    return r"\s*".join(pieces)


_ARGUMENTS_FIRST = "{'arguments': <args-dict>, 'name': <function-name>}"
_NAME_FIRST = '{"name": <function-name>, "arguments": <args-dict>}'
_HERMES_PROMPT = re.compile(
    "|".join(
        map(
            _sentence,
            [
                "You are a function calling AI model.",
                "You are provided with function signatures within <tools>~</tools> XML tags.",
                "You are also provided with the json schema to output extracted information in the function signatures"
                " within XML tags <tools>~</tools>.",
                "You may call one or more functions to assist with the user query.",
                "Don't make assumptions about what values to plug into functions.",
                "Don't make assumptions about what values to plug into json schema.",
                "Here are the available tools:",
                "Use the following pydantic model json schema for each tool call you will make:~{'title':"
                " 'FunctionCall', 'type': 'object', 'properties': {'arguments': {'title': 'Arguments', 'type':"
                " 'object'}, 'name': {'title': 'Name', 'type': 'string'}}, 'required': ['arguments', 'name']}",
                "For each function call return a json object with function name and arguments within"
                " <tool_call>~</tool_call> tags with the following schema:",
                "For each function call return a json object with function name and arguments within"
                " <tool_call>~</tool_call> XML tags as follows:",
                "For each extraction function call return a json object with function name and arguments followed by"
                " a <tool_call> tag with the following schema:",
                *(f"<tool_call>~{example}~</tool_call>" for example in (_ARGUMENTS_FIRST, _NAME_FIRST, "{tool_call}")),
            ],
        )
    )
)
"""The sentences of the prompts that Hermes' rows begin with, which is nothing but markup around a list of functions."""


def _hermes_system(text: str, offered: bool, where: Where) -> tuple[str, list[dict[str, Any]]]:
    """Return the system message, and the functions of its <tools> block, [] where it has none.

    An empty pair of these tags is part of a sentence. `offered`: the record has the list elsewhere.
    """
    start = text.find("<tools>")
    while start >= 0:
        end = text.find("</tools>", start)
        listed = text[start + len("<tools>") : end].strip() if end >= 0 else ""
        if listed:
            tools = [] if offered else _tool_list(listed, where)
            return _without_prompt(text[:start], text[end + len("</tools>") :]), tools
        start = text.find("<tools>", end) if end >= 0 else -1
    return _without_prompt(text) if offered else text, []


def _tool_list(text: str, where: Where) -> list[dict[str, Any]]:
    """Return the tools of a text: JSON objects one after the other, or one list as JSON or as a Python literal."""
    values, rest = json_sequence(text)
    return tool_schemas(values if not rest else parsed(text, "the list of tools", where), where)


def _without_prompt(*texts: str) -> str:
    """Return what the sentences of the prompt leave, with a blank line where any stood."""
    kept = [piece.strip() for text in texts for piece in _HERMES_PROMPT.split(text)]
    return "\n\n".join(piece for piece in kept if piece)


def format_xlam(record: Any, where: Where) -> dict[str, Any]:
    """Read {"query", "answers", "tools"} of xlam-function-calling-60k; the last two are lists or the JSON of lists.

    The conversation ends with the calls. Parameters, {name: {"description", "type": "str", "default"}} there, become a
    JSON schema. Raises MalformedRecord; reason no_answer when no call is made.
    """
    query = text_field(record, "query", where)
    refuse_unread(record, ("tools",), where)
    answers = record.get("answers")
    if answers is None:
        raise MalformedRecord("missing_field", where, 'no field "answers"')
    calls = calls_of(answers, where)
    if not calls:
        raise MalformedRecord("no_answer", where, '"answers" is empty')
    tools = with_parameters(tool_schemas(record.get("tools"), where), object_schema)
    return conversation([message("user", query), calling(calls)], where, tools)


CONVERSATIONS: dict[str, Callable[[Any, str], dict[str, Any]]] = {
    "glaive": format_glaive,
    "hermes": format_hermes,
    "xlam": format_xlam,
    **gorilla.CONVERSATIONS,
    **toolbench.CONVERSATIONS,
}
