"""Which code makes a stage: the digest of its script and of every file of ours that the script can import.

What: follow `import` and `from ... import` statements by name from the script, through files of this project only.
Cost: a few milliseconds, because a regular expression reads the statements; imports inside functions count too.
Trap: importing a package runs its `__init__.py`, so every package on the way to a module belongs to the version.
Left out: the stage machinery and the settings classes, which carry bytes and values and do not make them (the values
of the settings are in the fingerprint themselves). Versions of third-party packages are recorded in the manifest but
do not make a stage stale.
"""

import re
from pathlib import Path

from .digests import bytes_digest, json_digest

SCRIPTS = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline_lib", "dedup", "dataset_formatters")
MACHINERY = ("pipeline_lib.stage", "pipeline_lib.config")
DATA_SUFFIXES = (".jinja", ".json", ".npz", ".txt", ".yaml")

_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<source>\.*[\w.]*)[ \t]+import[ \t]+(?P<names>\([^)]*\)|[^\n#]*)"
    r"|import[ \t]+(?P<plain>[^\n#]*))",
    re.MULTILINE,
)


def _module_file(dotted: str) -> Path | None:
    base = SCRIPTS.joinpath(*dotted.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _absolute(source: str, file: Path) -> str:
    """Resolve a relative module name against the package that `file` belongs to."""
    level = len(source) - len(source.lstrip("."))
    if not level:
        return source
    package = file.relative_to(SCRIPTS).parent.parts
    return ".".join([*package[: len(package) - level + 1], *filter(None, [source.lstrip(".")])])


def imported_files(file: Path) -> set[Path]:
    """Return the files of this project that `file` imports directly, with the packages that contain them."""
    dotted: set[str] = set()
    for match in _IMPORT.finditer(file.read_text("utf-8")):
        if match["plain"] is not None:
            dotted.update(part.split(" as ")[0].strip() for part in match["plain"].split(","))
            continue
        source = _absolute(match["source"], file)
        dotted.add(source)
        names = match["names"].strip("() \t")
        dotted.update(f"{source}.{part.split(' as ')[0].strip()}" for part in names.split(",") if part.strip())
    found: set[Path] = set()
    for name in dotted:
        parts = name.split(".")
        if parts[0] not in PACKAGES or ".".join(parts[:2]) in MACHINERY:
            continue
        for length in range(1, len(parts) + 1):
            if module := _module_file(".".join(parts[:length])):
                found.add(module)
    return found


def code_files(script: Path) -> list[Path]:
    """Return the script, everything of ours it can import, and the data files beside those modules, sorted."""
    reached = {script}
    waiting = [script]
    while waiting:
        for file in imported_files(waiting.pop()) - reached:
            reached.add(file)
            waiting.append(file)
    folders = {file.parent for file in reached - {script}} - {SCRIPTS / PACKAGES[0]}
    data = {file for folder in folders for file in folder.iterdir() if file.suffix in DATA_SUFFIXES}
    return sorted(reached | data)


def code_version(script: Path) -> dict[str, str]:
    """Return {path inside scripts/: digest} for every file that makes the stage run by `script`."""
    base = SCRIPTS if script.is_relative_to(SCRIPTS) else script.parent
    result = {}
    for file in code_files(script):
        home = SCRIPTS if file.is_relative_to(SCRIPTS) else base
        result[file.relative_to(home).as_posix()] = bytes_digest(file.read_bytes())
    return result


def code_digest(version: dict[str, str]) -> str:
    """Return one digest for a code version."""
    return json_digest(version)
