"""Settings of stage 06."""

from .base import Section


class SftDataSettings(Section):
    """Settings of stage 06."""
