"""The original chat records of 01_download, in file order, each with the place it stands in."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.stage import StageInput


@dataclass(frozen=True)
class Original:
    """One line of one source: `value` is the parsed record, or None for a line that is not JSON."""

    source: str
    format: str
    where: str
    value: Any


@dataclass(frozen=True)
class SourceFile:
    """One JSON Lines file of a source; `name` is its path inside 01_download."""

    source: str
    format: str
    name: str
    path: Path


def source_files(download: StageInput, kind: str) -> list[SourceFile]:
    """Return the verified files of all sources of a kind (sft, reasoning, preference, domain), in catalogue order."""
    catalogue = json.loads(download.file("sources.json").read_bytes())["sources"]
    return [
        SourceFile(entry["name"], entry["format"], name, download.file(name))
        for entry in catalogue
        if entry["kind"] == kind
        for name in entry["files"]
    ]


def read_originals(files: list[SourceFile]) -> Iterator[Original]:
    """Yield every non-blank line of the files, in order."""
    for file in files:
        with open(file.path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield Original(file.source, file.format, f"{file.name}:{number}", _parse(line))


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
