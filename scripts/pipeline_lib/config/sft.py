"""Settings of stage 07."""

from .base import Section


class SftSettings(Section):
    """Settings of stage 07."""
