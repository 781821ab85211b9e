"""Read the packed cache: batches for training with exact resume, single sequences, whole documents.

    cache = PackedCache("runs/demo/03_packed")
    for batch in cache.batches(context=512, batch_size=32, seed=42):
        batch["input_ids"]        # torch.int64 [32, 512]
        state = batch["state"]    # JSON; batches(..., state=state) continues with the next batch

What a batch holds, all int64 [batch, context], tensors of torch or, with `arrays="numpy"`, arrays (then nothing here
imports torch):
    input_ids     token ids; unused places hold the pad id
    labels        the same ids at the same places, the convention of Hugging Face models, which shift them inside: -100
                  on padding and on the first token of every piece, because what stands before it is another document
    position_ids  0, 1, 2 ... from the start of every piece, and again over the padding
    segment_ids   1, 2, 3 ... per piece, 0 on padding: attention must stay among equal numbers
and `sequences`, int64 [batch], the numbers of the sequences for `sequence` and `pieces`.

Resume is exact because the state says only how many sequences of the global order all ranks together have read, in
which epoch, and of which data. Rank r of w takes rows r*b to (r+1)*b of every global batch of w*b, so the ranks
together read what one rank with the batch size w*b reads, and a run may continue on another number of ranks, with
another batch size, and on a cache that has grown.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline_lib.stage import UserError, json_digest

from .cache_index import INDEX, read_index, tokenizer_digests
from .chunk_format import COMMAND, ChunkDamaged, ChunkFile
from .plan_table import Plan, SplitTable
from .prefetch import prefetched
from .reading_order import Position, ReadingOrder
from .sequence_arrays import ARRAYS, DecodedChunks, as_tensors, fill_row

_OPEN_FILES = 256
_PREFETCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Document:
    """One document of the cache; tokens: uint16 or uint32 [n], the separator at the end included."""

    id: str
    source: str
    tokens: np.ndarray


@dataclass(frozen=True)
class Piece:
    """A span of a packed sequence and where it comes from.

    first, length: places in the sequence; id, source: of the document; offset: which token of the document comes first;
    chunk, document: where the cache has it; shard, digest, row: where the cleaned text has it.
    """

    first: int
    length: int
    id: str
    source: str
    offset: int
    chunk: int
    document: int
    shard: str
    digest: str
    row: int


class PackedCache:
    """A folder made by stage 03, opened for reading; safe to use from several threads."""

    def __init__(self, path: Path | str, window_chunks: int = 8, command: str = COMMAND, index: str = INDEX):
        """Open the cache; `window_chunks` decoded chunks are held and shuffled together. Raises UserError.

        command: what makes this cache, for messages; by default that of the default run; index: name of its index,
        another one in the work folder of a cache that is still being made (so_far.py).
        A tokenizer folder in the cache that is not the one its chunks were made with is refused.
        """
        self.path = Path(path)
        self.index: dict[str, Any] = read_index(self.path, command, index)
        self.window_chunks, self.command = window_chunks, command
        tokenizer = self.path / "tokenizer"
        if tokenizer.is_dir() and tokenizer_digests(tokenizer) != self.index["tokenizer"]:
            raise UserError(
                f"{tokenizer} is not the tokenizer that the chunks beside it were made with; restore it with: {command}"
                " --mode repair"
            )
        self._plans: dict[int, Plan] = {}
        self._files: OrderedDict[int, ChunkFile] = OrderedDict()
        self._lock = threading.RLock()

    # -- what is in it ---------------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> bool:
        """Whether more parts will follow those that this object knows."""
        return "unfinished" in self.index

    @property
    def whole_text_bytes(self) -> int:
        """Bytes of all the text that the cache holds once it is finished."""
        return self.index["unfinished"]["text_bytes"] if self.unfinished else self.index["text_bytes"]

    def estimated_tokens(self) -> int:
        """Return the tokens of the training split when all text is packed, estimated from the first part alone.

        So it is the same number while the cache grows and when it is finished.
        """
        first = [chunk for chunk in self.index["chunks"] if chunk["part"] == 0]
        tokens = sum(chunk["tokens"] for chunk in first if chunk["split"] == "train")
        return tokens * self.whole_text_bytes // max(1, sum(chunk["text_bytes"] for chunk in first))

    @property
    def contexts(self) -> list[int]:
        """The context lengths that have a plan."""
        return [plan["context"] for plan in self.index["plans"]]

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.index["vocab_size"]

    @property
    def separator_id(self) -> int:
        """Id of the token that ends every document."""
        return self.index["separator_id"]

    @property
    def pad_id(self) -> int:
        """Id that fills unused places."""
        return self.index["pad_id"]

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Bytes of text each id stands for, int32 [vocab_size]; 0 for special tokens."""
        return np.load(self.path / "token_bytes.npy", allow_pickle=False)

    def tokens(self, split: str = "train") -> int:
        """Return the number of tokens of a split."""
        return sum(chunk["tokens"] for chunk in self.index["chunks"] if chunk["split"] == split)

    def sequences(self, context: int, split: str = "train") -> int:
        """Return the number of packed sequences of a split. Raises UserError for a context without a plan."""
        return self._plan(context).split(split).sequences

    # -- reading ---------------------------------------------------------------------------------------------------

    def sequence(self, number: int, context: int, split: str = "train") -> dict[str, np.ndarray]:
        """Return one packed sequence of a split, 0 <= number < sequences, arrays int64 [context]. Raises IndexError.

        Only the blocks that hold it are read and decoded.
        """
        table = self._plan(context).split(split)
        pieces = _pieces(table, number)
        chunk, lengths = self._file(int(table.chunk[pieces.start])), table.length[pieces]
        firsts, counts = table.position[pieces].tolist(), lengths.tolist()
        parts = [chunk.read(first, first + count) for first, count in zip(firsts, counts, strict=True)]
        starts = np.array([0, *accumulate(counts[:-1])])
        arrays = np.empty((len(ARRAYS), 1, context), np.int64)
        fill_row(parts[0] if len(parts) == 1 else np.concatenate(parts), starts, lengths, self.pad_id, arrays, 0)
        return dict(zip(ARRAYS, arrays[:, 0], strict=True))

    def batches(
        self,
        context: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        state: dict[str, Any] | None = None,
        seed: int = 0,
        split: str = "train",
        epochs: int | None = 1,
        drop_last: bool = False,
        prefetch: int = 2,
        arrays: Literal["torch", "numpy"] = "torch",
    ) -> Iterator[dict[str, Any]]:
        """Yield this rank's batches of `epochs` epochs (None: forever), from the start or from where `state` ends.

        Epochs follow each other without a seam. The last global batch may be short; every rank then still gets a batch,
        perhaps of 0 rows, so that ranks stay in step; `drop_last` leaves it out. A thread reads `prefetch` batches
        ahead (0: none), fewer where they would fill more than 64 MB. Raises UserError when `state` belongs to another
        cache, plan, split or seed.
        """
        table = self._plan(context).split(split)
        order = ReadingOrder(table.bounds, table.parts, seed, self.window_chunks)
        if order.sequences == 0:
            remedy = "raise" if split == "val" else "look at pack.weights and pack.token_shares, or lower"
            raise UserError(f"{self.path} has no {split} sequences; {remedy} pack.val_fraction and run: {self.command}")
        settings = {"context": context, "split": split, "seed": seed, "window": self.window_chunks}
        start = order.start() if state is None else self._resume(state, settings)
        made = self._batches(table, order, start, settings, (batch_size, rank, world_size), epochs, drop_last)
        batch_bytes = len(ARRAYS) * 8 * batch_size * context
        for batch in prefetched(made, min(prefetch, _PREFETCH_BYTES // batch_bytes)):
            yield as_tensors(batch) if arrays == "torch" else batch

    def documents(self, split: str = "train") -> Iterator[Document]:
        """Yield every document of a split, whole, in the order of the cache."""
        for number, entry in enumerate(self.index["chunks"]):
            if entry["split"] != split:
                continue
            chunk = self._file(number)
            tokens, sources = chunk.tokens(), chunk.header["sources"]
            for place, identity in enumerate(chunk.ids):
                start, stop = chunk.offsets[place : place + 2]
                yield Document(identity, sources[chunk.source[place]], tokens[start:stop])

    def pieces(self, number: int, context: int, split: str = "train") -> list[Piece]:
        """Return where each span of a packed sequence comes from, in order; the rest is padding. Raises IndexError."""
        table = self._plan(context).split(split)
        pieces, first, found = _pieces(table, number), 0, []
        for row in range(pieces.start, pieces.stop):
            chunk_number, document = int(table.chunk[row]), int(table.document[row])
            chunk = self._file(chunk_number)
            part = self.index["parts"][self.index["chunks"][chunk_number]["part"]]
            shard = part["shards"][int(chunk.shard[document])]
            found.append(
                Piece(
                    first=first,
                    length=int(table.length[row]),
                    id=chunk.ids[document],
                    source=chunk.header["sources"][chunk.source[document]],
                    offset=int(table.start[row]),
                    chunk=chunk_number,
                    document=document,
                    shard=shard["file"],
                    digest=shard["digest"],
                    row=int(chunk.row[document]),
                )
            )
            first += found[-1].length
        return found

    def order(self, context: int, seed: int, split: str = "train") -> ReadingOrder:
        """Return the order in which `batches` visits the sequences of a split."""
        table = self._plan(context).split(split)
        return ReadingOrder(table.bounds, table.parts, seed, self.window_chunks)

    def table(self, context: int, split: str = "train") -> SplitTable:
        """Return the pieces of a split in the plan of a context length. Raises UserError for one without a plan."""
        return self._plan(context).split(split)

    def chunk(self, number: int) -> ChunkFile:
        """Return a chunk by its number in the index, its header verified. Raises ChunkDamaged."""
        return self._file(number)

    def state_after(
        self, context: int, sequences: int, state: dict[str, Any] | None = None, seed: int = 0, split: str = "train"
    ) -> dict[str, Any]:
        """Return the state after `sequences` more sequences than `state` (None: the start), without reading any.

        Raises UserError when `state` belongs to another cache, plan, split or seed.
        """
        settings = {"context": context, "split": split, "seed": seed, "window": self.window_chunks}
        order = self.order(context, seed, split)
        position = order.start() if state is None else self._resume(state, settings)
        return {**self._identity(settings), **_place(order.advance(position, sequences))}

    def start_with_first_part(self, context: int, seed: int = 0, split: str = "train") -> dict[str, Any]:
        """Return the start of an epoch that reads part after part: text that is added later comes after all of this."""
        settings = {"context": context, "split": split, "seed": seed, "window": self.window_chunks}
        return {**self._identity(settings), **_place(Position(epoch=0, offset=0, parts=1, total=0))}

    def carry_over(self, state: dict[str, Any], context: int) -> dict[str, Any]:
        """Return the state with which reading goes on in sequences of another length where `state` stands.

        The order of the chunks is the same for every length: chunks of finished windows are not read again in this
        epoch, and in the window in hand reading goes on at the same share of its sequences. Raises UserError for a
        context without a plan.
        """
        settings = {name: state[name] for name in ("context", "split", "seed", "window")}
        position = self._resume(state, settings)
        old, new = (self.order(length, state["seed"], state["split"]) for length in (state["context"], context))
        left, offset = position.offset, 0
        for chunks in old.epoch_windows(position.epoch, position.parts):
            before, after = (
                int(sum(order.bounds[chunk + 1] - order.bounds[chunk] for chunk in chunks)) for order in (old, new)
            )
            if left < before:
                offset += after * left // before
                break
            left, offset = left - before, offset + after
        known = len(self.index["parts"])
        return {
            **state,
            "context": context,
            "data": self._fingerprint(context, known),
            "known_parts": known,
            "offset": offset,
            "position": position.epoch * new.sequences + offset,
        }

    # -- inside ----------------------------------------------------------------------------------------------------

    def _batches(self, table, order, position, settings, share, epochs, drop_last) -> Iterator[dict[str, Any]]:
        batch_size, rank, world_size = share
        everyone = batch_size * world_size
        numbers = order.iterate(position, epochs)
        window = DecodedChunks(self._file, self.window_chunks + 1)
        identity = self._identity(settings)
        while batch := list(islice(numbers, everyone)):
            if len(batch) < everyone and drop_last:
                return
            position = order.advance(position, len(batch))
            mine = batch[rank * batch_size : (rank + 1) * batch_size]
            arrays = np.empty((len(ARRAYS), len(mine), settings["context"]), np.int64)
            for row, number in enumerate(mine):
                pieces = _pieces(table, number)
                tokens = window.tokens(int(table.chunk[pieces.start]))
                fill_row(tokens, table.position[pieces], table.length[pieces], self.pad_id, arrays, row)
            rows = dict(zip(ARRAYS, arrays, strict=True))
            yield {**rows, "sequences": np.array(mine, np.int64), "state": {**identity, **_place(position)}}

    def _identity(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return what a state says of the data it belongs to."""
        known = len(self.index["parts"])
        return {"data": self._fingerprint(settings["context"], known), **settings, "known_parts": known}

    def _fingerprint(self, context: int, parts: int) -> str:
        """Identify the tokens and their packing in the first `parts` parts, which later parts do not change."""
        plan = self._plan(context)
        chunks = [
            [chunk["digest"], rows]
            for chunk, rows in zip(self.index["chunks"], plan.rows_digests, strict=True)
            if chunk["part"] < parts
        ]
        return json_digest(chunks)

    def _resume(self, state: dict[str, Any], settings: dict[str, Any]) -> Position:
        known = min(int(state.get("known_parts", 0)), len(self.index["parts"]))
        identity = {**settings, "data": self._fingerprint(settings["context"], known)}
        for name, value in identity.items():
            if state.get(name) != value:
                raise UserError(
                    f"the saved data position has {name} = {state.get(name)!r}, the data now has {value!r}: continuing"
                    " would repeat or skip text; restore the setting, or start the stage again with --force"
                )
        return Position(*(int(state[name]) for name in ("epoch", "offset", "parts", "position")))

    def _plan(self, context: int) -> Plan:
        with self._lock:
            if context not in self._plans:
                entry = next((plan for plan in self.index["plans"] if plan["context"] == context), None)
                if entry is None:
                    raise UserError(
                        f"{self.path} has no plan for context {context} (it has {self.contexts}); add {context} to"
                        f" pack.contexts and run: {self.command}"
                    )
                self._plans[context] = Plan(self.path, entry, self.index, self.command)
            return self._plans[context]

    def _file(self, number: int) -> ChunkFile:
        """Return a chunk file, opened before or now; a few hundred stay open."""
        with self._lock:
            if number not in self._files:
                entry = self.index["chunks"][number]
                self._files[number] = self._open(entry)
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(number)
            return self._files[number]

    def _open(self, entry: dict[str, Any]) -> ChunkFile:
        path = self.path / entry["file"]
        if self.unfinished:
            try:
                return ChunkFile(path, entry["digest"], self.command)
            except ChunkDamaged:
                if path.exists():
                    raise
            path = self.path.parent / entry["file"]  # when the cache is finished its chunks move up
        return ChunkFile(path, entry["digest"], self.command)


def _place(position: Position) -> dict[str, int]:
    return {
        "position": position.total,
        "epoch": position.epoch,
        "offset": position.offset,
        "parts": position.parts,
    }


def _pieces(table: SplitTable, number: int) -> slice:
    if not 0 <= number < table.sequences:
        raise IndexError(f"sequence {number} of {table.sequences}")
    return slice(int(table.pieces[number]), int(table.pieces[number + 1]))
