"""Settings of stage 06, reasoning data."""

from .sft_data import ChatDataSettings


class ReasoningDataSettings(ChatDataSettings):
    """Settings of stage 06, reasoning data (sources of kind reasoning)."""
