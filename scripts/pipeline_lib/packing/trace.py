"""From a packed sequence back to its documents: which text of which file, row and licence, with every score it has."""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.stage import UserError
from pipeline_lib.stage.manifest import MANIFEST, Manifest

from .reader import PackedCache, Piece
from .text_encoder import TextEncoder

if TYPE_CHECKING:
    from rich.text import Text

    from pipeline_lib.stage import ActionContext

_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")
_SHOWN_CHARACTERS = 1200
_LONG_COLUMNS = ("text", "id", "source")


@dataclass(frozen=True)
class Request:
    """A sequence to trace."""

    context: int
    split: str
    number: int


def read_request(place: str, cache: PackedCache) -> Request:
    """Understand `SEQUENCE`, `CONTEXT:SEQUENCE` and `CONTEXT:SPLIT:SEQUENCE`. Raises UserError."""
    parts = place.split(":")
    try:
        number = _number(parts[-1])
        context = int(parts[0]) if len(parts) > 1 else cache.contexts[0]
        split = parts[1] if len(parts) == 3 else "train"
        if len(parts) > 3 or split not in ("train", "val"):
            raise ValueError
    except ValueError:
        raise UserError(f"--trace {place}: give SEQUENCE, CONTEXT:SEQUENCE or CONTEXT:train|val:SEQUENCE") from None
    if not 0 <= number < cache.sequences(context, split):
        last = cache.sequences(context, split) - 1
        raise UserError(f"--trace {place}: the plan for context {context} has the {split} sequences 0 to {last:,}")
    return Request(context, split, number)


def _number(written: str) -> int:
    """A count as people and our own cards write it: 11419 or 11,419."""
    return int(written.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", written) else written)


def print_sequence(context: "ActionContext", place: str) -> None:
    """Print one sequence of the cache of a run."""
    cache = PackedCache(context.stage_folder, command=context.command)
    print_sequences(cache, [read_request(place, cache)])


def print_sequences(cache: PackedCache, requests: Iterable[Request]) -> None:
    """Print sequences, each span in a colour of its own, with what the shards beside the cache say of it.

    Raises UserError when the tokenizer of the cache is gone: training does without, spelling does not.
    """
    from rich.console import Console
    from rich.text import Text

    tokenizer = cache.path / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        raise UserError(f"{tokenizer} has no tokenizer.json; make it again with: {cache.command} --mode repair")
    console = Console(highlight=False, soft_wrap=True)
    encoder = TextEncoder(tokenizer)
    stage_folder = cache.path.parent if cache.unfinished else cache.path
    shards = _Shards(stage_folder.parent / "02_clean")
    for request in requests:
        pieces = cache.pieces(request.number, request.context, request.split)
        used = sum(piece.length for piece in pieces)
        console.print(
            f"{request.split} sequence {request.number:,} of context {request.context}: {len(pieces)} documents,"
            f" {used} tokens, {request.context - used} padding",
            style="bold",
        )
        ids = cache.sequence(request.number, request.context, request.split)["input_ids"]
        for place, piece in enumerate(pieces):
            colour = _COLOURS[place % len(_COLOURS)]
            console.print(Text("\n".join(_origin(piece, shards)), style="dim"))
            spelled = encoder.decode(ids[piece.first : piece.first + piece.length])
            console.print(_shown(spelled.decode("utf-8", "replace"), colour))
    sys.stdout.flush()


def _origin(piece: Piece, shards: "_Shards") -> list[str]:
    places = f"places {piece.first} to {piece.first + piece.length - 1}, tokens {piece.offset} to"
    lines = [
        f"-- {places} {piece.offset + piece.length - 1} of document {piece.id}",
        f"   source {piece.source}; {piece.shard} row {piece.row}; chunk {piece.chunk}, document {piece.document}",
    ]
    row = shards.row(piece)
    if row is None:
        gone = f"{piece.shard} as it was when it was packed is not below {shards.folder}: no licence, no scores"
        return [*lines, f"   {gone}"]
    known = {name: value for name, value in row.items() if name not in _LONG_COLUMNS and value not in (None, "")}
    first = [f"{name} {known.pop(name)}" for name in ("origin", "url", "license") if name in known]
    scores = [f"{name} {_spell(value)}" for name, value in known.items()]
    return [*lines, *([f"   {'; '.join(first)}"] if first else []), *([f"   {'; '.join(scores)}"] if scores else [])]


def _spell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shown(text: str, colour: str) -> "Text":
    from rich.text import Text

    if len(text) > _SHOWN_CHARACTERS:
        half = _SHOWN_CHARACTERS // 2
        text = f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
    return Text(text, style=colour)


class _Shards:
    """Rows of the cleaned shards, found by the digest that the shard had when it was packed."""

    def __init__(self, folder: Path):
        self.folder = folder
        manifest = Manifest.read(folder / MANIFEST)
        files = manifest.files.items() if manifest else ()
        self._names = {entry.digest: name for name, entry in files}

    def row(self, piece: Piece) -> dict[str, Any] | None:
        """Return all columns of a document, or None when its shard is gone or is another one now."""
        name = self._names.get(piece.digest)
        if name is None or not (self.folder / name).is_file():
            return None
        try:
            return self._read(self.folder / name, piece)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.folder / name} cannot be read: {error}; run stage 02 again") from error

    def _read(self, path: Path, piece: Piece) -> dict[str, Any] | None:
        with pq.ParquetFile(path) as file:
            first = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if piece.row < first + rows:
                    columns = [column for column in file.schema_arrow.names if column != "text"]
                    row = file.read_row_group(group, columns=columns).slice(piece.row - first, 1).to_pylist()[0]
                    return row if row["id"] == piece.id else None
                first += rows
        return None
