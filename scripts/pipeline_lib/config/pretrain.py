"""Settings of stage 05."""

from .base import Section


class PretrainSettings(Section):
    """Settings of stage 05."""
