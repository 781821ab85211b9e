"""The record of an index, index.json: its parameters, its sources with the digests of their files, and what is pending.

It carries its format and a digest of itself, and is believed only with both: an index whose record cannot be trusted is
refused, and so is a folder in which another program keeps an index.json.
"""

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline_lib.stage import UserError, file_digest, json_digest, write_json_atomic

from .parameters import PARTS, DedupParameters

FORMAT = 3
RECORD = "index.json"


@dataclass
class IndexRecord:
    """What index.json says beside its format and digest. Sources are JSON objects, in the order of their addition."""

    parameters: dict[str, Any]
    sources: list[dict[str, Any]] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)
    """Sources that an interrupted undo must still decide again."""

    def write(self, folder: Path) -> None:
        """Write the record, whole or not at all."""
        content = {"format": FORMAT, **self.__dict__}
        write_json_atomic(folder / RECORD, {**content, "digest": json_digest(content)})


def read_record(folder: Path, parameters: DedupParameters) -> IndexRecord:
    """Return the record of an index that was made with these parameters.

    Raises UserError for a folder without a record, for another program's index, another format, damage and other
    parameters.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"dedup: there is no {path}; give the folder of an index") from None
    except ValueError:
        raise _damaged(path) from None
    if not isinstance(record, dict) or not isinstance(record.get("format"), int) or "sources" not in record:
        raise UserError(f"dedup: {folder} is no dedup index, its {RECORD} is something else; give another folder")
    if record["format"] != FORMAT:
        raise UserError(
            f"dedup: {path} has the format {record['format']!r}, and this program reads {FORMAT}; make a new index, in"
            " another folder, of the same sources"
        )
    if record.pop("digest", None) != json_digest(record):
        raise _damaged(path)
    _refuse_other_parameters(folder, record["parameters"], parameters.decisive())
    return IndexRecord(record["parameters"], record["sources"], record["pending"])


def _damaged(path: Path) -> UserError:
    return UserError(
        f"dedup: {path} is damaged; put back a copy of it, or make a new index, in another folder, of the same sources"
    )


def _refuse_other_parameters(folder: Path, stored: dict, wanted: dict) -> None:
    stored, wanted = _as_typed(stored), _as_typed(wanted)
    for name, value in wanted.items():
        if stored.get(name) != value:
            raise UserError(
                f"dedup: {folder} was made with {name} = {stored.get(name)!r}, not {value!r}; use the same parameters"
                f" ({_flag(stored) or 'the defaults'}), or make a new index"
            )


def _as_typed(decisive: dict[str, Any]) -> dict[str, Any]:
    """Return parameters as a user gives them: thresholds as fractions."""
    return {
        name.removesuffix("_parts"): value / PARTS if name.endswith("_parts") else value
        for name, value in decisive.items()
    }


def _flag(typed: dict[str, Any]) -> str:
    """Return the flag that gives these parameters on the command line, "" for the defaults."""
    defaults = _as_typed(DedupParameters().decisive())
    differing = {name: value for name, value in typed.items() if value != defaults.get(name)}
    return f"--parameters {shlex.quote(json.dumps(differing))}" if differing else ""


def check_files(folder: Path, source: dict, parameters: dict[str, Any]) -> None:
    """Raise UserError when a file of the index about a source is not as it was written (reads all of them).

    parameters: those of the record, for the command that mends it.
    """
    flag = _flag(_as_typed(parameters))
    for name, digest in source["files"].items():
        path = folder / name
        if not path.is_file() or file_digest(path) != digest:
            raise UserError(
                f"dedup: {path} of source {source['name']!r} is missing or damaged; rebuild with: python"
                f" scripts/dedup_files.py index forget {folder} {source['name']}{' ' * bool(flag)}{flag}, then add that"
                " source again"
            )


def with_digest(made: dict[str, Any]) -> dict[str, Any]:
    """Return what is recorded of an input file that was sketched, with the digest of its content (reads all of it).

    Raises UserError when its size or time of modification has changed since it was sketched, or changes while it is
    read: the digest could be of another content than the sketches.
    """
    file, status = Path(made["file"]), (made["bytes"], made["modified_ns"])
    if _status(file) == status:
        digest = file_digest(file)
        if _status(file) == status:
            return {**made, "digest": digest}
    raise UserError(f"dedup: {file} changed while it was being added; add it again when nothing writes to it")


def check_inputs(source: dict) -> None:
    """Raise UserError when an input file of a source is gone, or not the one that was added.

    One that differs only in its time of modification, as a copy does, is read: its digest decides.
    """
    for made in source["inputs"]:
        if not _is_as_added(made):
            raise UserError(
                f"dedup: {made['file']} is gone or not as it was when it was added as {source['name']!r}; put it back,"
                " or undo that source (of several such the last one first) and add it again"
            )


def _is_as_added(made: dict[str, Any]) -> bool:
    file = Path(made["file"])
    status = _status(file)
    if status is None or status[0] != made["bytes"]:
        return False
    return status[1] == made["modified_ns"] or file_digest(file) == made["digest"]


def _status(file: Path) -> tuple[int, int] | None:
    """Return (bytes, time of modification in nanoseconds) of a file, None when it is gone."""
    if not file.is_file():
        return None
    status = file.stat()
    return status.st_size, status.st_mtime_ns
