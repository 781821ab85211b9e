"""Settings of stage 09."""

from .base import Section


class DpoSettings(Section):
    """Settings of stage 09."""
