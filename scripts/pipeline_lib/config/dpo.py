"""Settings of stage 09."""

from typing import Literal

from pydantic import Field, model_validator

from .fine_tuning import FineTuningSettings


class DpoSettings(FineTuningSettings):
    """Settings of stage 09: direct preference optimisation against the model of stage 07."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is held to its reference: the factor on the difference of log-probability ratios."""
    loss: Literal["sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "apo_zero", "apo_down"] = "sigmoid"
    """Loss on that difference, by TRL's name; sigmoid is the one of the DPO paper (arXiv 2305.18290)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed probability that a pair is labelled the wrong way round; only the loss "robust" uses it."""

    @model_validator(mode="after")
    def _smoothing_has_a_reader(self) -> "DpoSettings":
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(f'label_smoothing is used by the loss "robust" only, not by "{self.loss}"')
        return self
