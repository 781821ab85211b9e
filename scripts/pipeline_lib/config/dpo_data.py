"""Settings of stage 08."""

from .base import Section


class DpoDataSettings(Section):
    """Settings of stage 08."""
