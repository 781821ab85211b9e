"""Signatures written from the syntax tree, with annotations for reading and without them for questions."""

from __future__ import annotations

import ast

LONGEST_EXPRESSION = 60
"""Characters of a default or annotation above which it is shown as three dots."""

_PLAIN_CONSTANTS = (str, int, bool, type(None))


def expression(node: ast.expr) -> str:
    """A default, annotation or base class on one line; "..." where it is long or cannot be written."""
    # Most defaults are names and constants: they need no visitor, which costs ten times as much.
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Constant) and type(node.value) in _PLAIN_CONSTANTS:
        text = repr(node.value)
    else:
        try:
            text = ast.unparse(node)
        except (RecursionError, ValueError):  # thousands of nested operands; f-strings that 3.11 cannot write
            return "..."
    return text if len(text) <= LONGEST_EXPRESSION and "\n" not in text else "..."


def class_header(node: ast.ClassDef, name: str) -> str:
    """`class name(Base, Other)`; keywords such as metaclass are left out."""
    bases = [expression(base) for base in node.bases]
    return f"class {name}({', '.join(bases)})" if bases else f"class {name}"


def function_signature(node: ast.FunctionDef | ast.AsyncFunctionDef, name: str, annotations: bool) -> str:
    """`name(a, b=1, /, c, *args, d=2, **kwargs)`, with `: type` and `-> type` where asked for."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    shown = [_parameter(p, d, annotations) for p, d in zip(positional, defaults, strict=True)]
    if arguments.posonlyargs:
        shown.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg:
        shown.append("*" + _parameter(arguments.vararg, None, annotations))
    elif arguments.kwonlyargs:
        shown.append("*")
    shown += [_parameter(p, d, annotations) for p, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        shown.append("**" + _parameter(arguments.kwarg, None, annotations))
    returns = f" -> {expression(node.returns)}" if annotations and node.returns is not None else ""
    return f"{name}({', '.join(shown)}){returns}"


def parameter_names(node: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> tuple[str, ...]:
    """Names in the order of the call, `*args` and `**kwargs` with their stars; without self or cls if `bound`."""
    arguments = node.args
    names = [p.arg for p in (*arguments.posonlyargs, *arguments.args)]
    if bound:
        names = names[1:]
    if arguments.vararg:
        names.append("*" + arguments.vararg.arg)
    names += [p.arg for p in arguments.kwonlyargs]
    if arguments.kwarg:
        names.append("**" + arguments.kwarg.arg)
    return tuple(names)


def _parameter(parameter: ast.arg, default: ast.expr | None, annotations: bool) -> str:
    annotated = annotations and parameter.annotation is not None
    shown = f"{parameter.arg}: {expression(parameter.annotation)}" if annotated else parameter.arg
    if default is None:
        return shown
    return f"{shown} = {expression(default)}" if annotated else f"{shown}={expression(default)}"
