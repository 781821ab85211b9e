"""JSON schemas of function parameters from the type names that data sets use instead.

    xLAM   {"city": {"description", "type": "str, optional", "default"}}            -> an object schema around them
    BFCL   {"type": "dict", "properties": {"city": {"type": "float"}}}              -> the same with JSON's type names

A type that is not known stays as the data set wrote it: a schema with an odd type still tells the model more than one
without.
"""

from typing import Any

JSON_TYPES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "double": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "list": "array",
    "array": "array",
    "tuple": "array",
    "set": "array",
    "dict": "object",
    "object": "object",
}
ANYTHING = "any"
"""The type name of a parameter that takes every value: a JSON schema says so by having no type."""

DEEPEST = 20
"""Levels of nested types and schemas that are converted; what lies deeper stays as it is written."""


def type_schema(name: str, depth: int = 0) -> dict[str, Any]:
    """Return the JSON schema of a Python type as text: "str", "List[int]", "Union[int, str]", "Optional[float]"."""
    name = name.strip()
    outer, bracket, inside = name.partition("[")
    outer = outer.strip().lower()
    if not bracket:
        return {} if outer == ANYTHING else {"type": JSON_TYPES.get(outer, name)}
    if not inside.endswith("]") or depth == DEEPEST:
        return {"type": name}
    inner = [type_schema(each, depth + 1) for each in _split_types(inside[:-1])]
    if outer == "optional" and len(inner) == 1:
        return inner[0]
    if outer == "union":
        return {"anyOf": inner}
    kind = JSON_TYPES.get(outer)
    if kind == "array" and all(each == inner[0] for each in inner):
        return {"type": kind, "items": inner[0]}
    return {"type": kind or name}


def _split_types(names: str) -> list[str]:
    """Split "int, List[str, int]" at the commas that stand in no bracket."""
    pieces, level, start = [], 0, 0
    for position, character in enumerate(names):
        level += (character == "[") - (character == "]")
        if character == "," and level == 0:
            pieces.append(names[start:position])
            start = position + 1
    return [*pieces, names[start:]]


def object_schema(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the object schema of xLAM's {name: {"description", "type", "default"}}; a schema stays as it is.

    A parameter without default is required unless its type says ", optional" or Optional[...].
    """
    if parameters.get("type") == "object" and isinstance(parameters.get("properties", {}), dict):
        return parameters
    properties, required = {}, []
    for name, described in parameters.items():
        if not isinstance(described, dict):
            described = {"description": described}
        kind = described.get("type")
        optional = "default" in described
        if isinstance(kind, str):
            stem, comma, suffix = kind.rpartition(",")
            if comma and suffix.strip().lower() == "optional":
                kind, optional = stem, True
            optional = optional or kind.strip().lower().startswith("optional[")
            described = {key: value for key, value in described.items() if key != "type"} | type_schema(kind)
        properties[name] = described
        if not optional:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required}


def with_json_types(schema: Any, depth: int = 0) -> Any:
    """Return a schema with JSON's type names: "dict" becomes "object", "float" "number", "any" no type at all."""
    if not isinstance(schema, dict) or depth == DEEPEST:
        return schema
    converted = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            converted |= {} if value.lower() == ANYTHING else {"type": JSON_TYPES.get(value.lower(), value)}
        elif key == "properties" and isinstance(value, dict):
            converted[key] = {name: with_json_types(each, depth + 1) for name, each in value.items()}
        else:
            converted[key] = with_json_types(value, depth + 1) if key in ("items", "additionalProperties") else value
    return converted


def with_parameters(tools: list[dict[str, Any]], convert: Any) -> list[dict[str, Any]]:
    """Return the tools, the parameters of each one (where it has any) passed through `convert`."""
    converted = []
    for tool in tools:
        function = tool["function"]
        if "parameters" in function:
            function = {**function, "parameters": convert(function["parameters"])}
        converted.append({**tool, "function": function})
    return converted
