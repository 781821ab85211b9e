"""Which preference pairs can be trained on: the two answers must still differ in the tokens that training will see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .chat_tokens import TemplateRefusal, TokenizedPair, control_tokens, tokenize_pairs
from .conversation_checks import one_by_one_if_refused, spelled_control_token
from .prepared_data import Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_pairs(tokenizer: PreTrainedTokenizerBase, records: list[dict[str, Any]], max_length: int) -> list[Verdict]:
    """Judge each {"prompt", "chosen", "rejected"}: kept, or refused with the reason."""
    reserved = control_tokens(tokenizer)
    tokenized = one_by_one_if_refused(_tokenize, tokenizer, records)
    return [_judge(record, pair, reserved, max_length) for record, pair in zip(records, tokenized, strict=True)]


def _tokenize(tokenizer: PreTrainedTokenizerBase, records: list[dict[str, Any]]) -> list[TokenizedPair | None]:
    return tokenize_pairs(tokenizer, [(r["prompt"], r["chosen"], r["rejected"]) for r in records])


def _judge(
    record: dict[str, Any], pair: TokenizedPair | TemplateRefusal | None, reserved: tuple[str, ...], max_length: int
) -> Verdict:
    if isinstance(pair, TemplateRefusal):
        return Verdict(0, "template_refuses", str(pair))
    if pair is None:
        return Verdict(0, "prompt_not_a_prefix", "the template renders the prompt differently when an answer follows")
    count = len(pair.chosen) + len(pair.rejected) + 2 * len(pair.prompt)
    if record["chosen"] == record["rejected"]:
        return Verdict(count, "identical_answers", "chosen and rejected are the same text")
    if spelled := spelled_control_token(record["prompt"] + record["chosen"] + record["rejected"], reserved):
        return Verdict(count, "control_token", f"a message spells out {spelled}")
    return judge_length(pair, max_length)


def judge_length(pair: TokenizedPair, max_length: int) -> Verdict:
    """Judge what is left of a pair when prompt and answer are cut at `max_length` tokens."""
    room = max_length - len(pair.prompt)
    cut = max(len(pair.chosen), len(pair.rejected)) > room
    count = len(pair.chosen) + len(pair.rejected) + 2 * len(pair.prompt)
    if room <= 0:
        return Verdict(count, "prompt_too_long", f"the prompt alone has {len(pair.prompt)} of {max_length} tokens")
    if pair.chosen[:room] == pair.rejected[:room]:
        return Verdict(count, "identical_after_truncation", f"the answers differ only behind {max_length} tokens")
    return Verdict(count, cut=cut)
