"""Which conversations can be trained on: judged on the very token ids and loss mask that training will use."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from .chat_tokens import TokenizedConversation, control_tokens, require_calls, tokenize_conversations
from .prepared_data import Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_conversations(
    tokenizer: PreTrainedTokenizerBase, records: list[dict[str, Any]], max_length: int
) -> list[Verdict]:
    """Judge each {"messages", "tools"}: kept, or refused as control_token, too_long or for a mask that makes no sense.

    Raises UserError when a record offers functions and the chat template does not write what is offered and called.
    """
    reserved = control_tokens(tokenizer)
    tools = [record["tools"] for record in records]
    if any(tools):
        require_calls(tokenizer)
    tokenized = tokenize_conversations(tokenizer, [record["messages"] for record in records], tools)
    return [_judge(record, tokens, reserved, max_length) for record, tokens in zip(records, tokenized, strict=True)]


def _judge(
    record: dict[str, Any], tokens: TokenizedConversation, reserved: tuple[str, ...], max_length: int
) -> Verdict:
    count, messages = len(tokens.ids), record["messages"]
    if spelled := spelled_control_token(messages, reserved, record["tools"]):
        return Verdict(count, "control_token", f"a message spells out {spelled}")
    if count > max_length:
        return Verdict(count, "too_long", f"{count} tokens, at most {max_length} fit")
    if problem := mask_problem(tokens.mask, sum(turn["role"] == "assistant" for turn in messages)):
        return Verdict(count, problem, "the chat template's generation markers do not cover the assistant's turns")
    return Verdict(count)


def spelled_control_token(
    messages: list[dict[str, Any]], reserved: tuple[str, ...], tools: str | None = None
) -> str | None:
    """Return the first reserved token that a message, a call in it or `tools` contains as text, or None."""
    texts = [tools or "", *(turn["content"] for turn in messages)]
    for turn in messages:
        for call in turn.get("tool_calls") or ():
            texts += [call["function"]["name"], call["function"]["arguments"]]
    return next((token for token in reserved for text in texts if token in text), None)


def mask_problem(mask: list[int], assistant_turns: int) -> str | None:
    """Name what is wrong with a loss mask, or None: it must have one run of ones per assistant turn, and a zero."""
    if 1 not in mask:
        return "no_assistant_tokens"
    if 0 not in mask:
        return "loss_on_every_token"
    if sum(value for value, _ in groupby(mask)) != assistant_turns:
        return "assistant_turn_without_loss"
    return None
