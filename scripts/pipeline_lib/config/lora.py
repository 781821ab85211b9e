"""Settings of stage 10."""

from typing import Literal

from pydantic import Field

from .fine_tuning import FineTuningSettings


class LoraSettings(FineTuningSettings):
    """Settings of stage 10: low-rank adapters trained on the domain's examples, merged at the end."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate of AdamW."""
    rank: int = Field(default=16, ge=1)
    """Rank of each adapter: its two factors have this many columns and rows."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the adapters: their product is added to a matrix times alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of the adapter's inputs that is set to zero at random in training."""
    target_modules: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )
    """Names of the linear layers that get an adapter."""
    quantization: Literal["none", "4bit"] = "none"
    """Whether the frozen matrices are held in 4 bits (QLoRA, NF4 with double quantisation) while the adapters train."""
    general_share: float = Field(default=0.25, ge=0, lt=1)
    """Share of the training examples that comes from the instruction data, against forgetting."""
    val_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the domain's prompts, chosen by a seeded hash, that is held out for validation."""
