"""Settings of stage 03."""

from .base import Section


class PackSettings(Section):
    """Settings of stage 03."""
