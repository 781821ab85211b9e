"""What every formatter shares: how to refuse a record, read one of its fields, and write a turn.

A formatter turns one original record into messages, or raises `MalformedRecord` with a short reason that becomes a
row of the ledger, so that the drop counts show what a data set is really like.
"""

import json
from typing import Any

Message = dict[str, Any]
Where = str

QUESTION_FIELDS = ("input", "context", "history", "system", "system_prompt", "tools", "functions")
"""Fields that belong to what is asked, wherever a data set has them: an answer without them answers something else."""


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


def has_entries(value: Any) -> bool:
    """Whether a field holds anything; some data sets write lists as JSON inside of a string, and none as "[]"."""
    if not isinstance(value, str):
        return bool(value)
    try:
        return json.loads(value) not in (None, "", [], {})
    except (ValueError, RecursionError):
        return bool(value.strip())


def refuse_unread(record: Any, reads: tuple[str, ...], where: Where) -> None:
    """Refuse a record with a part of the question that its format does not read and training would not show.

    `reads`: those of QUESTION_FIELDS that the format reads; an empty one of the others is nothing lost. Raises
    MalformedRecord (unread_input).
    """
    given = record if isinstance(record, dict) else {}
    for name in QUESTION_FIELDS:
        if name not in reads and has_entries(given.get(name)):
            raise MalformedRecord("unread_input", where, f'"{name}" belongs to the question, and is not read here')


def message(role: str, content: str) -> Message:
    """Return one turn in the field's usual form."""
    return {"role": role, "content": content}


def whole_characters(text: str, where: Where) -> str:
    """Return the text. Raises MalformedRecord (not_utf8) when it holds half of a character, which JSON can spell."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MalformedRecord("not_utf8", where, "the text holds half of a character (a lone surrogate)") from None
    return text
