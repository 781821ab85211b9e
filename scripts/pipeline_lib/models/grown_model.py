"""The grown model of stage 04, and the proof that it is still the source where that is promised.

Source and grown model read the same real tokens, in float32 and from the weights as they are saved. Where a growth
promises to preserve the function, the largest difference of the logits of the source's ids has to be rounding: at most
`TOLERANCE` of the largest logit (or of 1), or the stage fails. A block between two zeros changes no bit; a wider
feed-forward network adds the same numbers in another order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.model import ModelSettings
from pipeline_lib.stage import Stage, StageFailure, UserError

from .growth import GrowthPlan, grow_weights, plan_growth
from .growth_source import GrowthSource
from .initialise import build_in_float32, transformers_config
from .shapes import ModelShape
from .tokenizer_source import TokenizerSource, read_sample

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

TOLERANCE = 1e-4
_SEQUENCES, _LENGTH = 4, 128


def check_growth(
    settings: ModelSettings, source: GrowthSource, shape: ModelShape, tokens: TokenizerSource
) -> GrowthPlan:
    """Return how `source` grows into `shape`, nothing but its small files read. Raises UserError when it cannot."""
    known = source.require_growth_into(
        shape, transformers_config(shape, settings, tokens.special), tokens.files["tokenizer.json"]
    )
    return plan_growth(settings.grow, source.numbers, shape, known)


def grow_model(
    stage: Stage, source: GrowthSource, shape: ModelShape, tokens: TokenizerSource
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the grown model on the CPU in the format of the settings, and the facts for the card.

    Raises UserError when the source cannot grow into `shape` or is damaged, StageFailure when a growth that promises to
    preserve the function has not.
    """
    import torch

    settings: ModelSettings = stage.settings
    plan = check_growth(settings, source, shape, tokens)
    dtype = getattr(torch, settings.dtype)
    sample = read_sample(stage, _SEQUENCES, _LENGTH)
    small = source.read_model()
    weights = {name: parameter.detach() for name, parameter in small.named_parameters()}
    model = build_in_float32(shape, settings, tokens.special, stage.seed)
    copied = grow_weights(model, weights, plan, settings.grow, settings.init_std)
    for each in (small, model):
        _round(each, dtype)
    facts = {
        "grown_from": source.name,
        "growth": plan.describe(settings.grow),
        "parameters_copied": copied,
        "parameters_made": shape.parameter_counts()["total"] - copied,
        "logits": compare(small, model, sample, plan.vocabulary[0], plan.exact),
    }
    if settings.grow.ffn == "copy" and not settings.grow.ffn_noise and plan.ffn[0] < plan.ffn[1]:
        stage.note("copied feed-forward units without noise get the same gradients and stay copies: see grow.ffn_noise")
    return model.to(dtype), facts


def compare(
    small: PreTrainedModel, model: PreTrainedModel, sample: list[list[int]], ids: int, exact: bool
) -> dict[str, Any]:
    """Return how far the logits of the grown model are from the source's, for the first `ids`, which both know.

    exact: whether they have to be the same. Raises UserError when the source's are not finite, StageFailure when they
    have to be the same and are not.
    """
    difference, largest, count = 0.0, 0.0, 0
    for row in sample:
        known = [number for number in row if number < ids]
        if not known:
            continue
        before, after = _logits(small, known)[:, :ids], _logits(model, known)[:, :ids]
        largest = max(largest, float(before.abs().max()))
        apart = float((after - before).abs().max())
        difference = apart if math.isnan(apart) else max(difference, apart)
        if not math.isfinite(largest + float(before.sum())):
            raise UserError("model.grow.source: its logits are not finite; name a model that is not broken")
        count += len(known)
    if count == 0:
        raise UserError("model.grow.source: none of the first packed tokens is an id of the source; pack text it knows")
    allowed = TOLERANCE * max(1.0, largest)
    if exact and not difference <= allowed:
        raise StageFailure(
            f"the grown model is not the source any more: over {count} tokens their logits differ by up to"
            f" {difference:.3g}, rounding explains {allowed:.3g}; this is a defect, do not train from it"
        )
    return {
        "function": "preserved" if exact else "changed",
        "largest": largest,
        "largest_difference": difference,
        **({"allowed_difference": allowed} if exact else {}),
        "compared_tokens": count,
    }


def _logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Return the logits [tokens, vocabulary]."""
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids])).logits[0]


def _round(model: PreTrainedModel, dtype: Any) -> None:
    """Give every number the value it has in `dtype`, as it will be saved, and stay in float32."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
