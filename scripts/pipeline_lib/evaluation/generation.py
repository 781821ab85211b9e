"""Greedy answers, many prompts at a time.

Prompts of a batch are padded on the *left*, so that every row's next token is the last column; the attention mask hides
the padding and positions count from the first real token. Keys and values of the past are cached, so each new token
costs one column. Rows that have ended idle until their batch ends; sorting by length keeps batches homogeneous.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .batching import token_batches
from .kept_answers import Asking, Batch, ask_all

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def greedy_tokens(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_tokens: Sequence[int],
    batch_tokens: int,
    asking: Asking = ask_all,
) -> list[list[int]]:
    """Return the most likely continuation of each prompt, up to and without the first stop token.

    batch_tokens bounds rows x (prompt + new tokens); asking: how batches are asked (kept_answers.py). Raises ValueError
    for an empty prompt.
    """
    from transformers import GenerationConfig

    if not all(prompts):
        raise ValueError("a prompt needs at least one token")
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(stop_tokens),
        pad_token_id=stop_tokens[0],
    )

    def ask(batch: Batch) -> list[list[int]]:
        longest = max(len(prompts[index]) for index in batch)
        tokens = torch.full((len(batch), longest), stop_tokens[0], dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, index in enumerate(batch):
            tokens[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, longest - len(prompts[index]) :] = 1
        device = model.device
        made = model.generate(tokens.to(device), attention_mask=mask.to(device), generation_config=settings)
        return [_until_stop(row, stop_tokens) for row in made[:, longest:].tolist()]

    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    batches = token_batches(lengths, batch_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    made = asking([max_new_tokens, list(stop_tokens), prompts], lengths, batches, ask)
    for batch, rows in zip(batches, made, strict=True):
        for index, row in zip(batch, rows, strict=True):
            answers[index] = row
    return answers


def _until_stop(tokens: list[int], stop_tokens: Sequence[int]) -> list[int]:
    ends = [position for position, token in enumerate(tokens) if token in stop_tokens]
    return tokens[: ends[0]] if ends else tokens


def cut_at(text: str, stops: Sequence[str]) -> str:
    """Return `text` up to the earliest of the stop strings."""
    ends = [position for stop in stops if stop and (position := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
