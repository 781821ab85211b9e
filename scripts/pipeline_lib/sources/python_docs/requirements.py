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

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from pipeline_lib.stage import UserError

_COMMENT = re.compile(r"(^|\s)#.*$")
_NAMES_MORE = ("-r", "--requirement", "-e", "--editable")


@dataclass(frozen=True)
class Closure:
    """The distributions that a requirements file asks for, directly or through others, by normalised name (PEP 503)."""

    installed: frozenset[str]
    missing: frozenset[str]
    """Asked for and not installed; what these would require is not known."""


def closure(path: Path, requires: Callable[[str], Iterable[str] | None]) -> Closure:
    """Follow the requirements of the file at `path`.

    `requires` returns the `Requires-Dist` lines of a distribution, or None when it is not installed. Raises UserError
    for a file that cannot be read and for a line that is no requirement.
    """
    waiting = _named(_read(path))
    seen: dict[tuple[str, str], bool] = {}
    while waiting:
        wanted = waiting.pop()
        if wanted in seen:
            continue
        name, extra = wanted
        lines = requires(name)
        seen[wanted] = lines is not None
        waiting += _named([Requirement(line) for line in lines or ()], extra)
    installed = frozenset(name for (name, _), found in seen.items() if found)
    return Closure(installed, frozenset(name for name, _ in seen) - installed)


def _named(requirements: Iterable[Requirement], extra: str = "") -> list[tuple[str, str]]:
    """The (name, extra) pairs of the requirements that hold here; extra "" stands for the distribution itself."""
    here = [entry for entry in requirements if entry.marker is None or entry.marker.evaluate({"extra": extra})]
    return [(canonicalize_name(entry.name), asked) for entry in here for asked in ("", *sorted(entry.extras))]


def _read(path: Path) -> list[Requirement]:
    """The requirements of a file; options such as --index-url say where packages come from, not which."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing, which says what to read; restore it or set download.python_docs.distributions"
        ) from None
    found = []
    for number, line in enumerate(lines, start=1):
        text = _COMMENT.sub("", line).strip()
        if not text or (text.startswith("-") and not text.startswith(_NAMES_MORE)):
            continue
        try:
            found.append(Requirement(text))
        except InvalidRequirement:
            raise UserError(
                f"{path}:{number}: {text!r} does not name a package; write name and version (PEP 508), or set"
                " download.python_docs.distributions"
            ) from None
    return found
