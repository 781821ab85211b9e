"""The records a task is asked about: read, numbered, and cut down to what the configuration pays for.

A limited task takes the items whose hash of (seed, id) is smallest: a random sample that does not depend on the order
of the file, that is the same for every model (so that models can be compared item by item), and that only grows when
the limit grows. Taking the first n would test the modules whose names begin with "a".
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.stage import UserError

ID = "id"


@dataclass(frozen=True)
class Items:
    """The chosen records of a task, each with a unique text under "id", and how many there were to choose from."""

    records: list[dict[str, Any]]
    available: int


def read_items(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Read JSON-lines files; a record without an id gets its row number.

    Raises UserError (file:line) for a line that is not a JSON object, files without records, or an id given twice.
    """
    records: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    for path, number, record in _numbered(paths):
        where = f"{path}:{number}"
        if record[ID] in seen:
            raise UserError(f"{where}: the id {record[ID]!r} was used at {seen[record[ID]]}; ids must be unique")
        seen[record[ID]] = where
        records.append(record)
    if not records:
        raise UserError(
            f"{paths[0]} has no records; an evaluation of nothing proves nothing; make it again with stage 01"
        )
    return records


def item_places(paths: Sequence[Path]) -> dict[str, str]:
    """Return {id: `eval/<file>:<line>`}, the name that stage 02 has for a record."""
    return {record[ID]: f"eval/{path.name}:{number}" for path, number, record in _numbered(paths)}


def _numbered(paths: Sequence[Path]) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Yield (file, line, record with an id)."""
    count = 0
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                record = _parse(line, f"{path}:{number}")
                count += 1
                yield path, number, {**record, ID: str(record.get(ID, f"row-{count}"))}


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); make it again with stage 01") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object; make it again with stage 01")
    return record


def choose_items(records: list[dict[str, Any]], limit: int | None, seed: int) -> Items:
    """Return at most `limit` records, a seeded sample in the order of the file."""
    if limit is None or limit >= len(records):
        return Items(records, len(records))
    import xxhash

    def rank(position: int) -> tuple[int, int]:
        return xxhash.xxh3_64_intdigest(f"{seed}\0{records[position][ID]}".encode()), position

    chosen = sorted(sorted(range(len(records)), key=rank)[:limit])
    return Items([records[position] for position in chosen], len(records))


def shorten(text: str, limit: int | None) -> str:
    """Return the longest beginning of `text` of at most `limit` UTF-8 bytes that ends between characters."""
    if limit is None or len(text) <= limit // 4:
        return text
    return text.encode("utf-8", "surrogatepass")[:limit].decode("utf-8", "ignore")
