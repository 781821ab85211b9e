"""Which distributions a requirements file installs: those it names, and all that these require in turn.

What else an environment holds (the tools of the tests, another project's packages, pip) is not among them, so the same
file gives the same text before and after something is added. Dependencies are read from the metadata of what is
installed, with the markers and extras of PEP 508 evaluated for this interpreter, as pip does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from pipeline_lib.stage import UserError

_COMMENT = re.compile(r"(^|\s)#.*$")
_NAMES_MORE = ("-r", "--requirement", "-e", "--editable")
_REFUSED = (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName)  # the latter two when a marker is read


@dataclass(frozen=True)
class Closure:
    """The distributions that a requirements file asks for, directly or through others, by normalised name (PEP 503)."""

    installed: frozenset[str]
    missing: frozenset[str]
    """Asked for and not installed; what these would require is not known."""


def closure(path: Path, requires: Callable[[str], Iterable[str] | None]) -> Closure:
    """Follow the requirements of the file at `path`.

    `requires` returns the `Requires-Dist` lines of a distribution, or None when it is not installed. Raises UserError
    for a file that cannot be read and for a line of it, or of a distribution's metadata, that is no requirement.
    """
    waiting = _read(path)
    seen: dict[tuple[str, str], bool] = {}
    while waiting:
        wanted = waiting.pop()
        if wanted in seen:
            continue
        name, extra = wanted
        lines = requires(name)
        seen[wanted] = lines is not None
        for line in lines or ():
            try:
                waiting += _named(line, extra)
            except _REFUSED:
                raise UserError(
                    f"the metadata of the installed {name} is invalid: 'Requires-Dist: {line}' is no requirement"
                    " (PEP 508); install another version of it, or set download.python_docs.distributions"
                ) from None
    installed = frozenset(name for (name, _), found in seen.items() if found)
    return Closure(installed, frozenset(name for name, _ in seen) - installed)


def _named(line: str, extra: str = "") -> list[tuple[str, str]]:
    """The (name, extra) pairs that a requirement asks for here; extra "" stands for the distribution itself.

    Raises one of _REFUSED for a line that is no requirement.
    """
    entry = Requirement(line)
    if entry.marker is not None and not entry.marker.evaluate({"extra": extra}):
        return []
    return [(canonicalize_name(entry.name), asked) for asked in ("", *sorted(entry.extras))]


def _read(path: Path) -> list[tuple[str, str]]:
    """What a file asks for, as from `_named`; options such as --index-url say where packages come from, not which."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing, which says what to read; restore it or set download.python_docs.distributions"
        ) from None
    found: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        text = _COMMENT.sub("", line).strip()
        if not text or (text.startswith("-") and not text.startswith(_NAMES_MORE)):
            continue
        try:
            found += _named(text)
        except _REFUSED:
            raise UserError(
                f"{path}:{number}: {text!r} does not name a package; write name and version (PEP 508), or set"
                " download.python_docs.distributions"
            ) from None
    return found
