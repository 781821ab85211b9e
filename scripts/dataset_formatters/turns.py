"""Which turns make a conversation, and which two answers a preference pair.

    [system]  user  assistant  user  assistant ...     with calls:  user  assistant(calls)  tool ... tool  assistant

Nothing is repaired by guessing: a conversation that ends with a question, or whose turns do not alternate, is refused
under its own name.
"""

from typing import Any

from .record import MalformedRecord, Message, Where, whole_characters
from .tool_calls import calls_of_offered, tools_text

_FOLLOWS = {"user": {"assistant"}, "assistant": {"user"}, "call": {"tool"}, "tool": {"tool", "assistant"}}
"""Which roles may follow a turn; "call" is one of the assistant that calls functions."""


def check_turns(messages: list[Message], where: Where) -> None:
    """Refuse turns that no chat template could render faithfully.

    An optional system message comes first; then user and assistant alternate, beginning with the user, and between a
    turn with calls and the next one of the assistant stand the results, at most one per call. No turn is empty but one
    that calls, and a result. The last turn may be any. Raises MalformedRecord.
    """
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        raise MalformedRecord("no_turns", where, "no user or assistant turn")
    if turns is not messages and not messages[0]["content"]:
        raise MalformedRecord("empty_system", where, "the system message is empty")
    for turn in messages:
        whole_characters(turn["content"], where)
    for number, turn in enumerate(turns):
        if not turn["content"] and _kind(turn) not in ("call", "tool"):
            raise MalformedRecord("empty_turn", where, f"turn {number + 1} ({turn['role']}) is empty")
        if turn["role"] == "system":
            raise MalformedRecord("system_not_first", where, f"turn {number + 1} is a system message")
    if turns[0]["role"] != "user":
        raise MalformedRecord("starts_with_assistant", where, "the first turn is not the user's")
    results_due = 0
    for number, (before, after) in enumerate(zip(turns, turns[1:], strict=False), start=2):
        _check_order(before, after, number, where)
        results_due = len(before.get("tool_calls", ())) or results_due
        if after["role"] == "tool":
            results_due -= 1
            if results_due < 0:
                raise MalformedRecord("result_without_call", where, f"turn {number} answers no call")


def _kind(turn: Message) -> str:
    return "call" if turn.get("tool_calls") else turn["role"]


def _check_order(before: Message, after: Message, number: int, where: Where) -> None:
    if after["role"] in _FOLLOWS[_kind(before)]:
        return
    if after["role"] == "tool":
        raise MalformedRecord("result_without_call", where, f"turn {number} answers no call")
    if _kind(before) == "call":
        raise MalformedRecord("call_without_result", where, f"turn {number} is no result of the call before it")
    if before["role"] == "tool":
        raise MalformedRecord("result_without_answer", where, f"turn {number} follows a result, and is the user's")
    raise MalformedRecord("turns_do_not_alternate", where, f"turn {number} is a second {after['role']} turn")


def conversation(messages: list[Message], where: Where, tools: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return {"messages", "tools"} of a conversation that ends with the assistant, `tools` as JSON text or None.

    Raises MalformedRecord.
    """
    check_turns(messages, where)
    if messages[-1]["role"] != "assistant":
        raise MalformedRecord("ends_without_answer", where, "the last turn is not the assistant's")
    tools = tools or []
    return {"messages": calls_of_offered(messages, tools, where), "tools": tools_text(tools, where)}


def preference(prompt: list[Message], chosen: list[Message], rejected: list[Message], where: Where) -> dict[str, Any]:
    """Return {"prompt", "chosen", "rejected"}: a conversation that ends with the user, and two answers to it.

    Whether the two answers differ is judged later, with the tokenizer at hand. Raises MalformedRecord.
    """
    check_turns(prompt, where)
    if prompt[-1]["role"] != "user":
        raise MalformedRecord("prompt_ends_with_answer", where, "the last turn of the prompt is not the user's")
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        if [turn["role"] for turn in answer] != ["assistant"]:
            raise MalformedRecord("answer_is_not_one_turn", where, f'"{side}" is not exactly one assistant turn')
        if not whole_characters(answer[0]["content"], where):
            raise MalformedRecord("empty_side", where, f'"{side}" is empty')
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
