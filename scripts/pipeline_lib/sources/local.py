"""Files on this disk as a source: globs, many formats, bounded memory."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import PROJECT_ROOT, resolve_path
from ..config.base import expand_user
from ..config.sources import SourceSettings
from ..data_file_names import is_readable
from ..stage import UserError
from ..stage.digests import content_digest
from .base import Dropped, Record, Workbench
from .file_rows import check_readable, rows_of_file
from .folders import describe_left_out, files_among, files_below
from .growth import BORDERS, unit_borders
from .records import records_of
from .units import Piece, plan_units, unit_names


class LocalSource:
    """The records of the files that `settings.paths` names. Raises UserError for a path that names none.

    files, labels: the files in reading order, and their names in keys and messages.
    """

    def __init__(self, settings: SourceSettings, bench: Workbench | None = None):
        self.settings = settings
        self.name, self.kind = settings.name, settings.kind
        self.format, self.license = settings.record_format, settings.license
        found, left_out = find_files(settings)
        if left_out and bench is not None:
            bench.note(f"source {self.name}: {describe_left_out(left_out)}")
        self.files, self.labels = list(found), list(found.values())
        self._entries: dict[int, dict[str, Any]] = {}
        count = len(self.files)
        self._borders = (
            unit_borders(bench, self.kind, self.name, map(self._entry, range(count)), count) if bench else []
        )
        self._units = plan_units(self.labels, [file.stat().st_size for file in self.files], self._borders)
        self._pieces = dict(zip(unit_names(self._units), self._units, strict=True))

    def fingerprint(self) -> dict[str, Any]:
        """Name, size and content digest of every file."""
        return {"files": [self._entry(number) for number in range(len(self.files))]}

    def provenance(self) -> dict[str, Any]:
        """What was read, for sources.json, and where its units ended before it grew."""
        return self.fingerprint() | ({BORDERS: self._borders} if self._borders else {})

    def units(self) -> list[str]:
        """Shares of large files and groups of small ones."""
        return list(self._pieces)

    def read(self, unit: str) -> Iterator[Record | Dropped]:
        """Records of one unit in file order."""
        for piece in self._pieces[unit]:
            yield from self._read_piece(piece)

    def _read_piece(self, piece: Piece) -> Iterator[Record | Dropped]:
        label = self.labels[piece.file]
        return records_of(rows_of_file(self.files[piece.file], label, self.settings, piece.share), label, self.settings)

    def _entry(self, number: int) -> dict[str, Any]:
        if number not in self._entries:  # a digest costs reading the file
            self._entries[number] = {"path": self.labels[number], **content_digest(self.files[number])}
        return self._entries[number]


def find_files(settings: SourceSettings) -> tuple[dict[Path, str], list[Path]]:
    """{file: its name in keys and messages}, each file once, sorted within each entry of `paths`; and what is left out.

    A folder or a glob takes the files that some reader understands, and leaves out the others; a file named outright
    must be readable. Raises UserError for an entry without files, and for a source whose files are all empty.
    """
    found: dict[Path, str] = {}
    left_out: dict[Path, None] = {}
    for entry in settings.paths:
        readable, others = _files_of_entry(entry, settings)
        left_out.update(dict.fromkeys(others))
        for file in readable:
            try:
                check_readable(file.name, settings)
            except UserError as error:
                raise UserError(f"download.sources '{settings.name}', {file.parent}: {error}") from None
            found.setdefault(file, _label(file, entry))
    if not any(file.stat().st_size for file in found):
        raise UserError(f"source '{settings.name}': every file of {', '.join(settings.paths)} is empty")
    return found, list(left_out)


def _files_of_entry(entry: str, settings: SourceSettings) -> tuple[list[Path], list[Path]]:
    """The files that an entry of `paths` names, and those that lie there and are not read, each in order."""
    path = Path(os.path.normpath(resolve_path(entry)))
    where = f"source '{settings.name}': {path}"
    if path.is_file():
        return [path], []
    if path.is_dir():
        candidates = files_below(path)
    elif glob.has_magic(entry):
        matches = glob.glob(str(expand_user(entry)), root_dir=PROJECT_ROOT, recursive=True)
        candidates = files_among([Path(os.path.normpath(PROJECT_ROOT / match)) for match in matches])
    else:
        raise UserError(f"{where} does not exist; correct `paths` in the configuration")
    readable = [file for file in candidates if is_readable(file.name) and file.is_file()]
    taken = set(readable)
    others = [file for file in candidates if file not in taken]
    if not readable:
        found = f" ({describe_left_out(others)})" if others else ""
        raise UserError(f"{where} names no readable file{found}; see docs/data_sources.md for the formats")
    return readable, others


def _label(file: Path, entry: str) -> str:
    """Relative to the project when the entry is, so that ids do not depend on where the project lies.

    Bytes of a name that are not UTF-8 are spelled \\xNN: no id, shard or message could hold them as they are.
    """
    absolute = expand_user(entry).is_absolute() and not file.is_relative_to(PROJECT_ROOT)
    label = file.as_posix() if absolute else Path(os.path.relpath(file, PROJECT_ROOT)).as_posix()
    return os.fsencode(label).decode("utf-8", "backslashreplace")
