"""`--why`: the fate of one document, asked for by its id, or by the file or URL that it was read from.

Receipts and kept shards say where each document was read; the URL of one that was removed only the shards of stage 01
know, while they are there.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib.config import PROJECT_ROOT
from pipeline_lib.stage import UserError

from .receipts import EXACT, NEAR, PREVIEW_CHARACTERS, RECEIPTS, receipt_schema

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

SHOWN_COPIES = 5
SHOWN_MATCHES = 20
_PLACE = ("id", "origin", "url")


def explain(stage_folder: Path, asked: str, downloaded: Sequence[Path] = ()) -> list[str]:
    """Return the lines that tell one document's fate, or list the documents when several have what is asked for.

    asked: an id; or a file, path or URL, or a part of one of these. Those that are it as a whole (a file of that name)
    go before those that contain it; a path that begins with `/`, `./` or `../` is that file or folder and no other.
    downloaded: the shards of stage 01. Raises UserError when this stage has never seen such a document.
    """
    import pyarrow.parquet as pq

    if not asked.strip():
        raise UserError("--why asks for nothing; give an id, a file, a URL, or a part of one of these")
    receipts = stage_folder / RECEIPTS
    if not receipts.is_file():
        raise UserError(f"{receipts} does not exist; run this script without --why first")
    if not pq.read_schema(receipts).equals(receipt_schema()):
        raise UserError(f"{receipts} was written by another version of this stage; run this script without --why first")
    seen = _Seen(receipts, sorted(stage_folder.glob("part-*.parquet")), downloaded)
    if lines := seen.fate(asked):
        return lines
    for pattern in _patterns(asked):
        count, first = seen.matching(pattern)
        if count == 1:
            return seen.fate(first[0]["id"])
        if count:
            shown = f"; the first {len(first)}" if count > len(first) else ""
            lines = [f"{count:,} documents were read from {asked!r}, or have it in their id or URL{shown}:"]
            return [*lines, *map(_listed, first), "  --why with one of these ids tells more"]
    raise UserError(
        f"no document {asked!r} in {stage_folder}: neither an id nor a part of one, nor of the file or URL that one was"
        " read from; ids are in the `id` column of 01_download/part-*.parquet"
    )


def _patterns(asked: str) -> list[str]:
    """Expressions (RE2) of the places asked for: the whole of one first, then what lies in it or contains it."""
    names = _spellings(asked)
    if not names:
        return []
    names = "|".join(re.escape(name) for name in names)
    line_or_row = r"$|:[0-9]+$|, (record|row|byte) .+$"
    if _is_path(asked):
        return [f"^({names})({line_or_row})", f"^({names})/"]
    return [f"(^|[/#])({names})({line_or_row})", f"({names})"]


def _spellings(asked: str) -> list[str]:
    """The names that stage 01 may have for a file: inside the project they are relative to it.

    A part of a place keeps its last `/`. What has neither letter nor digit, such as `.`, names nothing: every
    place has it.
    """
    absolute = os.path.normpath(Path.cwd() / asked)
    paths = [absolute, os.path.relpath(absolute, PROJECT_ROOT)]
    if _is_path(asked):
        names = paths
    elif "/" in asked and "://" not in asked:
        end = "/" * asked.endswith("/")
        names = [asked, *(path + end for path in (*paths, os.path.normpath(asked)))]
    else:
        names = [asked]
    return [name for name in dict.fromkeys(names) if any(map(str.isalnum, name))]


def _is_path(asked: str) -> bool:
    """Whether it says where a file lies, seen from here or from the root, and is no part of a name."""
    return asked in (".", "..") or asked.startswith(("/", "./", "../"))


class _Seen:
    """The documents that the stage has seen: one row each in the receipts or in a kept shard."""

    def __init__(self, receipts: Path, kept: Sequence[Path], downloaded: Sequence[Path]):
        self._receipts, self._kept, self._downloaded = receipts, kept, downloaded

    def fate(self, identity: str) -> list[str]:
        """The lines about the document with this id, none when there is no such document."""
        if (removed := _row(self._receipts, identity)) is not None:
            known = _first_row(self._downloaded, identity, _PLACE)
            copied = removed["rule"] in (EXACT, NEAR)
            survivor = _first_row(self._kept, removed["survivor_id"], _PLACE) if copied else {}
            return _explain_removal({**removed, "url": known.get("url")}, survivor)
        for part in self._kept:
            if (kept := _row(part, identity)) is not None:
                return _explain_survival(part, kept, *self._copies_of(identity))
        return []

    def _copies_of(self, identity: str) -> tuple[int, list[dict]]:
        """How many documents this one stands for, and the nearest of them."""
        import pyarrow.compute as pc
        import pyarrow.dataset as ds

        replaced = (pc.field("survivor_id") == identity) & pc.field("rule").isin([EXACT, NEAR])
        receipts = ds.dataset(self._receipts, format="parquet")
        copies = receipts.to_table(columns=["id", "jaccard"], filter=replaced)
        order = [("jaccard", "descending"), ("id", "ascending")]
        nearest = copies["id"].take(pc.select_k_unstable(copies, SHOWN_COPIES, order)).combine_chunks()
        rows = receipts.to_table(filter=pc.field("id").isin(nearest)).sort_by(order)
        return copies.num_rows, rows.to_pylist()

    def matching(self, pattern: str) -> tuple[int, list[dict]]:
        """How many documents have a place that the expression (RE2) finds, and the first of them, with their fate."""
        import pyarrow as pa
        import pyarrow.compute as pc

        def found(*columns: str) -> "pc.Expression":
            expression = pc.match_substring_regex(pc.field("id"), pattern)
            for name in columns:
                expression = expression | pc.match_substring_regex(pc.field(name), pattern)
            return expression

        removed = found("origin") | pc.field("id").isin(_ids(self._downloaded, found("url")))
        count, first = _count_and_first([self._receipts], removed, ["id", "origin", "rule"], SHOWN_MATCHES)
        shown = pc.field("id").isin(pa.array([row["id"] for row in first], pa.string()))
        _, places = _count_and_first(self._downloaded, shown, list(_PLACE), len(first))
        known = {row["id"]: row["url"] for row in places}
        first = [{**row, "url": known.get(row["id"])} for row in first]
        room = SHOWN_MATCHES - len(first)
        kept, more = _count_and_first(self._kept, found("origin", "url"), list(_PLACE), room)
        return count + kept, first + more


def _row(file: Path, identity: str, columns: Sequence[str] | None = None) -> dict | None:
    """The row with this id, None when there is none: the ids are read, then one row group, never a file's texts."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        for group in range(parquet.num_row_groups):
            number = pc.index(parquet.read_row_group(group, columns=["id"])["id"], identity).as_py()
            if number >= 0:
                rows = parquet.read_row_group(group, columns=None if columns is None else list(columns))
                return rows.slice(number, 1).to_pylist()[0]
    return None


def _first_row(files: Sequence[Path], identity: str, columns: Sequence[str]) -> dict:
    """These columns of the first row with this id, nothing when no file has it."""
    rows = (_row(file, identity, columns) for file in files)
    return next((row for row in rows if row is not None), {})


def _ids(files: Sequence[Path], wanted: "pc.Expression") -> "pa.Array":
    """The ids of the rows for which the expression holds."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    tables = (ds.dataset(file, format="parquet").to_table(columns=["id"], filter=wanted) for file in files)
    return pa.chunked_array([chunk for table in tables for chunk in table["id"].chunks], pa.string()).combine_chunks()


def _count_and_first(
    files: Sequence[Path], wanted: "pc.Expression", columns: list[str], room: int
) -> tuple[int, list[dict]]:
    """How many rows of the files the expression holds for, and the first `room` of them."""
    import pyarrow.dataset as ds

    count, first = 0, []
    for file in files:
        rows = ds.dataset(file, format="parquet")
        here = rows.count_rows(filter=wanted)
        if here and len(first) < room:
            first += rows.head(room - len(first), columns=columns, filter=wanted).to_pylist()
        count += here
    return count, first


def _listed(row: dict) -> str:
    fate = f"removed by {row['rule']}" if "rule" in row else "stays"
    place = ", ".join(filter(None, (row["origin"], row.get("url"))))
    return f"  {row['id']}  {fate}  {place}".rstrip()


def _explain_removal(row: dict, survivor: dict) -> list[str]:
    lines = [f"{row['id']} (source {row['source']}) was removed by {row['rule']}", *_place(row)]
    if row["rule"] in (EXACT, NEAR):
        lines += [f"  stays instead: {row['survivor_id']}", *(f"  {line}" for line in _place(survivor))]
        lines.append(f"  {_similarity(row)} (removed from Jaccard {row['threshold']:g})")
        return [*lines, f"  removed: {row['preview']!r}", f"  stays:   {row['survivor_preview']!r}"]
    score = "told by datatrove only as passed or not" if row["score"] is None else f"{row['score']:g}"
    lines.append(f"  score {score}, threshold {row['threshold']:g}")
    if row["survivor_id"]:
        lines.append(f"  shares text with {row['survivor_id']}")
    return [*lines, f"  text: {row['preview']!r}"]


def _place(row: dict) -> list[str]:
    """Where the document was read, and its URL when it is known."""
    known = [("read from", row.get("origin")), ("url", row.get("url"))]
    return [f"  {name} {place}" for name, place in known if place]


def _similarity(row: dict) -> str:
    found = f"Jaccard {row['jaccard']:.3f}, containment {row['containment']:.3f}"
    return f"{found}, {row['bands']} MinHash bands agree" if row["bands"] else f"{found}, compared exactly"


def _explain_survival(part: Path, row: dict, copies: int, nearest: list[dict]) -> list[str]:
    lines = [f"{row['id']} (source {row['source']}) stays, in {part.name}", *_place(row)]
    for name, value in row.items():
        if name not in ("id", "source", "text", "url", "origin", "license"):
            lines.append(f"  {name} {value:g}" if isinstance(value, float) else f"  {name} {value}")
    lines.append(f"  text: {row['text'][:PREVIEW_CHARACTERS]!r}")
    for copy in nearest:
        lines.append(f"  stays instead of {copy['id']}: {_similarity(copy)}")
        lines += [*(f"  {line}" for line in _place(copy)), f"    removed: {copy['preview']!r}"]
    if copies > len(nearest):
        lines.append(f"  and of {copies - len(nearest)} more")
    return lines
