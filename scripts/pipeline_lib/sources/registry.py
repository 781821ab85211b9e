"""From the entries of `download.sources` to the sources they stand for."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
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
    opened = list(_opened(settings, settings.entries(), bench, workers))
    _check_names([item.source for item in opened])
    return opened


def open_source(settings: DownloadSettings, bench: Workbench, kind: str, name: str) -> Source:
    """One of the sources that `open_sources` opens, to be read by this process alone."""
    entries = [e for e in settings.entries() if e.kind == kind and (e.type == "python_docs" or e.name == name)]
    return next(item.source for item in _opened(settings, entries, bench, 1) if item.source.name == name)


def _opened(
    settings: DownloadSettings, entries: Sequence[SourceSettings], bench: Workbench, workers: int
) -> Iterator[OpenedSource]:
    from .python_docs.source import PythonDocs

    built_in = PythonDocs(settings.python_docs, bench.scratch, workers)
    for entry in entries:
        found = built_in.sources(entry) if entry.type == "python_docs" else [_file_source(entry, bench)]
        for source in found:
            yield OpenedSource(source, entry.max_documents)


NEEDED_BY = {
    "text": "02 to 11",
    "sft": "06_prepare_sft_data, 07 and what follows",
    "preference": "08_prepare_dpo_data, 09 and what follows",
    "domain": "10_lora_finetune and what follows",
    "eval": "11 and 12",
}
"""The stages that refuse to run without a source of a kind; kind reasoning is optional."""


def what_is_missing(settings: DownloadSettings) -> list[str]:
    """Return one line per kind that the list of sources leaves out: what fills it, or which stages will refuse."""
    if settings.fill_kinds:
        return [f"kind {entry.kind} is filled by the built-in {entry.name}" for entry in settings.missing()]
    return [
        f"there is no source of kind {entry.kind}, which scripts {NEEDED_BY[entry.kind]} need;"
        " add one, or set download.fill_kinds"
        for entry in settings.missing()
        if entry.kind in NEEDED_BY
    ]


def what_is_not_installed(settings: DownloadSettings) -> list[str]:
    """Return a line with the packages that python_docs should read and that are not there; none if all are."""
    if not any(entry.type == "python_docs" for entry in settings.entries()):
        return []
    from .python_docs.discovery import not_installed

    names = not_installed(tuple(settings.python_docs.distributions))
    return [f"asked for by requirements.txt but not installed, so not read: {', '.join(names)}"] if names else []


def _file_source(entry: SourceSettings, bench: Workbench) -> Source:
    """The source of an entry of another type; its libraries are imported only when it is used."""
    if entry.type == "local":
        from .local import LocalSource

        return LocalSource(entry, bench)
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
