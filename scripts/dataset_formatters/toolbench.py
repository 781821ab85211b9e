"""ToolBench: what a language model tried with real APIs, as ToolLLaMA's rows and as the answer files they are made of.

    ToolLLaMA   assistant: "Thought: ...\\nAction: name\\nAction Input: {JSON}"   function: result   assistant: ...
    answer      OpenAI's messages with function_call

Both end with a call of the function Finish, whose argument is the answer: here it is the last turn, and Finish is not
offered. The thought of that turn is dropped, as the user never sees it.
"""

import json
import re
from typing import Any

from .general import from_value_turns, role_content_turns, tools_of
from .record import MalformedRecord, Message, Where, list_field, message, refuse_unread, text_field
from .tool_calls import call, calling, parsed, tool_schemas
from .turns import conversation

_ACTION = re.compile(r"^Action:([^\n]*)\nAction Input:", re.MULTILINE)
_THOUGHT = re.compile(r"^Thought:", re.MULTILINE)
_PROMPT = "You are AutoGPT, you can use many tools(functions) to do the following task."
_TOOL_SUMMARY = "You have access of the following tools:"
_TOOL_LIST = "Specifically, you have access to the following APIs:"
_RETRY = "This is not the first time you try this task"
_FINISH = "Finish"


def format_toolbench(record: Any, where: Where) -> dict[str, Any]:
    """Read a row of ToolLLaMA, {"conversations": [{"from", "value"}]} (or "role", "content"), an answer file,
    {"answer_generation": {"function", "train_messages"}}, or {"query", "response"}.

    Of an answer file the last of train_messages is read, which holds all the others. The system text loses what
    explains the format of calls, and keeps the summary of the tools; the user's text loses its closing "Begin!".

    Raises MalformedRecord; reasons gave_up (Finish says so), search_retry (the search showed the model its failed
    attempts in a turn of the user, which the next turns talk about), no_answer (an answer file without a trail, or
    Finish without an answer).
    """
    refuse_unread(record, ("tools", "functions"), where)
    if isinstance(record, dict) and "answer_generation" in record:
        return _answer_file(record["answer_generation"], where)
    if isinstance(record, dict) and "conversations" in record:
        return _tool_llama(record, where)
    turns = [message("user", text_field(record, "query", where))]
    turns.append(message("assistant", text_field(record, "response", where)))
    return conversation(turns, where, tools_of(record, where))


def _answer_file(generated: Any, where: Where) -> dict[str, Any]:
    if not isinstance(generated, dict):
        raise MalformedRecord("wrong_type", where, '"answer_generation" must be an object')
    if generated.get("valid_data") is False or not generated.get("train_messages"):
        raise MalformedRecord("no_answer", where, "the search found no answer")
    trail = list_field(generated, "train_messages", where)[-1]
    if not isinstance(trail, list):
        raise MalformedRecord("wrong_type", where, '"train_messages" must be a list of lists of messages')
    return _conversation(role_content_turns(trail, where), tool_schemas(generated.get("function"), where), where)


def _tool_llama(record: dict[str, Any], where: Where) -> dict[str, Any]:
    turns = list_field(record, "conversations", where)
    read_turns = role_content_turns if isinstance(turns[0], dict) and "role" in turns[0] else from_value_turns
    messages, tools = read_turns(turns, where), []
    if messages[0]["role"] == "system":
        system, mark, listed = messages[0]["content"].partition(_TOOL_LIST)
        messages[0] = message("system", system.strip())
        tools = tool_schemas(parsed(listed, "the list of tools", where), where) if mark else []
    messages = [_action(turn, where) if turn["role"] == "assistant" else turn for turn in messages]
    return _conversation(messages, tools or tools_of(record, where), where)


def _action(turn: Message, where: Where) -> Message:
    """Return the turn that makes the call of a "Thought: ... Action: ... Action Input: ..." text."""
    text = turn["content"]
    found = _ACTION.search(text)
    if found:
        thoughts = [thought.strip() for thought in _THOUGHT.split(text[: found.start()])]
        arguments = call(found[1], text[found.end() :].strip(), where)
        return calling([arguments], "\n\n".join(thought for thought in thoughts if thought))
    if "tool_calls" not in turn and _THOUGHT.match(text):
        raise MalformedRecord("malformed_call", where, "a thought leads to no action")
    return turn


def _conversation(messages: list[Message], tools: list[dict[str, Any]], where: Where) -> dict[str, Any]:
    messages = [_finished(turn, where) for turn in _joined(messages)]
    turns: list[Message] = []
    for turn in messages:
        if turn["role"] == "system" and not turns and turn["content"]:
            system = _without_prompt(turn["content"])
            turns += [message("system", system)] if system else []
        elif turn["role"] == "user":
            if turn["content"].startswith(_RETRY):
                raise MalformedRecord("search_retry", where, "a turn of the user lists failed attempts")
            turns.append(message("user", turn["content"].removesuffix("\nBegin!").rstrip()))
        else:
            turns.append(turn)
    return conversation(turns, where, [tool for tool in tools if tool["function"]["name"] != _FINISH])


def _joined(messages: list[Message]) -> list[Message]:
    """Return the messages, a thought that is a message of its own joined to the call that it leads to."""
    joined: list[Message] = []
    for turn in messages:
        before = joined[-1] if joined else None
        if before and before["role"] == "assistant" and "tool_calls" not in before and turn.get("tool_calls"):
            text = "\n\n".join(text for text in (before["content"], turn["content"]) if text)
            joined[-1] = calling(turn["tool_calls"], text)
        else:
            joined.append(turn)
    return joined


def _finished(turn: Message, where: Where) -> Message:
    """Return the answer that a call of Finish gives, any other turn as it is."""
    calls = [each["function"] for each in turn.get("tool_calls", ())]
    if [each["name"] for each in calls] != [_FINISH]:
        return turn
    arguments = json.loads(calls[0]["arguments"])
    if arguments.get("return_type") == "give_up_and_restart":
        raise MalformedRecord("gave_up", where, "the trail gives up")
    answer = arguments.get("final_answer")
    if arguments.get("return_type") != "give_answer" or not isinstance(answer, str) or not answer.strip():
        raise MalformedRecord("no_answer", where, "Finish gives no answer")
    return message("assistant", answer.strip())


def _without_prompt(system: str) -> str:
    """Return a system text without the prompt of the search, which explains thoughts, calls and Finish."""
    if not system.startswith(_PROMPT) or _TOOL_SUMMARY not in system:
        return system
    return system[system.index(_TOOL_SUMMARY) :].strip()


CONVERSATIONS = {"toolbench": format_toolbench}
