"""Settings of stage 06."""

from .base import Section


class ReasoningDataSettings(Section):
    """Settings of stage 06."""
