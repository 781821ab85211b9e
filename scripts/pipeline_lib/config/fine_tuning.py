"""What stages 07, 09 and 10 have in common: length, batches, learning rate, checkpoints."""

from typing import Literal

from pydantic import Field, model_validator

from .base import Section


class FineTuningSettings(Section):
    """Settings that every fine-tuning stage has; each stage sets its own defaults."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after the warm-up: straight down to zero, down a cosine, or constant."""
    warmup_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps in which the learning rate rises linearly from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of the matrices; norms and biases never decay."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's averaging factor of the squared gradient."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Greatest norm of the whole gradient; longer gradients are scaled down to it, null never does."""
    epochs: float = Field(default=1.0, gt=0)
    """How often the training examples are seen, unless max_steps is given."""
    max_steps: int | None = Field(default=None, ge=1)
    """Number of optimizer steps; the schedule ends there."""
    micro_batch: int = Field(default=8, ge=1)
    """Examples that go through the model at once."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step."""
    max_length: int = Field(default=2048, ge=8)
    """Longest training sequence, in tokens."""
    batching: Literal["length", "shuffle"] = "length"
    """Whether a micro-batch takes examples of similar length (less padding) or any examples."""
    activation_checkpointing: bool = False
    """Whether to recompute activations in the backward pass: about a third more time, much less memory."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the matrix products; auto takes bfloat16 on a GPU that has it and float32 otherwise."""
    val_examples: int = Field(default=256, ge=0)
    """Held-out examples that are measured before and after training, and in each validation between."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between two validations during training, the last step always included; null validates none."""
    keep_best: bool = False
    """Whether the final model is the one with the lowest validation loss, the earlier of equal ones, not the last."""
    checkpoint_seconds: float = Field(default=600.0, ge=0)
    """Time between two checkpoints in seconds; a kill loses at most this much work."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints, in addition to those by time."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of checkpoints to keep while training runs."""

    @model_validator(mode="after")
    def _validation_can_be_done(self) -> "FineTuningSettings":
        if self.keep_best and self.eval_steps is None:
            raise ValueError(
                "keep_best compares validations during training, and there are none; set eval_steps, the optimizer"
                " steps between two"
            )
        if self.eval_steps is not None and not self.val_examples:
            raise ValueError("eval_steps validates on held-out examples; set val_examples to 1 or more")
        return self
