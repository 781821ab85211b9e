"""Read the packed cache: batches for training with exact resume, single sequences, whole documents.

    cache = PackedCache("runs/demo/03_packed")
    for batch in cache.batches(context=512, batch_size=32, seed=42):
        batch["input_ids"]        # int64 [32, 512]
        state = batch["state"]    # JSON; batches(..., state=state) continues with the next batch

What a batch holds, all numpy int64 [batch, context] (this module never imports torch):
    input_ids     token ids; unused places hold the pad id
    labels        the same ids at the same places, the convention of Hugging Face models, which shift them inside: -100
                  on padding and on the first token of every piece, because what stands before it is another document
    position_ids  0, 1, 2 ... from the start of every piece, and again over the padding
    segment_ids   1, 2, 3 ... per piece, 0 on padding: attention must stay among equal numbers
and `sequences`, int64 [batch], the numbers of the sequences for `locate`.

Resume is exact because the state is one number: how many sequences of the global order have been handed out, over all
ranks. Rank r of w takes rows r*b to (r+1)*b of every global batch of w*b, so the ranks together read what one rank with
the batch size w*b reads, and a run may continue on another number of ranks or with another batch size.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline_lib.compiled import kernel
from pipeline_lib.stage import UserError, file_digest, json_digest

from .chunk_format import ChunkFile
from .packing_plan import plan_file_name
from .reading_order import ReadingOrder

IGNORED = -100
FORMAT = "packed-cache"
VERSION = 1


@dataclass(frozen=True)
class Document:
    """One document of the cache; tokens: uint16 or uint32 [n], the separator at the end included."""

    id: str
    source: str
    tokens: np.ndarray


@dataclass(frozen=True)
class Place:
    """Where a token of a packed sequence comes from; offset: which token of the document it is."""

    id: str
    source: str
    chunk: int
    document: int
    offset: int


class Plan:
    """A plan in memory: per sequence a range of pieces (20 bytes each)."""

    def __init__(self, path: Path, digest: str, context: int, splits: list[str]):
        if not path.is_file() or file_digest(path) != digest:
            raise UserError(f"{path} is missing or damaged (its checksum differs); run stage 03 again with --force")
        self.context = context
        table = pq.read_table(path)
        self.chunk, self.document, self.start, self.length = (
            table.column(name).to_numpy() for name in ("chunk", "document", "start", "length")
        )
        sequence = table.column("sequence").to_numpy()
        sequences = int(sequence[-1]) + 1 if len(sequence) else 0
        self.pieces = np.searchsorted(sequence, np.arange(sequences + 1))
        chunk_of_sequence = self.chunk[self.pieces[:-1]]
        self._bounds = np.searchsorted(chunk_of_sequence, np.arange(len(splits) + 1))
        self._splits = splits

    def bounds(self, split: str) -> np.ndarray:
        """Return where the sequences of each chunk of a split begin and end, int64 [chunks of the split + 1]."""
        chunks = [number for number, name in enumerate(self._splits) if name == split]
        return self._bounds[chunks[0] : chunks[-1] + 2] if chunks else np.zeros(1, np.int64)


class PackedCache:
    """A folder made by stage 03, opened for reading."""

    def __init__(self, path: Path | str, window_chunks: int = 8):
        """Open the cache; `window_chunks` decoded chunks are held and shuffled together. Raises UserError."""
        self.path = Path(path)
        try:
            self.index: dict[str, Any] = json.loads((self.path / "index.json").read_bytes())
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{self.path / 'index.json'} cannot be read ({error}); run stage 03 again") from None
        if (self.index.get("format"), self.index.get("version")) != (FORMAT, VERSION):
            raise UserError(f"{self.path / 'index.json'} is no packed cache of version {VERSION}; run stage 03 again")
        self.window_chunks = window_chunks
        self._splits = [chunk["split"] for chunk in self.index["chunks"]]
        self._plans: dict[int, Plan] = {}
        self._chunks: OrderedDict[int, tuple[ChunkFile, np.ndarray]] = OrderedDict()

    # -- what is in it ---------------------------------------------------------------------------------------------

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
        bounds = self._plan(context).bounds(split)
        return int(bounds[-1] - bounds[0])

    # -- reading ---------------------------------------------------------------------------------------------------

    def sequence(self, number: int, context: int, split: str = "train") -> dict[str, np.ndarray]:
        """Return one packed sequence of a split, 0 <= number < sequences, arrays int64 [context]. Raises IndexError."""
        if not 0 <= number < self.sequences(context, split):
            raise IndexError(f"sequence {number} of {self.sequences(context, split)}")
        plan = self._plan(context)
        rows = self._rows(plan, [int(plan.bounds(split)[0]) + number])
        return {name: array[0] for name, array in rows.items()}

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
    ) -> Iterator[dict[str, Any]]:
        """Yield this rank's batches of `epochs` epochs (None: forever), from the start or from where `state` ends.

        Epochs follow each other without a seam. The last global batch may be short; every rank then still gets a batch,
        perhaps of 0 rows, so that ranks stay in step; `drop_last` leaves it out. Raises UserError when `state` belongs
        to another cache, plan, split or seed.
        """
        plan = self._plan(context)
        order = ReadingOrder(plan.bounds(split), seed, self.window_chunks)
        if order.sequences == 0:
            raise UserError(f"{self.path} has no {split} sequences; raise pack.val_fraction and run stage 03 again")
        identity = {
            "data": self._fingerprint(context),
            "context": context,
            "split": split,
            "seed": seed,
            "window": self.window_chunks,
        }
        position = self._position(state, identity)
        numbers = order.iterate(position, epochs)
        everyone = batch_size * world_size
        while batch := list(islice(numbers, everyone)):
            if len(batch) < everyone and drop_last:
                return
            position += len(batch)
            mine = batch[rank * batch_size : (rank + 1) * batch_size]
            sequences = np.array(mine, np.int64) - int(plan.bounds(split)[0])
            yield {**self._rows(plan, mine), "sequences": sequences, "state": {**identity, "position": position}}

    def documents(self, split: str = "train") -> Iterator[Document]:
        """Yield every document of a split, whole, in the order of the cache."""
        for number, name in enumerate(self._splits):
            if name != split:
                continue
            chunk, tokens = self._chunk(number)
            sources = chunk.header["sources"]
            for place, identity in enumerate(chunk.ids):
                start, stop = chunk.offsets[place : place + 2]
                yield Document(identity, sources[chunk.source[place]], tokens[start:stop])

    def locate(self, number: int, position: int, context: int, split: str = "train") -> Place | None:
        """Return the origin of the token at `position` of a packed sequence, or None for padding."""
        plan = self._plan(context)
        absolute = int(plan.bounds(split)[0]) + number
        for piece in range(plan.pieces[absolute], plan.pieces[absolute + 1]):
            if position < plan.length[piece]:
                chunk, _ = self._chunk(int(plan.chunk[piece]))
                document = int(plan.document[piece])
                source = chunk.header["sources"][chunk.source[document]]
                offset = int(plan.start[piece]) + position
                return Place(chunk.ids[document], source, int(plan.chunk[piece]), document, offset)
            position -= int(plan.length[piece])
        return None

    # -- inside ----------------------------------------------------------------------------------------------------

    def _fingerprint(self, context: int) -> str:
        """Identify the tokens and their packing, so that a position is never continued in other data."""
        plan = next(plan["digest"] for plan in self.index["plans"] if plan["context"] == context)
        return json_digest([plan, *(chunk["digest"] for chunk in self.index["chunks"])])

    @staticmethod
    def _position(state: dict[str, Any] | None, identity: dict[str, Any]) -> int:
        if state is None:
            return 0
        for name, value in identity.items():
            if state.get(name) != value:
                raise UserError(
                    f"the saved data position has {name} = {state.get(name)!r}, the data now has {value!r}: continuing"
                    " would repeat or skip text; restore the setting, or start the stage again with --force"
                )
        return int(state["position"])

    def _plan(self, context: int) -> Plan:
        if context not in self._plans:
            if context not in self.contexts:
                raise UserError(
                    f"{self.path} has no plan for context {context} (it has {self.contexts}); add {context} to"
                    " pack.contexts and run stage 03 again"
                )
            digest = next(plan["digest"] for plan in self.index["plans"] if plan["context"] == context)
            self._plans[context] = Plan(self.path / plan_file_name(context), digest, context, self._splits)
        return self._plans[context]

    def _chunk(self, number: int) -> tuple[ChunkFile, np.ndarray]:
        """Return a chunk and its decoded tokens, from memory when it was used lately."""
        if number in self._chunks:
            self._chunks.move_to_end(number)
        else:
            entry = self.index["chunks"][number]
            chunk = ChunkFile(self.path / entry["file"], entry["digest"])
            self._chunks[number] = (chunk, chunk.tokens())
            while len(self._chunks) > self.window_chunks + 1:
                self._chunks.popitem(last=False)
        return self._chunks[number]

    def _rows(self, plan: Plan, numbers: list[int]) -> dict[str, np.ndarray]:
        shape = (len(numbers), plan.context)
        rows = {
            "input_ids": np.full(shape, self.pad_id, np.int64),
            "labels": np.full(shape, IGNORED, np.int64),
            "position_ids": np.empty(shape, np.int64),
            "segment_ids": np.zeros(shape, np.int64),
        }
        for row, number in enumerate(numbers):
            pieces = slice(plan.pieces[number], plan.pieces[number + 1])
            chunk, tokens = self._chunk(int(plan.chunk[pieces.start]))
            starts = chunk.offsets[plan.document[pieces]] + plan.start[pieces]
            _fill(tokens, starts, plan.length[pieces], *(array[row] for array in rows.values()))
        return rows


@kernel
def _fill(tokens, starts, lengths, input_ids, labels, position_ids, segment_ids):
    """Write the pieces of one sequence one after the other."""
    place = 0
    for piece in range(len(starts)):
        for i in range(lengths[piece]):
            token = tokens[starts[piece] + i]
            input_ids[place] = token
            if i > 0:
                labels[place] = token
            position_ids[place] = i
            segment_ids[place] = piece + 1
            place += 1
    for i in range(place, len(input_ids)):
        position_ids[i] = i - place
