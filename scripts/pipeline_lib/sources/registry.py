"""From the entries of `download.sources` to the sources they stand for."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..stage import UserError
from .base import Source, Workbench

if TYPE_CHECKING:
    from ..config.download import DownloadSettings
    from ..config.sources import SourceSettings

_LOOKS_LIKE_A_PART = re.compile(r"-\d{5}$")


@dataclass(frozen=True)
class OpenedSource:
    """A source with the limit that its entry sets."""

    source: Source
    max_documents: int | None


def open_sources(settings: DownloadSettings, bench: Workbench, workers: int) -> list[OpenedSource]:
    """Every source of the configuration, in its order.

    Nothing is downloaded here. Raises UserError for two sources of one kind with one name, and for whatever a source
    finds wrong with its entry (a missing file, a format that does not fit).
    """
    from .python_docs.source import PythonDocs

    built_in = PythonDocs(settings.python_docs, bench.scratch, workers)
    opened: list[OpenedSource] = []
    for entry in settings.sources:
        found = built_in.sources(entry) if entry.type == "python_docs" else [_file_source(entry, bench)]
        opened += [OpenedSource(source, entry.max_documents) for source in found]
    _check_names([item.source for item in opened])
    return opened


def _file_source(entry: SourceSettings, bench: Workbench) -> Source:
    """The source of an entry of another type; its libraries are imported only when it is used."""
    if entry.type == "local":
        from .local import LocalSource

        return LocalSource(entry)
    if entry.type == "http":
        from .http import HttpSource

        return HttpSource(entry, bench)
    from .hub import HubSource

    return HubSource(entry, bench)


def _check_names(sources: list[Source]) -> None:
    seen: set[tuple[str, str]] = set()
    for source in sources:
        if (source.kind, source.name) in seen:
            raise UserError(
                f"download.sources: two sources of kind {source.kind} are named '{source.name}'; rename one of them"
            )
        if _LOOKS_LIKE_A_PART.search(source.name):
            raise UserError(
                f"download.sources: '{source.name}' ends like the name of a part file (-00000); choose another name"
            )
        seen.add((source.kind, source.name))


def fingerprints(settings: DownloadSettings) -> dict[str, Any]:
    """JSON that says what exactly the sources would read, for the up-to-date check; nothing is read for it."""
    with tempfile.TemporaryDirectory() as nowhere:
        opened = open_sources(settings, Workbench(Path(nowhere)), workers=1)
        return {f"{item.source.kind}/{item.source.name}": item.source.fingerprint() for item in opened}
