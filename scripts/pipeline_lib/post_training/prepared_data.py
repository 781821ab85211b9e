"""Stages 06 and 08: original records in, checked and split Parquet out, every record accounted for.

    original lines -> format -> check on tokens      in batches; each batch is a file in the work folder, so a killed
                                                     run continues after the last whole batch
    all batches -> drop duplicates -> split -> train.parquet, val.parquet, dropped.parquet      one unit at the end

The split (held_out.py) is a seeded hash, so that neither order nor unrelated sources move a record from one side to
the other. dropped.parquet has one receipt per refused record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_formatters import Handler, MalformedRecord, handler_for
from pipeline_lib.stage import Ledger, Stage, Unit, UserError, atomic_path, json_digest

from .chat_tokens import load_chat_tokenizer
from .format_advice import Refusals
from .held_out import held_out_bonds
from .originals import Original, SourceFile, read_originals, source_files

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedTokenizerBase

BATCH = 5_000
"""Records per resumable batch: about two seconds of work."""

FINISHED = "data"


@dataclass(frozen=True)
class Verdict:
    """What a check says of one record: its tokens, the reason for dropping it (None: kept), and where it is cut."""

    tokens: int
    reason: str | None = None
    detail: str = ""
    cut: bool = False


Check = Callable[["PreTrainedTokenizerBase", list[dict[str, Any]], int], list[Verdict]]


@dataclass(frozen=True)
class DataKind:
    """One kind of chat data. kind: of the sources in 01_download, and the name of the flow in the ledger; handlers:
    its formats; check: on tokens; optional: whether a run may have no source of this kind."""

    kind: str
    handlers: dict[str, Handler]
    check: Check
    optional: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of train.parquet after id and source."""
        return ("prompt", "chosen", "rejected") if self.kind == "preference" else ("messages", "tools")

    def bonds(self, record: dict[str, Any]) -> list[Any]:
        """Return what must not be on both sides of the split: the turns before the first answer; of pairs, the answers
        too, for an answer that is praised in one pair and blamed in another says which one is held out."""
        if self.kind == "preference":
            return [record["prompt"], record["chosen"], record["rejected"]]
        first_answer = next(n for n, turn in enumerate(record["messages"]) if turn["role"] == "assistant")
        return [record["messages"][:first_answer]]


def prepare(stage: Stage, kind: DataKind) -> None:
    """Make train.parquet, val.parquet and dropped.parquet of all sources of a kind.

    Raises UserError when there is no source or an unknown format, StageFailure when nothing is left to train on.
    """
    if not stage.finished(FINISHED):
        tokenizer = load_chat_tokenizer(stage.input("03_packed").folder("tokenizer"))
        batches = checked_batches(stage, kind, tokenizer)
        with stage.unit(FINISHED) as unit:
            rows = sorted_out(batches, stage.settings.val_fraction, stage.settings.val_limit, stage.seed)
            refusals = Refusals()
            unit.result = _write_outputs(unit, kind, refusals.watch(rows))
            refusals.check(stage, kind.kind, kind.handlers, unit.result["train"])
    stage.result = stage.unit_result(FINISHED)
    if cut := stage.result.get("cut"):
        stage.note(f"{cut} pairs have an answer that training will cut at {stage.settings.max_length} tokens")


# -- first pass: format and check, batch by batch ------------------------------------------------------------------


def checked_batches(stage: Stage, kind: DataKind, tokenizer: PreTrainedTokenizerBase) -> list[Path]:
    """Return files in the work folder with every original of a kind and its verdict, making those that are missing.

    Raises UserError when there is no source of the kind (unless it is optional) or an unknown format.
    """
    import pyarrow.parquet as parquet

    files, handlers = sources_of(stage, kind)
    batches: list[Path] = []
    originals = read_originals(files)
    with stage.progress(None, f"formatting {kind.kind} records", "records") as bar:
        while chunk := list(islice(originals, BATCH)):
            path = stage.work / "batches" / f"batch-{len(batches):05d}.parquet"
            if not path.exists():
                table = check_batch(chunk, kind, handlers, tokenizer, stage.settings.max_length)
                with atomic_path(path) as temporary:
                    parquet.write_table(table, temporary)
            batches.append(path)
            bar.advance(len(chunk))
            stage.stop_if_interrupted()
    return batches


def sources_of(stage: Stage, kind: DataKind) -> tuple[list[SourceFile], dict[str, Handler]]:
    """Return the files of a kind and the handlers of their formats."""
    files = source_files(stage.input("01_download"), kind.kind)
    if not files and not kind.optional:
        raise UserError(f"download.sources has no source of kind {kind.kind}; add one and run stage 01 again")
    if not files:
        stage.note(f"no source of kind {kind.kind} is configured, so the outputs are empty")
    return files, {file.format: handler_for(file.format, kind.handlers, file.source) for file in files}


def check_batch(
    originals: list[Original],
    kind: DataKind,
    handlers: dict[str, Handler],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> pyarrow.Table:
    """Return one row per original: source, where, digest, bonds, record (JSON), tokens, reason, detail, cut."""
    import pyarrow

    rows, formatted = [], []
    for original in originals:
        row = {"source": original.source, "where": original.where, "tokens": 0, "cut": False}
        row |= {"reason": None, "detail": ""}
        try:
            record = _format(original, handlers[original.format])
            formatted.append((row, record))
            row.update(digest=json_digest(record), record=json.dumps(record))
            row.update(bonds=[json_digest(bond) for bond in kind.bonds(record)])
        except MalformedRecord as refusal:
            row.update(reason=refusal.reason, detail=str(refusal), digest="", bonds=[], record="")
        rows.append(row)
    verdicts = kind.check(tokenizer, [record for _, record in formatted], max_length)
    for (row, _), verdict in zip(formatted, verdicts, strict=True):
        row.update(tokens=verdict.tokens, cut=verdict.cut)
        if verdict.reason is not None:
            row.update(reason=verdict.reason, detail=f"{row['where']}: {verdict.detail}")
    return pyarrow.Table.from_pylist(rows, schema=_batch_schema())


def _format(original: Original, handler: Handler) -> dict[str, Any]:
    if original.value is None:
        raise MalformedRecord("not_json", original.where, "the line is not JSON")
    return handler(original.value, original.where)


def _batch_schema() -> pyarrow.Schema:
    import pyarrow

    text, number = pyarrow.string(), pyarrow.int64()
    return pyarrow.schema(
        [("source", text), ("where", text), ("digest", text), ("bonds", pyarrow.list_(text)), ("record", text)]
        + [("tokens", number), ("reason", text), ("detail", text), ("cut", pyarrow.bool_())]
    )


# -- second pass: duplicates, split, outputs -----------------------------------------------------------------------


def sorted_out(
    batches: list[Path], val_fraction: float, val_limit: int, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("train" | "val" | "dropped", row) for every record in order; a repeated record is dropped as duplicate."""
    kept = [row["bonds"] for row in _rows(batches, ["bonds", "reason"]) if row["reason"] is None]
    held_out = held_out_bonds(kept, val_fraction, val_limit, seed)
    seen: set[str] = set()
    for row in _rows(batches):
        if row["reason"] is None and row["digest"] in seen:
            row |= {"reason": "duplicate", "detail": f"{row['where']}: the same text came before"}
        seen.add(row["digest"])
        side = "dropped" if row["reason"] is not None else "val" if row["bonds"][0] in held_out else "train"
        yield side, row


def account(ledger: Ledger, flow: str, row: dict[str, Any]) -> None:
    """Enter one row of `sorted_out` and keep or drop it."""
    ledger.enter(flow, row["source"], tokens=row["tokens"])
    if row["reason"] is None:
        ledger.keep(flow, row["source"], tokens=row["tokens"])
    else:
        ledger.drop(flow, row["source"], row["reason"], tokens=row["tokens"])


def _rows(batches: list[Path], columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as parquet

    for path in batches:
        yield from parquet.read_table(path, columns=columns).to_pylist()


def _write_outputs(unit: Unit, kind: DataKind, rows: Iterator[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Write the three files and the ledger of the unit; return the counts for cards and reports."""
    counts: dict[str, Any] = {"train": 0, "val": 0, "dropped": 0, "tokens": 0}
    with (
        _RowWriter(unit.path("train.parquet"), _output_schema(kind)) as train,
        _RowWriter(unit.path("val.parquet"), _output_schema(kind)) as val,
        _RowWriter(unit.path("dropped.parquet"), _receipt_schema()) as dropped,
    ):
        for side, row in rows:
            account(unit.ledger, kind.kind, row)
            counts[side] += 1
            if side == "dropped":
                dropped.add({name: row[name] for name in ("source", "where", "reason", "detail")})
                continue
            (val if side == "val" else train).add(_output_row(row, kind))
            counts["tokens"] += row["tokens"]
            if row["cut"]:
                counts["cut"] = counts.get("cut", 0) + 1
    return counts


def _output_row(row: dict[str, Any], kind: DataKind) -> dict[str, Any]:
    record = json.loads(row["record"])
    identity = f"{row['source']}:{row['digest'].removeprefix('xxh3:')}"
    return {"id": identity, "source": row["source"], **{c: record[c] for c in kind.columns}}


def _output_schema(kind: DataKind) -> pyarrow.Schema:
    """Return the columns of train.parquet; what is JSON has Parquet's JSON type, which `datasets` reads as objects."""
    import pyarrow

    text = pyarrow.string()
    turn = [("role", text), ("content", text)]
    if kind.kind != "preference":
        function = pyarrow.struct([("name", text), ("arguments", pyarrow.json_())])
        turn.append(("tool_calls", pyarrow.list_(pyarrow.struct([("type", text), ("function", function)]))))
    turns = pyarrow.list_(pyarrow.struct(turn))
    types = {"tools": pyarrow.json_()}
    fields = [("id", text), ("source", text), *((name, types.get(name, turns)) for name in kind.columns)]
    return pyarrow.schema(fields)


def _receipt_schema() -> pyarrow.Schema:
    import pyarrow

    return pyarrow.schema([(name, pyarrow.string()) for name in ("source", "where", "reason", "detail")])


def _stored(schema: pyarrow.Schema) -> pyarrow.Schema:
    """Return a schema with text in the place of JSON, which is how its values are given."""
    import pyarrow

    def plain(kind: pyarrow.DataType) -> pyarrow.DataType:
        if isinstance(kind, pyarrow.BaseExtensionType):
            return kind.storage_type
        if pyarrow.types.is_list(kind):
            return pyarrow.list_(plain(kind.value_type))
        if pyarrow.types.is_struct(kind):
            return pyarrow.struct([(each.name, plain(each.type)) for each in kind])
        return kind

    return pyarrow.schema([(each.name, plain(each.type)) for each in schema])


class _RowWriter:
    """Rows to a zstd Parquet file in groups of a fixed size, so that the bytes do not depend on how rows arrive."""

    GROUP = 10_000

    def __init__(self, path: Path, schema: pyarrow.Schema):
        import pyarrow.parquet as parquet

        self._schema, self._rows = schema, []
        self._writer = parquet.ParquetWriter(path, schema, compression="zstd")

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == self.GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        rows = pyarrow.Table.from_pylist(self._rows, schema=_stored(self._schema))
        self._writer.write_table(rows.cast(self._schema))
        self._rows = []

    def __enter__(self) -> _RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._rows:
            self._flush()
        self._writer.close()
