"""The list of finished units of an unfinished stage, one checksummed line each, appended and fsynced.

A line is `<xxh3-64 of the JSON> <JSON>`. A kill can only tear the last line; reading stops at the first line whose
checksum fails and cuts the file there, so a torn record means one unit is done again and never that one is invented.
"""

import json
import os
from pathlib import Path
from typing import Any

import xxhash

from .atomic import fsync_folder
from .digests import canonical_json


def _encode(record: dict[str, Any]) -> bytes:
    body = canonical_json(record)
    return xxhash.xxh3_64_hexdigest(body).encode() + b" " + body + b"\n"


def _decode(line: bytes) -> dict[str, Any] | None:
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != xxhash.xxh3_64_hexdigest(body).encode():
        return None
    return json.loads(body)


class Journal:
    """An append-only file of JSON records; `records` holds those that were read back whole."""

    def __init__(self, path: Path):
        """Open `path`, creating it if absent and cutting off a torn end."""
        self.path = path
        self.records: list[dict[str, Any]] = []
        self.torn_bytes = 0
        data = path.read_bytes() if path.exists() else b""
        good = 0
        for line in data.splitlines(keepends=True):
            record = _decode(line)
            if record is None:
                break
            self.records.append(record)
            good += len(line)
        self.torn_bytes = len(data) - good
        self._stream = open(path, "ab")  # noqa: SIM115 held until close()
        if self.torn_bytes:
            self._stream.truncate(good)
        fsync_folder(path.parent)

    def append(self, record: dict[str, Any]) -> None:
        """Add one record; it is durable when this returns. Raises OSError."""
        self._stream.write(_encode(record))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.records.append(record)

    def close(self) -> None:
        """Release the file."""
        self._stream.close()
