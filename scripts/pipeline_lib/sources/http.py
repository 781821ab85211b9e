"""Files behind http(s) addresses, each proved by its SHA-256."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..config.sources import SourceSettings
from ..stage import StageFailure, UserError
from ..stage.progress import size
from .base import Dropped, Record, Workbench
from .downloads import Downloads
from .file_rows import check_readable, rows_of_file
from .patience import TryAgain
from .records import records_of
from .transfer import Expected, Transfer

ANSWER_SECONDS = 5.0
"""How long `--plan` waits for an answer, and after how long it asks no more addresses."""


class HttpSource:
    """The records of the files in `settings.urls`; a unit is a file. Raises UserError for an unreadable suffix."""

    def __init__(self, settings: SourceSettings, bench: Workbench):
        self.settings = settings
        self.name, self.kind = settings.name, settings.kind
        self.format, self.license = settings.record_format, settings.license
        self._downloads = Downloads(settings, bench, Transfer(settings, bench))
        self._labels = [label_of(file.url) for file in settings.urls]
        for label in self._labels:
            check_readable(label, settings)

    def fingerprint(self) -> dict[str, Any]:
        """Addresses and digests: what they name cannot change unnoticed, so nothing is asked of the network."""
        return {"files": [{"url": file.url, "sha256": file.sha256.lower()} for file in self.settings.urls]}

    def provenance(self) -> dict[str, Any]:
        """What was read, for sources.json."""
        return self.fingerprint()

    def units(self) -> list[str]:
        """One unit per file."""
        return [f"{number:05d}-{label.rpartition('/')[2]}" for number, label in enumerate(self._labels)]

    def read(self, unit: str) -> Iterator[Record | Dropped]:
        """Records of one file, downloaded and verified first; downloads of earlier files are deleted."""
        number = int(unit.partition("-")[0])
        file, label = self.settings.urls[number], self._labels[number]
        self._downloads.forget_before(number)
        path = self._downloads.get(number, file.url, label, Expected("sha256", file.sha256))
        yield from records_of(rows_of_file(path, label, self.settings), label, self.settings)


def sizes_of(settings: SourceSettings) -> str:
    """Say how many files the addresses name and how large they are, as far as the servers tell within seconds.

    Each is asked once, for its first byte. The first failure ends the questions: the next address is likely to cost as
    long a wait.
    """
    count = f"{len(settings.urls):,} file{'s' * (len(settings.urls) != 1)}"
    quick = settings.model_copy(update={"timeout_seconds": min(ANSWER_SECONDS, settings.timeout_seconds)})
    transfer = Transfer(quick, Workbench(Path()))
    total = known = 0
    end = time.monotonic() + ANSWER_SECONDS
    reason = ""
    for file in settings.urls:
        if time.monotonic() > end:
            reason = f"{ANSWER_SECONDS:.0f} s were over"
            break
        try:
            told = transfer.size_of(file.url)
        except (TryAgain, UserError, StageFailure) as error:
            reason = str(error) if file.url in str(error) else f"{file.url}: {error}"
            break
        if told is not None:
            known, total = known + 1, total + told
    if known == len(settings.urls):
        return f"{count}, {size(total)} to download"
    told = f"{size(total)} in {known:,} of them" if known else "their sizes are unknown"
    return f"{count}, {told} ({reason or 'the servers tell no more'})"


def label_of(url: str) -> str:
    """The address without query and fragment (a signature or token changes, the file does not)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{unquote(parts.path)}"
