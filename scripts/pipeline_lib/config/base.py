"""The base class of every settings section.

Each field of a section carries a one-sentence docstring with its unit. The sentence is the field's `--help`
text, its description in configs/schema.json and the comment a reader of the code sees: it is written once.
"""

from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

PROJECT_ROOT = Path(__file__).resolve().parents[3]


class Section(BaseModel):
    """A group of settings: immutable once read, and unknown keys are errors rather than ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    MEANS: ClassVar[tuple[str, ...]] = ()
    """Fields that decide how outputs are made and nothing in them: another value makes no work anew."""

    def deciding(self) -> dict[str, Any]:
        """Return in JSON form what decides the outputs: every setting, of nested sections too, but the means."""
        decided = self.model_dump(mode="json", exclude=set(self.MEANS))
        for name in decided:
            value = getattr(self, name)
            if isinstance(value, Section):
                decided[name] = value.deciding()
            elif isinstance(value, list) and any(isinstance(each, Section) for each in value):
                decided[name] = [each.deciding() for each in value]
        return decided

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `seed: true` and `seed: "7"`, which pydantic would take as 1 and 7."""
        types = alternatives(cls.model_fields[info.field_name].annotation)
        if isinstance(value, bool | str) and {int, float} & set(types) and type(value) not in types:
            named = [choice for kind in types for choice in get_args(kind)]
            if value not in named:
                raise ValueError("expected a number" if float in types else "expected an integer")
        return value


def alternatives(annotation: Any) -> list[Any]:
    """Return the types a field can have, None left out."""
    if get_origin(annotation) in (Union, UnionType):
        return [part for part in get_args(annotation) if part is not type(None)]
    return [annotation]


def expand_user(value: str) -> Path:
    """Return `value` with the home folder for a leading ~; one that names no user is the beginning of a file's name."""
    try:
        return Path(value).expanduser()
    except RuntimeError:
        return Path(value)


def resolve_path(value: str) -> Path:
    """Return `value` as an absolute path; a relative one starts at the project root, so any working directory works."""
    path = expand_user(value)
    return path if path.is_absolute() else PROJECT_ROOT / path
