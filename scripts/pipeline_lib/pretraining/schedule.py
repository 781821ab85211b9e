"""Learning rates and momentum as pure functions of the step: nothing to save, nothing to restore.

warm-up, then one of
    linear   straight down to the final factor (Bergsma et al. 2025: to zero is best at compute-optimal length)
    cosine   half a cosine down to it (Loshchilov and Hutter 2017)
    wsd      constant, then straight down in the last part (Hu et al. 2024); a longer run can share the constant part
"""

from __future__ import annotations

import math

from pipeline_lib.config.pretrain import OptimizerSettings, ScheduleSettings

FIRST_MOMENTUM = 0.85


def schedule_factor(step: int, steps: int, settings: ScheduleSettings) -> float:
    """Return the factor on the peak learning rates for optimizer step `step` (1 ... steps).

    The factor is 1 at the end of the warm-up and would be `final_factor` one step after the last, so that the last
    step of a schedule that ends at zero still learns. Raises ValueError outside 1 ... steps.
    """
    if not 1 <= step <= steps:
        raise ValueError(f"step {step} is outside 1 ... {steps}")
    warmup = round(settings.warmup_fraction * steps)
    if step <= warmup:
        return step / warmup
    decay = steps - warmup
    if settings.name == "wsd":
        decay = min(decay, round(settings.decay_fraction * steps))
    progress = max(0.0, (step - (steps - decay)) / (decay + 1))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if settings.name == "cosine" else 1 - progress
    return settings.final_factor + (1 - settings.final_factor) * shape


def momentum_at(step: int, settings: OptimizerSettings) -> float:
    """Return Muon's momentum for optimizer step `step` (1 ...), which rises in a line (Jordan et al. 2024)."""
    if step >= settings.momentum_warmup_steps or settings.momentum <= FIRST_MOMENTUM:
        return settings.momentum
    return FIRST_MOMENTUM + (settings.momentum - FIRST_MOMENTUM) * step / settings.momentum_warmup_steps
