"""What a chat template makes of functions, found out by rendering conversations that have them.

Templates differ: some write no functions at all, some leave out the text beside a call, or the second of two calls, and
none of them says so. Training would learn answers that end where something was left out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import UserError

from .chat_tokens import TemplateRefusal, tokenize_conversations

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FUNCTION = {
    "name": "offered_function",
    "description": "what it does",
    "parameters": {"type": "object", "properties": {}},
}
_OFFERED = json.dumps([{"type": "function", "function": _FUNCTION}])


def _call(value: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "offered_function", "arguments": json.dumps({"key": value})}}


def unwritten(tokenizer: PreTrainedTokenizerBase, calls: int, beside: str) -> list[str]:
    """Return what is missing of a turn with that many calls and that text beside them; [] when all is there.

    Calls have to be in the tokens that the assistant is taught, their results outside of them.
    """
    values = [f"value {number} given" for number in range(calls)]
    results = [f"result {number} obtained" for number in range(calls)]
    turns = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": beside, "tool_calls": [_call(value) for value in values]},
        *({"role": "tool", "content": text} for text in results),
        {"role": "assistant", "content": "second"},
    ]
    try:
        tokens = tokenize_conversations(tokenizer, [turns], [_OFFERED])[0]
    except TemplateRefusal as refusal:
        return [str(refusal)]
    spoken = tokenizer.decode([token for token, mask in zip(tokens.ids, tokens.mask, strict=True) if mask])
    whole = tokenizer.decode(tokens.ids)
    missing = [text for text in ("what it does", *results) if text not in whole]
    missing += [text for text in ("offered_function", *values, beside) if text not in spoken]
    return missing + [f"{text}, which is no call" for text in results if text in spoken]


class CallSupport:
    """Which turns with calls the chat template of a tokenizer can write."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        """Raise UserError when it writes no functions, not even one call alone, or its result."""
        if missing := unwritten(tokenizer, 1, ""):
            raise UserError(
                "the tokenizer's chat template does not write functions, the calls of them inside of its generation"
                f" markers and results outside of them (missing: {', '.join(missing)}); use one that does, or no source"
                " with functions"
            )
        self._text = not unwritten(tokenizer, 1, "text beside it")
        self._several = not unwritten(tokenizer, 2, "")

    def problem(self, messages: list[dict[str, Any]]) -> tuple[str, str] | None:
        """Return (reason, detail) when a conversation has a turn that would lose something, None otherwise."""
        turns = [turn for turn in messages if turn.get("tool_calls")]
        if not self._text and any(turn["content"] for turn in turns):
            return "text_beside_call", "the chat template does not write text beside a call"
        if not self._several and any(len(turn["tool_calls"]) > 1 for turn in turns):
            return "several_calls", "the chat template does not write several calls in one turn"
        return None
