"""Settings of stage 12."""

from .base import Section


class GatesSettings(Section):
    """Settings of stage 12."""

    file: str = "configs/gates/demo.yaml"
    """Gate file to apply: a YAML with the metric, direction and threshold of each gate (relative to the project)."""
    only: str | None = None
    """Name of the one group of gates to check (such as sft); all groups when not given."""
