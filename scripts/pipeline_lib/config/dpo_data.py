"""Settings of stage 08."""

from pydantic import Field

from .base import Section


class DpoDataSettings(Section):
    """Settings of stage 08: how preference pairs are checked and split."""

    max_length: int = Field(default=2048, ge=8)
    """Longest prompt with answer, in tokens; training cuts longer answers there, so the two must differ before."""
    val_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the pairs held out for validation, by a seeded hash; pairs that share a text stay together."""
    val_limit: int = Field(default=1000, ge=0)
    """Largest number of held-out pairs."""
