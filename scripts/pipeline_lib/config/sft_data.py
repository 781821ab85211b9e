"""Settings of stage 06, instruction data."""

from pydantic import Field

from .base import Section


class ChatDataSettings(Section):
    """How conversations are checked and split; shared by the instruction and the reasoning data."""

    max_length: int = Field(default=2048, ge=8)
    """Longest conversation that is kept, in tokens of the rendered chat; longer ones are dropped, never cut."""
    val_fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of the prompts, chosen by a seeded hash of the prompt, that is held out for validation."""
    val_limit: int = Field(default=1000, ge=0)
    """Largest number of held-out conversations."""


class SftDataSettings(ChatDataSettings):
    """Settings of stage 06, instruction data (sources of kind sft)."""
