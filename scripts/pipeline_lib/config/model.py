"""Settings of stage 04."""

from .base import Section


class ModelSettings(Section):
    """Settings of stage 04."""
