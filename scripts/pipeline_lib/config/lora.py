"""Settings of stage 10."""

from .base import Section


class LoraSettings(Section):
    """Settings of stage 10."""
