"""Which conversations can be trained on: judged on the very token ids and loss mask that training will use."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

from .call_support import CallSupport
from .chat_tokens import TemplateRefusal, TokenizedConversation, control_tokens, tokenize_conversations
from .prepared_data import Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = TypeVar("Tokens")


def check_conversations(
    tokenizer: PreTrainedTokenizerBase, records: list[dict[str, Any]], max_length: int
) -> list[Verdict]:
    """Judge each {"messages", "tools"}: kept, or refused with the reason.

    Raises UserError when a record offers functions and the chat template does not write functions at all.
    """
    reserved = control_tokens(tokenizer)
    support = CallSupport(tokenizer) if any(record["tools"] for record in records) else None
    verdicts = []
    for record, tokens in zip(records, one_by_one_if_refused(_tokenize, tokenizer, records), strict=True):
        if isinstance(tokens, TemplateRefusal):
            verdicts.append(Verdict(0, "template_refuses", str(tokens)))
        elif support and (problem := support.problem(record["messages"])):
            verdicts.append(Verdict(len(tokens.ids), *problem))
        else:
            verdicts.append(_judge(record, tokens, reserved, max_length))
    return verdicts


def _tokenize(tokenizer: PreTrainedTokenizerBase, records: list[dict[str, Any]]) -> list[TokenizedConversation]:
    tools = [record["tools"] for record in records]
    return tokenize_conversations(tokenizer, [record["messages"] for record in records], tools)


def one_by_one_if_refused(
    tokenize: Callable[[PreTrainedTokenizerBase, list[dict[str, Any]]], list[Tokens]],
    tokenizer: PreTrainedTokenizerBase,
    records: list[dict[str, Any]],
) -> list[Tokens | TemplateRefusal]:
    """Return what `tokenize` makes of the records together or, when the template refuses one, of each by itself."""
    try:
        return list(tokenize(tokenizer, records))
    except TemplateRefusal:
        return [_alone(tokenize, tokenizer, record) for record in records]


def _alone(tokenize: Callable, tokenizer: PreTrainedTokenizerBase, record: dict[str, Any]) -> Tokens | TemplateRefusal:
    try:
        return tokenize(tokenizer, [record])[0]
    except TemplateRefusal as refusal:
        return refusal


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
