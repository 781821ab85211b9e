"""The chat template as token ids: whole conversations with their loss mask, and prompts with two answers.

What: the tokenizer's own template renders the turns; `{% generation %}` markers in it say which characters the
assistant wrote, and the character positions of the tokens turn that into a mask of 0 and 1 per token.
Cost: about 0.2 ms per conversation, in batches; two thirds of it is the template.
Traps: without the markers the mask is all zeros and without care the loss falls on the prompt, so both are refused.
A token can straddle the border of a turn when an answer begins with white space, which is why formatters strip it.
A control token spelled out in a message ("<|im_end|>") would be encoded as the real one and end the turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import UserError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class TokenizedConversation:
    """`ids` and `mask` have the same length; a mask value of 1 marks a token the assistant wrote, its end included."""

    ids: list[int]
    mask: list[int]


@dataclass(frozen=True)
class TokenizedPair:
    """A prompt (ending with the assistant's header) and its two answers, each with its end-of-turn token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def load_chat_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a local folder. Raises UserError unless its chat template can be trained on.

    Required: a template with generation markers, whose mask covers the answer and the token that ends it, and in
    which a prompt with the assistant's header is the beginning of the prompt with its answer.
    """
    # AutoTokenizer would import torch, five times the cost, to find the same class: tokenizer.json says it all.
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise UserError(f"{folder}: the tokenizer has no chat template; give it one (chat_template.jinja)")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(f"{folder}: the tokenizer needs a padding token of its own (pad_token) besides its eos_token")
    _check_template(tokenizer, folder)
    return tokenizer


def _check_template(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    turns = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "second"}]
    file = f"{folder}: the chat template"
    if "generation" not in tokenizer.chat_template:
        raise UserError(f"{file} has no {{% generation %}} markers, so the assistant's tokens cannot be told apart")
    tokens = tokenize_conversations(tokenizer, [[*turns, turns[0]]])[0]
    spoken = [token for token, mask in zip(tokens.ids, tokens.mask, strict=True) if mask]
    text = tokenizer.decode(spoken)
    if not text.startswith("second") or text.strip() == "second":
        raise UserError(f"{file} marks {text!r} as the assistant's; it must mark the answer and the token that ends it")
    pair = tokenize_pairs(tokenizer, [(turns[:1], turns[1:], turns[1:])])[0]
    if pair is None:
        raise UserError(f"{file} renders a prompt alone differently from the same prompt with its answer")


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token with which the assistant ends its turn: generation must stop there."""
    turns = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "second"}]
    tokens = tokenize_conversations(tokenizer, [turns])[0]
    return [token for token, mask in zip(tokens.ids, tokens.mask, strict=True) if mask][-1]


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the spellings that encode to a token of the chat's markup wherever they occur.

    These are the special tokens, and the added tokens that the chat template spells out: some tokenizers have the
    markers of their turns among the ordinary ones. What else was added (words of a domain, runs of spaces) is text.
    """
    special = set(tokenizer.all_special_tokens)
    written = _template_texts(tokenizer.chat_template)
    return tuple(
        sorted(
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special
            or token.content in special
            or (_is_mark(token.content) and any(token.content in text for text in written))
        )
    )


def _template_texts(template: str) -> list[str]:
    """Return the texts a template can write: what stands outside of its tags, and the strings inside of them."""
    from jinja2 import Environment

    environment = Environment(trim_blocks=True, lstrip_blocks=True)  # as transformers cuts the lines of tags
    return [text for _, kind, text in environment.lex(template) if kind in ("data", "string")]


def _is_mark(spelling: str) -> bool:
    """Words and white space may stand in a template too ('user', indentation), and in a message they do no harm."""
    return not all(character.isalnum() or character.isspace() for character in spelling)


def tokenize_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages], tools: Sequence[str | None] | None = None
) -> list[TokenizedConversation]:
    """Return ids and loss mask of each conversation, rendered by the tokenizer's chat template.

    tools: the functions that each conversation offers, as JSON text; None for none at all.
    """
    tokenized: list[TokenizedConversation | None] = [None] * len(conversations)
    together: dict[str | None, list[int]] = {}
    for number, offered in enumerate(tools or [None] * len(conversations)):
        together.setdefault(offered, []).append(number)
    for offered, numbers in together.items():
        batch = _rendered(
            tokenizer,
            [for_template(conversations[number]) for number in numbers],
            tools=json.loads(offered) if offered else None,
            return_assistant_tokens_mask=True,
        )
        for number, ids, mask in zip(numbers, batch["input_ids"], batch["assistant_masks"], strict=True):
            tokenized[number] = TokenizedConversation(list(ids), list(mask))
    return tokenized


class TemplateRefusal(UserError):
    """The chat template raises an error for a conversation: a role, an order or a number of calls it does not know."""


def _rendered(tokenizer: PreTrainedTokenizerBase, conversations: list[Messages], **options: Any) -> BatchEncoding:
    """Return what the chat template makes of conversations, as tokens. Raises TemplateRefusal when it refuses one."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(conversations, tokenize=True, return_dict=True, **options)
    except (TemplateError, TypeError) as error:  # a template that adds a number to a text raises the latter
        what = " ".join(str(error).split()) or type(error).__name__
        raise TemplateRefusal(
            f"the tokenizer's chat template refuses a conversation ({what}); use another one"
        ) from None


def for_template(messages: Messages) -> Messages:
    """Return the messages as templates expect them: arguments of calls as objects, no key without a value.

    Calls and results also have what some templates ask for and data sets seldom keep: ids (nine digits, as Mistral's
    demand), and the name of the function that a result is of. Results answer the calls before them in their order.
    """
    turns: Messages = []
    due: list[dict[str, Any]] = []
    number = 0
    for message in messages:
        turn = {name: value for name, value in message.items() if value is not None}
        if calls := turn.get("tool_calls"):
            due = []
            for call in calls:
                function = call["function"]
                parsed = {**function, "arguments": json.loads(function["arguments"])}
                due.append({**call, "id": f"{number:09d}", "function": parsed})
                number += 1
            turn["tool_calls"] = list(due)
        elif turn["role"] == "tool" and due:
            answered = due.pop(0)
            turn |= {"tool_call_id": answered["id"], "name": answered["function"]["name"]}
        turns.append(turn)
    return turns


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Messages, Messages, Messages]]
) -> list[TokenizedPair | None]:
    """Return the token ids of each (prompt, chosen, rejected), or None where the prompt is not a prefix of both.

    An answer is everything after the prompt with the assistant's header, as TRL's DPOTrainer cuts it.
    """
    if not pairs:
        return []
    prompts = _rendered(tokenizer, [prompt for prompt, _, _ in pairs], add_generation_prompt=True)["input_ids"]
    both = [prompt + answer for prompt, chosen, rejected in pairs for answer in (chosen, rejected)]
    whole = _rendered(tokenizer, both)["input_ids"]
    tokenized: list[TokenizedPair | None] = []
    for number, prompt in enumerate(prompts):
        chosen, rejected = whole[2 * number], whole[2 * number + 1]
        size = len(prompt)
        if chosen[:size] != prompt or rejected[:size] != prompt:
            tokenized.append(None)
        else:
            tokenized.append(TokenizedPair(list(prompt), list(chosen[size:]), list(rejected[size:])))
    return tokenized
