"""Settings of stage 11."""

from .base import Section


class EvaluateSettings(Section):
    """Settings of stage 11."""
