"""From a YAML file to a RunConfig: inheritance, checks, and errors that point at the line and the nearest key."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from pipeline_lib.stage.errors import UserError

from .base import Section
from .model import ModelSettings
from .patterns import IN_WORDS
from .run import RunConfig

Location = tuple[str | int, ...]

NEAR_ENOUGH = 0.6
"""How alike (difflib's ratio) a mistyped name and a valid one are before the valid one is proposed."""


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration, the plain values it was built from, and the YAML that gave each value, by dotted name."""

    config: RunConfig
    values: dict[str, Any]
    origins: dict[str, str]


class _Loader(yaml.SafeLoader):
    """YAML with two repairs: 3e-4 is a number as in YAML 1.2, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be one word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_value(text: str) -> Any:
    """Read one command-line value as YAML (numbers, true, null, [lists]); a text that is not YAML stays a text."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 a SafeLoader subclass
    except yaml.YAMLError:
        return text


def read_layers(path: Path, _below: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """Return the YAML's content and that of the files it is based on, the base first.

    Raises UserError on a missing file, a file that is not a mapping, bad YAML, or files based on each other.
    """
    path = path.resolve()
    if path in _below:
        chain = " -> ".join(file.name for file in (*_below, path))
        raise UserError(f"{path}: configurations are based on each other ({chain}); remove one `base:`")
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        problem = "is a folder" if isinstance(error, IsADirectoryError) else "does not exist"
        remedy = f"correct `base:` in {_below[-1]}" if _below else "pass --config FILE.yaml (see configs/)"
        raise UserError(f"configuration {path} {problem}; {remedy}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 a SafeLoader subclass
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines at the top level")
    base = content.pop("base", None)
    if base is None:
        return [(path, content)]
    if not isinstance(base, str):
        raise UserError(f"{path}: `base:` must be the path of another YAML")
    return [*read_layers(path.parent / base, (*_below, path)), (path, content)]


def load_config(path: Path) -> LoadedConfig:
    """Read a YAML and those it is based on. Raises UserError naming file, line and key of the first mistake."""
    layers = read_layers(path)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file, content in layers:
        values, origins = lay_over(values, origins, content, dict.fromkeys(leaves(content), file.name))
    return LoadedConfig(build(RunConfig, values, layers), values, origins)


def lay_over(
    values: dict[str, Any], origins: dict[str, str], above: dict[str, Any], origins_above: dict[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return values and origins with those of a higher layer laid over them; see ModelSettings.superseded_by."""
    model = above.get("model")
    lost = ModelSettings.superseded_by(model) if isinstance(model, dict) else set()
    if lost and isinstance(values.get("model"), dict):
        values = {**values, "model": {key: value for key, value in values["model"].items() if key not in lost}}
        origins = {name: origin for name, origin in origins.items() if not _is_below(name, "model", lost)}
    return merge(values, above), {**origins, **origins_above}


def _is_below(name: str, section: str, keys: set[str]) -> bool:
    first, _, rest = name.partition(".")
    return first == section and rest.split(".")[0] in keys


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return `below` overridden by `above`: sections merge key by key, everything else (lists too) is replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def leaves(value: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all values inside nested mappings."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{prefix}{key}.")
    else:
        yield prefix.rstrip(".")


def build(model: type[Section], values: dict[str, Any], layers: list[tuple[Path, dict[str, Any]]]) -> Section:
    """Validate `values` as `model`. Raises UserError naming file:line, the key and, for an unknown one, the nearest."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UserError(f"{_where(first['loc'], layers)}{_explain(model, first)}{more}") from None


def build_file(model: type[Section], path: Path) -> Section:
    """Validate the content of a YAML, and of those it is based on, as `model`. Raises UserError naming the file."""
    layers = read_layers(path)
    values: dict[str, Any] = {}
    for _, content in layers:
        values = merge(values, content)
    try:
        return build(model, values, layers)
    except UserError as error:  # an error about the file as a whole carries no line
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from None


def _explain(model: type[Section], error: dict[str, Any]) -> str:
    location: Location = error["loc"]
    # pydantic adds the tags of unions and validators to a location; only keys of the YAML help the reader
    name = ".".join(str(part) for part in location if isinstance(part, int) or "[" not in part)
    if error["type"] == "extra_forbidden":
        known = sorted(_keys_at(model, location[:-1]))
        nearest = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=NEAR_ENOUGH)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; valid keys: {', '.join(known)}"
        return f"unknown key {name!r}{hint}"
    if error["type"] == "missing":
        return f"{name}: this key is required"
    if error["type"] == "string_pattern_mismatch":
        return f"{name}: {IN_WORDS[error['ctx']['pattern']]}, got {error['input']!r}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    given = "" if isinstance(error["input"], dict) else f", got {error['input']!r}"
    return f"{name}: {message[:1].lower()}{message[1:]}{given}" if name else message


def _keys_at(model: type[Section], location: Location) -> set[str]:
    """Return the valid keys of the section at `location`, following nested sections and lists of sections."""
    sections = [model]
    for part in location:
        if not isinstance(part, str):
            continue
        below = [section.model_fields[part].annotation for section in sections if part in section.model_fields]
        sections = [found for annotation in below for found in _sections_in(annotation)] or sections
    return {key for section in sections for key in section.model_fields}


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) in (Union, list, dict, tuple) or get_args(annotation):
        return [found for part in get_args(annotation) for found in _sections_in(part)]
    return []


def _where(location: Location, layers: list[tuple[Path, dict[str, Any]]]) -> str:
    """Return `file:line: ` of the last layer that gives the offending key, or nothing for command-line values."""
    keys = [part for part in location if isinstance(part, int) or "[" not in part]
    for path, _ in reversed(layers):
        node = yaml.compose(path.read_text("utf-8"), Loader=_Loader)
        line = _line_of(node, keys)
        if line is not None:
            return f"{path}:{line}: "
    return ""


def _line_of(node: yaml.Node | None, keys: list[str | int]) -> int | None:
    line = None
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next(((name, value) for name, value in node.value if name.value == str(key)), None)
            if pair is None:
                return line if line is not None and key == keys[-1] else None
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
    return line
