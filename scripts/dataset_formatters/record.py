"""What every formatter shares: how to refuse a record, read a field, and check that turns make a conversation.

A formatter turns one original record into messages, or raises `MalformedRecord` with a short reason that becomes a
row of the ledger. Nothing is repaired by guessing: a conversation that ends with a question, or whose turns do not
alternate, is refused under its own name, so that the drop counts show what a data set is really like.
"""

from typing import Any

Message = dict[str, str]
Where = str


class MalformedRecord(Exception):
    """A record that its format cannot read; `reason` is a ledger key such as "empty_turn", the text says where."""

    def __init__(self, reason: str, where: Where, detail: str):
        super().__init__(f"{where}: {detail}")
        self.reason = reason


def text_field(record: Any, name: str, where: Where, required: bool = True) -> str:
    """Return a string field without surrounding white space; an absent optional field is "".

    Raises MalformedRecord (missing_field, wrong_type, empty_field).
    """
    if not isinstance(record, dict):
        raise MalformedRecord("wrong_type", where, f"a record must be an object, not {type(record).__name__}")
    value = record.get(name)
    if value is None:
        if required:
            raise MalformedRecord("missing_field", where, f'no field "{name}"')
        return ""
    if not isinstance(value, str):
        raise MalformedRecord("wrong_type", where, f'"{name}" must be a string, not {type(value).__name__}')
    if required and not value.strip():
        raise MalformedRecord("empty_field", where, f'"{name}" is empty')
    return value.strip()


def list_field(record: Any, name: str, where: Where) -> list:
    """Return a non-empty list field. Raises MalformedRecord (missing_field, wrong_type, empty_field)."""
    if not isinstance(record, dict):
        raise MalformedRecord("wrong_type", where, f"a record must be an object, not {type(record).__name__}")
    if name not in record or record[name] is None:
        raise MalformedRecord("missing_field", where, f'no field "{name}"')
    value = record[name]
    if not isinstance(value, list):
        raise MalformedRecord("wrong_type", where, f'"{name}" must be a list, not {type(value).__name__}')
    if not value:
        raise MalformedRecord("empty_field", where, f'"{name}" is empty')
    return value


def message(role: str, content: str) -> Message:
    """Return one turn in the field's usual form."""
    return {"role": role, "content": content}


def check_turns(messages: list[Message], where: Where) -> None:
    """Refuse turns that no chat template could render faithfully.

    An optional system message comes first; then user and assistant alternate, beginning with the user; none of them
    is empty. The last turn may be either. Raises MalformedRecord.
    """
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        raise MalformedRecord("no_turns", where, "no user or assistant turn")
    if turns is not messages and not messages[0]["content"]:
        raise MalformedRecord("empty_system", where, "the system message is empty")
    for number, turn in enumerate(turns):
        if not turn["content"]:
            raise MalformedRecord("empty_turn", where, f"turn {number + 1} ({turn['role']}) is empty")
        if turn["role"] == "system":
            raise MalformedRecord("system_not_first", where, f"turn {number + 1} is a system message")
    if turns[0]["role"] != "user":
        raise MalformedRecord("starts_with_assistant", where, "the first turn is not the user's")
    for number, (before, after) in enumerate(zip(turns, turns[1:], strict=False), start=2):
        if before["role"] == after["role"]:
            raise MalformedRecord("turns_do_not_alternate", where, f"turn {number} is a second {after['role']} turn")


def conversation(messages: list[Message], where: Where) -> dict[str, Any]:
    """Return {"messages", "tools"} of a conversation that ends with the assistant. Raises MalformedRecord."""
    check_turns(messages, where)
    if messages[-1]["role"] != "assistant":
        raise MalformedRecord("ends_without_answer", where, "the last turn is not the assistant's")
    return {"messages": messages, "tools": None}


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
        if not answer[0]["content"]:
            raise MalformedRecord("empty_side", where, f'"{side}" is empty')
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
