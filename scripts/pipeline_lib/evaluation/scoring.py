"""How probable does a model find these tokens after those? Exact log-likelihoods, without the work nobody asked for.

A causal model turns T input tokens into T hidden states, and its head turns each state into one logit per vocabulary
entry. For a small model with a large vocabulary the head costs as much as all layers together, and an evaluation only
asks about the continuation (the answer), not the context (the question). So:

1. run the layers on the whole batch, padded on the right. Causal attention never looks to the right, so padding changes
   nothing and no attention mask is needed, which keeps the fast attention kernel;
2. gather the states that predict continuation tokens, and run the head on those alone, in slices of bounded memory;
3. log-likelihood of a token = its logit - logsumexp of all logits, in float32; summed per request in float64.

The shortcut from states to logits is checked against the model's own forward pass when the scorer is made: some
architectures scale or cap their logits. For such a model the head runs inside the model, on every position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline_lib.stage import StageFailure

from .batching import token_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits made at a time: 16 MiB on a CPU, where larger slices leave the cache (measured: 30 % slower at 64 MiB); a GPU
# wants fewer, larger kernels.
_LOGITS_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 26}


@dataclass(frozen=True)
class Likelihood:
    """Natural-log probability of a continuation, and whether greedy decoding would have produced exactly it."""

    log_likelihood: float
    is_greedy: bool


class TokenScorer:
    """Scores (context tokens, continuation tokens) pairs with one model."""

    def __init__(self, model: "PreTrainedModel", max_length: int, batch_tokens: int):
        """max_length: longest input in tokens; batch_tokens: rows x longest of a forward pass."""
        self.model = model
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self.truncated = 0
        self._head_is_linear = self._check_head()

    @torch.inference_mode()
    def _check_head(self) -> bool:
        probe = torch.arange(min(8, self.model.config.vocab_size), device=self.model.device)[None]
        own = self.model(input_ids=probe).logits.float()
        ours = self.model.get_output_embeddings()(self._states(probe)).float()
        return own.shape == ours.shape and torch.allclose(own, ours, rtol=1e-4, atol=1e-4)

    def _states(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the hidden states [batch, sequence, width] that the head reads."""
        return self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Likelihood]:
        """Return one Likelihood per (context, continuation); both need at least one token.

        A continuation longer than the model's input is scored in pieces, each after all tokens before it that fit. A
        context that does not fit loses tokens from its left; `truncated` counts those. Raises StageFailure when a
        likelihood is not finite, because comparisons with NaN would silently prefer the first choice.
        """
        inputs, targets, owners = [], [], []
        for owner, (context, continuation) in enumerate(pairs):
            if not context or not continuation:
                raise ValueError("a context and a continuation need at least one token each")
            whole = [*context, *continuation]
            self.truncated += len(context) + min(len(continuation), self.max_length) > self.max_length + 1
            for start in range(len(context), len(whole), self.max_length):
                end = min(start + self.max_length, len(whole))
                inputs.append(whole[max(0, end - self.max_length - 1) : end - 1])
                targets.append(whole[start:end])
                owners.append(owner)
        totals, greedy = [0.0] * len(pairs), [True] * len(pairs)
        for batch in token_batches([len(tokens) for tokens in inputs], self.batch_tokens):
            scored = self._score_batch([inputs[index] for index in batch], [targets[index] for index in batch])
            for index, likelihood in zip(batch, scored, strict=True):
                totals[owners[index]] += likelihood.log_likelihood
                greedy[owners[index]] &= likelihood.is_greedy
        return [Likelihood(total, hit) for total, hit in zip(totals, greedy, strict=True)]

    @torch.inference_mode()
    def _score_batch(self, inputs: list[list[int]], targets: list[list[int]]) -> list[Likelihood]:
        device = self.model.device
        longest = max(map(len, inputs))
        tokens = torch.zeros(len(inputs), longest, dtype=torch.long)
        for row, sequence in enumerate(inputs):
            tokens[row, : len(sequence)] = torch.tensor(sequence)
        rows = torch.tensor([row for row, target in enumerate(targets) for _ in target])
        columns = torch.tensor(
            [
                len(inputs[row]) - len(target) + offset
                for row, target in enumerate(targets)
                for offset in range(len(target))
            ]
        )
        wanted = torch.tensor([token for target in targets for token in target], device=device)
        log_probabilities, hits = self._at(tokens.to(device), rows.to(device), columns.to(device), wanted)
        sums = torch.zeros(len(inputs), dtype=torch.float64).index_add_(0, rows, log_probabilities.double().cpu())
        misses = torch.zeros(len(inputs), dtype=torch.long).index_add_(0, rows, (~hits).long().cpu())
        if not torch.isfinite(sums).all():
            raise StageFailure(
                "the model gave a log-likelihood that is not finite; its weights are damaged or diverged"
            )
        return [Likelihood(total, missed == 0) for total, missed in zip(sums.tolist(), misses.tolist(), strict=True)]

    def _at(self, tokens, rows, columns, wanted) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log probability of `wanted` at each (row, column), and whether it is the most likely token."""
        if self._head_is_linear:
            states, head = self._states(tokens)[rows, columns], self.model.get_output_embeddings()
        else:
            states, head = self.model(input_ids=tokens).logits[rows, columns], torch.nn.Identity()
        log_probabilities, hits = [], []
        step = max(1, _LOGITS_AT_ONCE[tokens.device.type] // self.model.config.vocab_size)
        for state, token in zip(states.split(step), wanted.split(step), strict=True):
            logits = head(state).float()
            chosen, highest = logits.gather(1, token[:, None])[:, 0], logits.amax(dim=1)
            # logsumexp in place: a second array of this size would cost as much as the sum itself
            normaliser = logits.sub_(highest[:, None]).exp_().sum(dim=1).log()
            log_probabilities.append(chosen - highest - normaliser)
            hits.append(chosen == highest)
        return torch.cat(log_probabilities), torch.cat(hits)
