"""Chat and instruction formats: role/content messages, Alpaca, ShareGPT, Dolly."""

from typing import Any

from .record import MalformedRecord, Message, Where, has_entries, list_field, message, refuse_unread, text_field
from .tool_calls import calling, calls_of, result, tool_schemas
from .turns import conversation

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
"""What data sets call the roles of a conversation; "call": the assistant's turn that is nothing but calls."""

_UNREAD = {
    "thinking": "unread_reasoning",
    "reasoning": "unread_reasoning",
    "reasoning_content": "unread_reasoning",
    "refusal": "unread_refusal",
}
"""What a turn may say beside its content, and the reason for refusing a record that would lose it."""


def role_of(name: Any, where: Where) -> str:
    """Return system, user, assistant, tool or call for the many names data sets give them. Raises MalformedRecord."""
    key = name.strip().lower() if isinstance(name, str) else None
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


def role_content_turns(turns: list, where: Where) -> list[Message]:
    """Return the messages of a list of {"role", "content"} turns, calls under "tool_calls" or "function_call".

    Results that name their call ("tool_call_id") come in the order of the calls. Raises MalformedRecord.
    """
    messages: list[Message] = []
    ids: list[Any] = []  # of a turn with calls: theirs, of a result: that of its call
    for turn in turns:
        role, calls = _role_of_turn(turn, "role", where), _calls_beside(turn)
        content = turn.get("content")
        if content is None and (calls or role == "tool"):
            content = ""
        if calls and role != "assistant":
            raise MalformedRecord("malformed_call", where, f"a turn of role {turn['role']!r} cannot call functions")
        if calls:
            messages.append(calling(calls_of(calls, where), content_of(content, where)))
            ids.append([each.get("id") for each in calls if isinstance(each, dict)] if isinstance(calls, list) else [])
        else:
            text = content_of(content, where)
            messages.append(result(text) if role == "tool" else _turn(role, text, where))
            ids.append(turn.get("tool_call_id"))
    return _results_by_call(messages, ids, where)


def _results_by_call(messages: list[Message], ids: list[Any], where: Where) -> list[Message]:
    """Return the messages with the results of each turn of calls in the order of the calls that they name.

    Raises MalformedRecord; reason result_without_call when one names another call or one twice, call_without_result
    when a call that has a name is not answered and others beside it are.
    """
    ordered, place = [], 0
    while place < len(messages):
        ordered.append(messages[place])
        asked, place = ids[place], place + 1
        if not messages[place - 1].get("tool_calls") or not _are_names(asked):
            continue
        end = place
        while end < len(messages) and messages[end]["role"] == "tool":
            end += 1
        answered = ids[place:end]
        if len({*asked}) < len(asked) or not _are_names(answered):
            continue
        if len({*answered}) < len(answered) or not {*answered} <= {*asked}:
            raise MalformedRecord("result_without_call", where, f"results of {answered!r} for calls {asked!r}")
        if len(answered) < len(asked):
            raise MalformedRecord("call_without_result", where, f"results of {answered!r} for calls {asked!r}")
        ordered += [messages[place + answered.index(each)] for each in asked]
        place = end
    return ordered


def _are_names(ids: list[Any]) -> bool:
    return bool(ids) and all(isinstance(each, str) and each for each in ids)


def from_value_turns(turns: list, where: Where) -> list[Message]:
    """Return the messages of a list of ShareGPT's {"from", "value"} turns. Raises MalformedRecord."""
    messages = []
    for turn in turns:
        role = _role_of_turn(turn, "from", where)
        if _calls_beside(turn):
            raise MalformedRecord("malformed_call", where, "calls are turns of their own here, from function_call")
        content = content_of(turn.get("value"), where)
        messages.append(result(content) if role == "tool" else _turn(role, content, where))
    return messages


def _role_of_turn(turn: Any, name: str, where: Where) -> str:
    """Return the role of a turn of which nothing is lost when its content and calls are read. Raises MalformedRecord.

    An assistant's "weight" is OpenAI's: 1 (or none) is to be learnt and 0 is not (judged_bad). Training learns all of
    an assistant's turns, so it can heed no other weight (unknown_weight).
    """
    if not isinstance(turn, dict):
        raise MalformedRecord("wrong_type", where, f"a turn must be an object, not {type(turn).__name__}")
    role, weight = role_of(turn.get(name), where), turn.get("weight")
    if role in ("assistant", "call") and weight not in (None, 1):
        reason = "judged_bad" if weight == 0 else "unknown_weight"
        raise MalformedRecord(reason, where, f'"weight" of a turn is {weight!r:.40}, and only 1 can be learnt')
    for field, reason in _UNREAD.items():
        if has_entries(turn.get(field)):
            raise MalformedRecord(reason, where, f'"{field}" of a turn would be lost; make it part of the content')
    return role


def _calls_beside(turn: dict[str, Any]) -> Any:
    """Return what a turn calls beside or instead of its content, None for nothing."""
    return next((turn[name] for name in ("tool_calls", "function_call") if has_entries(turn.get(name))), None)


def _turn(role: str, content: str, where: Where) -> Message:
    """Return a turn of text, or of calls where the content is their JSON."""
    return calling(calls_of(content, where)) if role == "call" else message(role, content)


def tools_of(record: dict[str, Any], where: Where) -> list[dict[str, Any]]:
    """Return the functions that a record offers under "tools" or "functions". Raises MalformedRecord."""
    given = [record[name] for name in ("tools", "functions") if has_entries(record.get(name))]
    if len(given) > 1:
        raise MalformedRecord("two_tool_lists", where, 'a record has either "tools" or "functions"')
    return tool_schemas(given[0], where) if given else []


def refuse_calls(messages: list[Message], where: Where) -> list[Message]:
    """Return the messages of a format without functions. Raises MalformedRecord (tool_turn) when they call any."""
    if any(turn["role"] == "tool" or turn.get("tool_calls") for turn in messages):
        raise MalformedRecord("tool_turn", where, "preference pairs cannot call functions")
    return messages


def with_system(record: dict[str, Any], messages: list[Message], where: Where) -> list[Message]:
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

    An optional "system" field comes first. Functions are offered in "tools" (or "functions"), called in "tool_calls" of
    an assistant's turn and answered by turns of the role tool. Raises MalformedRecord; reason judged_bad for a record
    whose "label" is false, which says in data sets for KTO that its answer is not a good one, and for an assistant's
    turn of "weight" 0, which OpenAI's layout does not train on.
    """
    if isinstance(record, list):
        return conversation(role_content_turns(record, where), where)
    if isinstance(record, dict) and record.get("label") is False:
        raise MalformedRecord("judged_bad", where, '"label" says that the answer is not a good one')
    turns = role_content_turns(list_field(record, "messages", where), where)
    refuse_unread(record, ("system", "tools", "functions"), where)
    return conversation(with_system(record, turns, where), where, tools_of(record, where))


def format_alpaca(record: Any, where: Where) -> dict[str, Any]:
    """Read {"instruction", "input", "output"}: the optional input follows the instruction after a blank line.

    "<noinput>" in the input field is the Self-Instruct spelling of "none". An optional "system" field comes first,
    then the turns of an optional "history": [[question, answer], ...].
    """
    instruction = text_field(record, "instruction", where)
    extra = text_field(record, "input", where, required=False)
    output = text_field(record, "output", where)
    refuse_unread(record, ("input", "history", "system"), where)
    question = instruction if extra in ("", "<noinput>") else f"{instruction}\n\n{extra}"
    turns = [*_earlier_turns(record, where), message("user", question), message("assistant", output)]
    return conversation(with_system(record, turns, where), where)


def _earlier_turns(record: dict[str, Any], where: Where) -> list[Message]:
    history = record.get("history")
    if not has_entries(history):
        return []
    pairs = history if isinstance(history, list) else [history]
    if any(not isinstance(pair, list) or [type(text) for text in pair] != [str, str] for pair in pairs):
        raise MalformedRecord("wrong_type", where, '"history" must be a list of [question, answer] texts')
    return [
        message(role, text.strip()) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def format_sharegpt(record: Any, where: Where) -> dict[str, Any]:
    """Read {"conversations": [{"from": "human"|"gpt"|"system", "value"}, ...]}; an optional "system" comes first.

    Functions are offered in "tools" (or "functions"), called by turns from function_call, whose value is the JSON of
    one call or several, and answered by turns from observation (or tool, function_response).
    """
    turns = from_value_turns(list_field(record, "conversations", where), where)
    refuse_unread(record, ("system", "tools", "functions"), where)
    return conversation(with_system(record, turns, where), where, tools_of(record, where))


def format_dolly(record: Any, where: Where) -> dict[str, Any]:
    """Read {"instruction", "context", "response"}: the optional context follows the instruction after a blank line.

    The context is Wikipedia's text with its citation marks ("[1]"), which stay: they cannot be told from a text that
    speaks of "[1]". "category" says what was asked for and is not read. Raises MalformedRecord.
    """
    instruction = text_field(record, "instruction", where)
    context = text_field(record, "context", where, required=False)
    response = text_field(record, "response", where)
    refuse_unread(record, ("context",), where)
    question = f"{instruction}\n\n{context}" if context else instruction
    return conversation([message("user", question), message("assistant", response)], where)


CONVERSATIONS = {
    "messages": format_messages,
    "alpaca": format_alpaca,
    "sharegpt": format_sharegpt,
    "dolly": format_dolly,
}
