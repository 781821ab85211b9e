"""How long to train, in which batches, with which learning rates: explicit settings first, rules for the rest.

With these rules one number, the depth of the model, sets everything (docs/models.md derives them):

    horizon         tokens_per_parameter x parameters that cost FLOPs (blocks and head; the input table is a look-up)
    batch           63 x horizon ^ 0.383 tokens, rounded to a power of two (Bergsma et al. 2025, "Power Lines": the best
                    batch depends on the tokens seen, not on the model; 0.0306 sequences of 2,048 tokens)
    learning rates  AdamW: 1 / width, so 1.3e-3 at width 768 and 2.4e-4 at width 4,096
                    Muon: 0.01 for matrices of any width (its step has a fixed size per feature);
                    the embedding gets 2 / sqrt(width), the head 1 / width, both in one table 3 / width

Trap: a table that is embedding and head at once must not get the rate of an embedding. Every entry of a row moves by
the whole rate in the first steps, so the logits, sums over the width, would move by rate x width.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline_lib.config.pretrain import OptimizerSettings, PretrainSettings

from .curriculum import Phase, phase_at, plan_phases

BATCH_FACTOR, BATCH_EXPONENT = 63.0, 0.383


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates of the matrices, of the input embedding, and of the head and the norms."""

    matrices: float
    embedding: float
    head: float


@dataclass(frozen=True)
class Horizon:
    """The length of a run: optimizer steps of `sequences` packed sequences of `context` tokens each.

    phases: the stages of its curriculum when there is more than one; sequences and context are then the last one's.
    """

    steps: int
    sequences: int
    context: int
    rates: LearningRates
    phases: tuple[Phase, ...] = ()

    @property
    def step_tokens(self) -> int:
        """Tokens per optimizer step (of the last phase), padding included."""
        return self.sequences * self.context

    def step_tokens_at(self, step: int) -> int:
        """Return the tokens of optimizer step `step` (1 ...), padding included."""
        return phase_at(self.phases, step).step_tokens if self.phases else self.step_tokens

    def phases_until(self, step: int) -> list[Phase]:
        """Return the phases of steps 1 ... `step`, cut there; steps beyond the horizon belong to its last phase."""
        whole = self.phases or (Phase(1, self.steps, self.context, self.sequences),)
        cut = [replace(phase, last=step if phase is whole[-1] else min(phase.last, step)) for phase in whole]
        return [phase for phase in cut if phase.first <= phase.last]

    def tokens_until(self, step: int) -> int:
        """Return the tokens of steps 1 ... `step`, padding and repeats included."""
        return sum(phase.tokens for phase in self.phases_until(step))

    @property
    def tokens(self) -> int:
        """Tokens of the whole run, padding and repeats included."""
        return self.tokens_until(self.steps)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return {**asdict(self), "step_tokens": self.step_tokens, "tokens": self.tokens}


def resolve_horizon(
    settings: PretrainSettings,
    context: int,
    width: int,
    matmul_parameters: int,
    data_tokens: int | None = None,
    tied: bool = False,
) -> Horizon:
    """Return the horizon of a run on sequences of `context` tokens.

    width: features of the residual stream; matmul_parameters: parameters of the blocks and the head; data_tokens: size
    of the training split, which `epochs` needs unless the settings say what is expected; tied: whether the embedding is
    the head too.
    """
    tokens = wanted_tokens(settings, matmul_parameters, data_tokens)
    wanted = settings.batch_tokens or best_batch_tokens(tokens)
    phases = plan_phases(settings.curriculum, tokens, wanted, context, settings.max_steps)
    last = phases[-1]
    rates = resolve_learning_rates(settings.optimizer, width, tied)
    return Horizon(last.last, last.sequences, last.context, rates, phases if len(phases) > 1 else ())


def wanted_tokens(settings: PretrainSettings, matmul_parameters: int, data_tokens: int | None = None) -> float:
    """Return the tokens that a run is to read, before they are rounded to steps; arguments as for `resolve_horizon`."""
    if settings.epochs is not None:
        return settings.epochs * (settings.full_data_tokens or data_tokens)
    return settings.tokens or settings.tokens_per_parameter * matmul_parameters


def best_batch_tokens(tokens: float) -> int:
    """Return the best batch for a horizon, both in tokens, as a power of two."""
    return 2 ** round(math.log2(BATCH_FACTOR * tokens**BATCH_EXPONENT))


def resolve_learning_rates(settings: OptimizerSettings, width: int, tied: bool = False) -> LearningRates:
    """Return the peak learning rates: the given ones, and for the rest the rule for this width and for a tied head."""
    if settings.name == "muon":
        embedding = 3 / width if tied else 2 / math.sqrt(width)
        rule = LearningRates(matrices=0.01, embedding=embedding, head=1 / width)
    else:
        rule = LearningRates(matrices=1 / width, embedding=1 / width, head=1 / width)
    return LearningRates(
        matrices=settings.lr or rule.matrices,
        embedding=settings.embedding_lr or rule.embedding,
        head=settings.head_lr or rule.head,
    )
