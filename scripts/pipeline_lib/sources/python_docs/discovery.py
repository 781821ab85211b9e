"""Which Python files this interpreter's environment holds, which package each belongs to, and under what licence.

The standard library is found through sysconfig, everything else through the file lists (RECORD) of the installed
distributions: exactly what an installer put there, no stray files, no folder scan. Test suites are left out: their
docstrings are few and describe tests.
"""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.metadata import Distribution, PackageMetadata
from pathlib import Path, PurePosixPath

from packaging.utils import canonicalize_name

from pipeline_lib.config import PROJECT_ROOT

from .requirements import Closure, closure

STANDARD_LIBRARY = "python"
"""Name under which the standard library appears among the distributions."""
REQUIREMENTS = "requirements.txt"
"""Pattern for the distributions that this file of the project installs, and what they require."""

_TEST_FOLDERS = frozenset({"test", "tests", "_tests", "idle_test"})
_CLASSIFIER = "License :: OSI Approved :: "
_LONGEST_LICENSE_FIELD = 60


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One importable file of an installed distribution."""

    path: str
    module: str
    distribution: str
    version: str
    license: str
    size: int
    """Bytes as the distribution's file list states them; for balancing work, not for truth."""
    url: str
    """A package URL (github.com/package-url/purl-spec) with the file as its subpath."""


def environment(patterns: tuple[str, ...]) -> list[tuple[str, str]]:
    """(name, version) of the standard library and of every installed distribution that matches a pattern, sorted.

    Patterns are shell patterns, `python` standing for the standard library and `requirements.txt` for the
    distributions that this file asks for; of those that match a name the last one counts, and one that starts with "!"
    leaves the name out. Raises UserError when requirements.txt is asked for and cannot be followed.
    """
    found = {(STANDARD_LIBRARY, platform.python_version())}
    found |= {(name, metadata["Version"]) for name, metadata, _ in _distributions()}
    required = _required(patterns).installed
    return sorted(pair for pair in found if _matches(pair[0], patterns, required))


def not_installed(patterns: tuple[str, ...]) -> list[str]:
    """The distributions that requirements.txt asks for and that are not there, of those the patterns choose; sorted."""
    missing = _required(patterns).missing
    return sorted(name for name in missing if _matches(name, patterns, missing))


def source_files(patterns: tuple[str, ...]) -> list[SourceFile]:
    """Every importable file, test suites apart, each once, ordered by distribution and path."""
    files: dict[str, SourceFile] = {}
    required = _required(patterns).installed
    if _matches(STANDARD_LIBRARY, patterns, required):
        for file in _standard_library():
            files.setdefault(file.path, file)
    for name, metadata, distribution in _distributions():
        if _matches(name, patterns, required):
            for file in _files_of(name, metadata, distribution):
                files.setdefault(file.path, file)
    return sorted(files.values(), key=lambda file: (file.distribution, file.path))


def license_of(metadata: PackageMetadata) -> str:
    """The licence a distribution states: its SPDX expression, else a short License field, else its classifiers.

    A License field that holds the whole text of a licence, or nothing, says less than the classifiers do.
    """
    expression = (metadata.get("License-Expression") or "").strip()
    if expression:
        return expression
    field = (metadata.get("License") or "").strip()
    if field and field.upper() != "UNKNOWN" and "\n" not in field and len(field) <= _LONGEST_LICENSE_FIELD:
        return field
    classifiers = metadata.get_all("Classifier") or []
    names = [c.removeprefix(_CLASSIFIER) for c in classifiers if c.startswith(_CLASSIFIER)]
    return " OR ".join(names) if names else "unknown"


@lru_cache(maxsize=1)
def _distributions() -> tuple[tuple[str, PackageMetadata, Distribution], ...]:
    """Installed distributions by name; of two with one name the first on the path counts, as it does for import.

    Metadata is parsed anew at every access, a millisecond each, so it is read once and kept.
    """
    first: dict[str, tuple[str, PackageMetadata, Distribution]] = {}
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        if metadata["Name"]:
            name = canonicalize_name(metadata["Name"])
            first.setdefault(name, (name, metadata, distribution))
    return tuple(first[name] for name in sorted(first))


def _required(patterns: tuple[str, ...]) -> Closure:
    """What requirements.txt asks for; nothing, and the file is not read, when no pattern stands for it."""
    if not any(pattern.removeprefix("!") == REQUIREMENTS for pattern in patterns):
        return Closure(frozenset(), frozenset())
    installed = {name: (metadata, distribution) for name, metadata, distribution in _distributions()}

    def requires(name: str) -> list[str] | None:
        if name not in installed:
            return None
        metadata, distribution = installed[name]
        # `Distribution.requires` parses the metadata anew; beyond it, it knows the requires.txt of an .egg-info.
        return metadata.get_all("Requires-Dist") or distribution.requires or []

    return closure(PROJECT_ROOT / REQUIREMENTS, requires)


def _matches(name: str, patterns: tuple[str, ...], required: frozenset[str]) -> bool:
    """Whether a name is asked for: later patterns win, "!pattern" leaves out, `required` is what REQUIREMENTS means."""
    wanted = all(pattern.startswith("!") for pattern in patterns)
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        if name in required if bare == REQUIREMENTS else fnmatchcase(name, canonicalize_name(bare)):
            wanted = bare == pattern
    return wanted


def _standard_library() -> Iterator[SourceFile]:
    root = Path(sysconfig.get_path("stdlib"))
    version = platform.python_version()
    for folder, folders, names in os.walk(root):
        top = Path(folder) == root
        folders[:] = sorted(
            f for f in folders if f not in _TEST_FOLDERS and (f in sys.stdlib_module_names if top else f.isidentifier())
        )
        for name in sorted(names):
            relative = PurePosixPath(Path(folder, name).relative_to(root).as_posix())
            if relative.suffix == ".py" and (not top or relative.stem in sys.stdlib_module_names):
                path = Path(folder, name)
                url = f"pkg:generic/python@{version}#{relative}"
                module = _module_name(relative)
                yield SourceFile(str(path), module, STANDARD_LIBRARY, version, "PSF-2.0", path.stat().st_size, url)


def _files_of(name: str, metadata: PackageMetadata, distribution: Distribution) -> Iterator[SourceFile]:
    version, licence = metadata["Version"], license_of(metadata)
    for file, size in _recorded_files(distribution):
        # ".." leads to scripts outside site-packages; *.dist-info and *.data hold no modules.
        if file.suffix != ".py" or ".." in file.parts or _is_test(file) or "." in file.parts[0].removesuffix(".py"):
            continue
        url = f"pkg:pypi/{name}@{version}#{file.as_posix()}"
        path = str(distribution.locate_file(file))
        yield SourceFile(path, _module_name(file), name, version, licence, size, url)


def _recorded_files(distribution: Distribution) -> Iterator[tuple[PurePosixPath, int]]:
    """Yield the path, relative to site-packages, and the size of every file that an installed distribution records.

    RECORD is read here because `Distribution.files` leaves out files that are gone from Python 3.12 on (and earlier,
    once the importlib_metadata package is loaded), and a file that is gone has to be counted.
    """
    record = distribution.read_text("RECORD")
    if record is None:  # installed by a tool that writes no RECORD
        yield from ((PurePosixPath(file), file.size or 0) for file in distribution.files or [])
        return
    for row in csv.reader(record.splitlines()):
        yield PurePosixPath(row[0]), int(row[2] or 0) if len(row) > 2 else 0


def _is_test(path: PurePosixPath) -> bool:
    return (
        bool(_TEST_FOLDERS.intersection(path.parts[:-1])) or path.name.startswith("test_") or path.name == "conftest.py"
    )


def _module_name(path: PurePosixPath) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
