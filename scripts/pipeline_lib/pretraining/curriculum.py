"""Stages of context length and batch size inside one run: short sequences first, or small batches first.

A stage ends at a share of the horizon's *tokens*. Tokens per step stay what they are when only the context changes:
half the sequences at twice the length, so neither learning rate nor schedule needs to know. All stages read the same
packed cache, each through the plan of its length; the order of the chunks is the same in every plan, so a new stage
goes on where the old one stood: at the same share of the same window of chunks (`PackedCache.carry_over`). Chunks read
before are not read again; inside the window in hand the two packings differ, and a part of it may come twice.

The stage is a function of the step: nothing to save, nothing to restore.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline_lib.config.pretrain import CurriculumStage


@dataclass(frozen=True)
class Phase:
    """Steps `first` ... `last` (1-based, inclusive) take `sequences` sequences of `context` tokens each."""

    first: int
    last: int
    context: int
    sequences: int

    @property
    def step_tokens(self) -> int:
        """Tokens per step, padding included."""
        return self.context * self.sequences

    @property
    def tokens(self) -> int:
        """Tokens of all its steps, padding included."""
        return (self.last - self.first + 1) * self.step_tokens


def plan_phases(
    stages: list[CurriculumStage], tokens: float, batch_tokens: float, context: int, max_steps: int | None
) -> tuple[Phase, ...]:
    """Return the phases of a run of `tokens` tokens; `batch_tokens` and `context` are for stages that name none.

    Without stages there is one phase. Each phase has at least one step; those beyond `max_steps` are left out.
    """
    phases: list[Phase] = []
    begun = 0.0
    for stage in stages or [CurriculumStage(until=1.0)]:
        length = stage.context or context
        sequences = max(1, round((stage.batch_tokens or batch_tokens) / length))
        steps = max(1, round((stage.until - begun) * tokens / (sequences * length)))
        begun = stage.until
        first = phases[-1].last + 1 if phases else 1
        last = first + steps - 1
        if max_steps is not None and first > max_steps:
            break
        phases.append(Phase(first, last if max_steps is None else min(last, max_steps), length, sequences))
    return tuple(phases)


def phase_at(phases: tuple[Phase, ...], step: int) -> Phase:
    """Return the phase of optimizer step `step` (1 ...); steps beyond the last belong to it."""
    return next((phase for phase in phases if step <= phase.last), phases[-1])


def stages_after(
    done: list[Phase], stages: list[CurriculumStage], tokens: float, context: int
) -> list[CurriculumStage]:
    """Return the stages that count the phases `done` as they are and go on with those of `stages` that end later.

    tokens: of the horizon; context: for stages that name none. Empty where `done` has read as much as the horizon.
    """
    continued: list[CurriculumStage] = []
    read = 0
    for phase in done:
        read += phase.tokens
        if read >= tokens:
            return []
        length = None if phase.context == context else phase.context
        continued.append(CurriculumStage(until=read / tokens, context=length, batch_tokens=phase.step_tokens))
    return continued + [stage for stage in stages if stage.until > continued[-1].until]
