"""Files behind http(s) addresses, each proved by its SHA-256."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from ..config.sources import SourceSettings
from .base import Dropped, Record, Workbench
from .downloads import Downloads
from .file_rows import check_readable, rows_of_file
from .records import records_of
from .transfer import Expected, Transfer


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


def label_of(url: str) -> str:
    """The address without query and fragment (a signature or token changes, the file does not)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{unquote(parts.path)}"
