"""Hugging Face hub data sets: pinned to a commit, read in shares, resumable.

The first read of a run resolves the revision to a commit and writes the commit and its file list beside the
downloads; a resumed run follows that list even if the branch has moved on. A large Parquet file is read in place:
each unit asks for the byte ranges of its own row groups, so the first documents arrive in seconds and no disk is
needed. Every other file is downloaded whole, checked against the hub's digest, read, and deleted.
"""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

from ..config.sources import SourceSettings
from ..data_file_names import split_suffix
from ..stage import write_json_atomic
from .base import Dropped, Record, Workbench
from .downloads import Downloads
from .file_rows import check_readable, parquet_fields, rows_of_file, shares_of
from .growth import BORDERS, unit_borders
from .hub_listing import HubFile, Listing, endpoint, list_data_files, refuse_offline
from .records import records_of
from .rows import Row
from .table_rows import read_parquet
from .transfer import RangedFile, Transfer
from .units import Piece, plan_units, unit_names


class HubSource:
    """The records of a hub data set's split or files."""

    def __init__(self, settings: SourceSettings, bench: Workbench):
        self.settings = settings
        self.name, self.kind = settings.name, settings.kind
        self.format, self.license = settings.record_format, settings.license
        self._bench = bench
        self._listing: Listing | None = None
        self._transfer: Transfer | None = None
        self._planned: dict[str, list[Piece]] | None = None
        self._ranged: dict[str, bool] = {}

    def fingerprint(self) -> dict[str, Any]:
        """What was asked for. The commit is not part of it: a finished run stays finished when a branch moves on."""
        fields = ("repo", "config_name", "split", "revision", "files")
        return {field: getattr(self.settings, field) for field in fields}

    def provenance(self) -> dict[str, Any]:
        """Repository, commit, the data files with their digests, and the borders of their units, for sources.json."""
        borders = self._borders()
        return {"repo": self.settings.repo, **self._pinned().to_json(), **({BORDERS: borders} if borders else {})}

    def units(self) -> list[str]:
        """Shares of large files and groups of small ones; the first call asks the hub for the file list."""
        return list(self._pieces())

    def read(self, unit: str) -> Iterator[Record | Dropped]:
        """Records of one unit; downloads of files before it are deleted."""
        pieces = self._pieces()[unit]
        self._downloads().forget_before(pieces[0].file)
        for piece in pieces:
            file = self._pinned().files[piece.file]
            yield from records_of(self._rows(piece, file), file.path, self.settings)

    def _rows(self, piece: Piece, file: HubFile) -> Iterator[Row | Dropped]:
        url = f"{endpoint()}/datasets/{self.settings.repo}/resolve/{self._pinned().commit}/{quote(file.path)}"
        large = split_suffix(file.path)[0] == "parquet" and shares_of(file.path, file.size) > 1
        if large and self._in_place(url, file):
            remote = RangedFile(self._connection(), url, file.size)
            return read_parquet(remote, file.path, piece.share, parquet_fields(self.settings))
        path = self._downloads().get(piece.file, url, file.path, file.expected)
        return rows_of_file(path, file.path, self.settings, piece.share)

    def _in_place(self, url: str, file: HubFile) -> bool:
        if url not in self._ranged:
            self._ranged[url] = self._connection().serves_ranges(url, file.size)
            if not self._ranged[url]:
                self._bench.say(f"  {url}: the server ignores Range requests, so the whole file is downloaded")
        return self._ranged[url]

    def _pinned(self) -> Listing:
        if self._listing is None:
            record = self._downloads().folder / "listing.json"
            if record.exists():
                self._listing = Listing.from_json(json.loads(record.read_bytes()))
            else:
                patience = self._connection().patience(f"data set {self.settings.repo}")
                self._listing = list_data_files(self.settings, patience)
                write_json_atomic(record, self._listing.to_json())
            for file in self._listing.files:
                check_readable(file.path, self.settings)
        return self._listing

    def _pieces(self) -> dict[str, list[Piece]]:
        if self._planned is None:
            files = self._pinned().files
            units = plan_units([file.path for file in files], [file.size for file in files], self._borders())
            self._planned = dict(zip(unit_names(units), units, strict=True))
        return self._planned

    def _borders(self) -> list[int]:
        files = self._pinned().to_json()["files"]
        return unit_borders(self._bench, self.kind, self.name, files, len(files))

    def _downloads(self) -> Downloads:
        return Downloads(self.settings, self._bench, self._connection())

    def _connection(self) -> Transfer:
        if self._transfer is None:
            from huggingface_hub.utils import build_hf_headers

            permit = partial(refuse_offline, self.settings)
            self._transfer = Transfer(self.settings, self._bench, build_hf_headers(), permit)
        return self._transfer
