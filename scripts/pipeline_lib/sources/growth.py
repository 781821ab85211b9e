"""Where the units of a source that grows end, so that files added behind the others change no shard that is there.

A unit takes small files until it is full. A file behind the last one would join the last unit and change its shard, and
stage 03 would pack anew all that was packed with it. So a unit ends where the list of files ended when the source was
published: a border, counted in files. A border stays one while the files in front of it are the same, whatever comes
behind them; sources.json says where the borders are, so that a source can grow as often as it likes.

Only text has borders: stages 02 and 03 go on shard by shard, and the files of the other kinds are read whole.

The units must not change while work is unfinished, whatever becomes of the published list, and tasks on other machines
must see the same ones: what was found out when the work began lies in the scratch folder. Without a finished unit it
is nothing, so it goes with the work of a source that was refused at once.
"""

import json
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

from ..stage import Stage, file_digest, write_json_atomic
from ..stage.manifest import MANIFEST, Manifest
from ..stage.workspace import BEGINNING
from .base import CATALOG, Workbench

BORDERS = "borders"


def published_provenance(stage: Stage) -> dict[str, dict[str, Any]]:
    """Return what the last publication of the stage says of each source, by kind/name; empty when there was none.

    Without a sources.json that is as it was written the units are those of a first run, and the card says so.
    """
    path, manifest = stage.folder / CATALOG, Manifest.read(stage.folder / MANIFEST)
    if not path.exists() and manifest is None:
        return {}
    if manifest is None or not path.is_file() or file_digest(path) != manifest.files[CATALOG].digest:
        stage.note(f"{path} or its manifest is missing or damaged: sources that have grown may get other shards")
        return {}
    entries = json.loads(path.read_bytes())["sources"]
    return {f"{entry['kind']}/{entry['name']}": entry["provenance"] for entry in entries}


def unit_borders(bench: Workbench, kind: str, name: str, files: Iterable[dict[str, Any]], count: int) -> list[int]:
    """Return before which files of the source, counted from 0, a unit must end: none in other kinds than text.

    files: as `provenance` describes each of them, and no more of them are asked for than were published; count: how
    many there are.
    """
    if kind != "text":
        return []
    record = bench.scratch / f"{kind}-{name}" / BEGINNING
    if record.exists():
        return json.loads(record.read_bytes())[BORDERS]
    published = bench.published.get(f"{kind}/{name}", {})
    known = published.get("files", [])
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(known, files, strict=False)))
    borders = [border for border in published.get(BORDERS, []) if border <= same and border < count]
    if 0 < same == len(known) < count:
        borders.append(same)
    if borders:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(record, {BORDERS: borders})
    return borders
