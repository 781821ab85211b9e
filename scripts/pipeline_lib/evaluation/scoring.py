"""How probable does a model find these tokens after those? Exact log-likelihoods, without the work nobody asked for.

A causal model turns T input tokens into T hidden states, and its head turns each state into one logit per vocabulary
entry. For a small model with a large vocabulary the head costs as much as all layers together, and an evaluation only
asks about the continuation (the answer), not the context (the question). So:

1. requests with the same context share one row (shared_prefix.py), and rows of similar length share a batch;
2. run the layers on the batch, padded on the right. Causal attention never looks to the right, so padding changes
   nothing and rows that share nothing need no attention mask, which keeps the fast attention kernel;
3. gather the states that predict continuation tokens, and run the head on those alone, in slices of bounded memory;
4. log-likelihood of a token = its logit - logsumexp of all logits, in float32; summed per request in float64.

Both shortcuts are checked when the scorer is made, because they hold for Llama and Qwen but not for every architecture:
some scale or cap their logits (then the head runs inside the model, on every position), and some attention kernels take
no mask of one's own (then every request gets its own row). The numbers are the same either way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline_lib.stage import StageFailure

from .batching import token_batches
from .kept_answers import Asking, Batch, ask_all
from .shared_prefix import Row, Window, as_tensors, separate_rows, shared_rows

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
        self._shares = False
        self._shares = self._check_sharing()

    @torch.inference_mode()
    def _check_head(self) -> bool:
        probe = torch.arange(min(8, self.model.config.vocab_size), device=self.model.device)[None]
        own = self.model(input_ids=probe).logits.float()
        ours = self.model.get_output_embeddings()(self._states({"input_ids": probe})).float()
        return own.shape == ours.shape and torch.allclose(own, ours, rtol=1e-4, atol=1e-4)

    def _check_sharing(self) -> bool:
        context, first, second = (
            [(start + step) % self.model.config.vocab_size for step in range(3)] for start in (0, 3, 6)
        )
        windows = [(0, context, first), (1, context, second)]
        (_, one, _), (_, two, _) = self._score_batch(shared_rows(windows, longest=9))
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.1
        alone = [self._score_batch(separate_rows([window]))[0][1] for window in windows]
        return abs(one - alone[0]) < tolerance and abs(two - alone[1]) < tolerance

    def _states(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the hidden states [rows, longest, width] that the head reads."""
        return self.model.base_model(**inputs, use_cache=False).last_hidden_state

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], asking: Asking = ask_all) -> list[Likelihood]:
        """Return one Likelihood per (context, continuation); both need at least one token.

        A continuation longer than the model's input is scored in pieces, each after all tokens before it that fit. A
        context that does not fit loses tokens from its left; `truncated` counts those. asking: how batches are asked
        (kept_answers.py). Raises StageFailure when a likelihood is not finite, because comparisons with NaN would
        silently prefer the first choice.
        """
        totals, misses = [0.0] * len(pairs), [0] * len(pairs)
        windows = self._windows(pairs)
        rows = shared_rows(windows, self.max_length) if self._shares else separate_rows(windows)

        def ask(batch: Batch) -> list[tuple[int, float, int]]:
            return self._score_batch([rows[index] for index in batch])

        lengths = [len(row.tokens) for row in rows]
        for scored in asking([self._shares, pairs], lengths, self._batches(rows), ask):
            for owner, log_likelihood, missed in scored:
                totals[owner] += log_likelihood
                misses[owner] += missed
        return [Likelihood(total, missed == 0) for total, missed in zip(totals, misses, strict=True)]

    def _batches(self, rows: list[Row]) -> list[list[int]]:
        """Return batches of places in `rows`; those that need a mask come first and apart from those that do not."""
        batches = []
        for shared in (True, False):
            places = [place for place, row in enumerate(rows) if row.is_shared == shared]
            cut = token_batches([len(rows[place].tokens) for place in places], self.batch_tokens)
            batches += [[places[index] for index in batch] for batch in cut]
        return batches

    def _windows(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Window]:
        """Return (pair, context, piece of the continuation) that fit the model: context + piece - 1 <= max_length."""
        windows = []
        for owner, (context, continuation) in enumerate(pairs):
            if not context or not continuation:
                raise ValueError("a context and a continuation need at least one token each")
            whole = [*context, *continuation]
            self.truncated += len(context) + min(len(continuation), self.max_length) > self.max_length + 1
            for start in range(len(context), len(whole), self.max_length):
                end = min(start + self.max_length, len(whole))
                windows.append((owner, whole[max(0, end - self.max_length - 1) : start], whole[start:end]))
        return windows

    @torch.inference_mode()
    def _score_batch(self, rows: list[Row]) -> list[tuple[int, float, int]]:
        """Return (pair, log-likelihood, tokens that greedy decoding would have missed) for the pairs in these rows."""
        device = self.model.device
        reads = [
            (number, column, token, owner) for number, row in enumerate(rows) for owner, column, token in row.reads
        ]
        numbers, columns, tokens, owners = torch.tensor(reads).unbind(dim=1)
        inputs = {name: tensor.to(device) for name, tensor in as_tensors(rows).items()}
        log_probabilities, hits = self._at(inputs, numbers.to(device), columns.to(device), tokens.to(device))
        pairs, place = owners.unique(return_inverse=True)
        sums = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, place, log_probabilities.double().cpu())
        misses = torch.zeros(len(pairs), dtype=torch.long).index_add_(0, place, (~hits).long().cpu())
        if not torch.isfinite(sums).all():
            raise StageFailure("the model gave a log-likelihood that is not finite; its weights are broken")
        return list(zip(pairs.tolist(), sums.tolist(), misses.tolist(), strict=True))

    def _at(self, inputs, rows, columns, wanted) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log probability of `wanted` at each (row, column), and whether it is the most likely token."""
        if self._head_is_linear:
            states, head = self._states(inputs)[rows, columns], self.model.get_output_embeddings()
        else:
            states, head = self.model(**inputs, use_cache=False).logits[rows, columns], torch.nn.Identity()
        log_probabilities, hits = [], []
        step = max(1, _LOGITS_AT_ONCE[rows.device.type] // self.model.config.vocab_size)
        for state, token in zip(states.split(step), wanted.split(step), strict=True):
            logits = head(state).float()
            chosen, highest = logits.gather(1, token[:, None])[:, 0], logits.amax(dim=1)
            # logsumexp in place: a second array of this size would cost as much as the sum itself
            normaliser = logits.sub_(highest[:, None]).exp_().sum(dim=1).log()
            log_probabilities.append(chosen - highest - normaliser)
            hits.append(chosen == highest)
        return torch.cat(log_probabilities), torch.cat(hits)
