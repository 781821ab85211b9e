"""The base class of every settings section.

Each field of a section carries a one-sentence docstring with its unit. The sentence is the field's `--help`
text, its description in configs/schema.json and the comment a reader of the code sees: it is written once.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

PROJECT_ROOT = Path(__file__).resolve().parents[3]


class Section(BaseModel):
    """A group of settings: immutable once read, and unknown keys are errors rather than ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def resolve_path(value: str) -> Path:
    """Return `value` as an absolute path; a relative one starts at the project root, so any working directory works."""
    path = Path(value).expanduser()
    return path if path.is_absolute() else PROJECT_ROOT / path
