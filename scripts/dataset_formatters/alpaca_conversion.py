"""From ShareGPT's layout to Alpaca's, for tools that read nothing else."""

from typing import Any

from .general import format_sharegpt
from .record import MalformedRecord


def convert_sharegpt_to_alpaca(record: Any, where: str = "record") -> dict[str, Any]:
    """Return {"instruction", "input": "", "output"} of a ShareGPT record, and what else of it Alpaca can hold.

    The last question and answer are instruction and output, earlier ones "history": [[question, answer], ...], and the
    system text "system"; neither key is there when there is nothing to say. The handler "alpaca" makes the same
    conversation of the result that "sharegpt" makes of the record. Raises MalformedRecord as "sharegpt" does, with
    reason tools_offered for those with functions.
    """
    made = format_sharegpt(record, where)
    if made["tools"] is not None:
        raise MalformedRecord("tools_offered", where, "Alpaca's layout cannot offer functions")
    turns = made["messages"]
    system = turns[0]["content"] if turns[0]["role"] == "system" else None
    said = [turn["content"] for turn in turns if turn["role"] != "system"]
    pairs = [list(pair) for pair in zip(said[::2], said[1::2], strict=True)]
    converted: dict[str, Any] = {"instruction": pairs[-1][0], "input": "", "output": pairs[-1][1]}
    if system is not None:
        converted["system"] = system
    if pairs[:-1]:
        converted["history"] = pairs[:-1]
    return converted
