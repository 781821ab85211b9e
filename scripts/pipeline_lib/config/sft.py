"""Settings of stage 07."""

from typing import Literal

from .fine_tuning import FineTuningSettings


class SftSettings(FineTuningSettings):
    """Settings of stage 07: supervised fine-tuning on conversations, with the loss on the assistant's tokens only."""

    batching: Literal["length", "shuffle", "pack"] = "length"
    """What a micro-batch holds: similar lengths, any lengths, or sequences of several whole conversations each."""
