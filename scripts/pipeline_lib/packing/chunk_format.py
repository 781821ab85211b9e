"""One chunk of the packed cache as a file: a JSON header that describes itself, then LZ4 frames, all checksummed.

    bytes 0-7    magic "LTPCHNK2"
    bytes 8-11   length of the header, uint32 little-endian
    bytes 12-27  xxh3-128 of the header, big-endian
    then         the header, UTF-8 JSON; then the sections, one LZ4 frame each, at the positions the header gives

The header holds the checksum of every section, and the index of the cache holds the checksum of the header, so that
one number identifies the whole file and no byte of it can change unnoticed. The tokens are written in the code of
token_code.py, in independent LZ4 blocks of 8,192 tokens with a checksum each: a whole chunk is one call of the LZ4
library, and one training sequence needs a few blocks only. docs/packed_cache.md is the specification.
Cost: 0.6 to 1.4 GB/s per core for a whole chunk (as uint16), by the machine; 40 to 110 microseconds for a sequence.
Trap: files are read with pread, not mapped: a file that somebody truncates under a mapping kills the process.
"""

import json
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lz4.block
import lz4.frame
import numpy as np
import pyarrow as pa
import xxhash

from pipeline_lib.stage import UserError, ordered_threads
from pipeline_lib.stage.inputs import repairing_command

from .token_code import LANE, SLACK, TokenCode, TokenDecoder, best_code

MAGIC = b"LTPCHNK2"
VERSION = 2
BLOCK = 4 * LANE
"""Tokens per LZ4 block."""
_PREFIX = struct.Struct("<8sI16s")
_LONGEST_HEADER = 1 << 26
_STORED = 1 << 31
_TYPES = {"uint8": "<u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8"}
_FRAME_HEAD = 15
"""Bytes of an LZ4 frame before its first block: magic, flags, content size, header checksum."""
_FRAME_END = bytes(4)
_HEXADECIMAL = re.compile("[0-9a-f]*")
COMMAND = repairing_command("03_packed", "")
"""What makes a packed cache, for messages; whoever knows the run passes the command with its flags."""


class ChunkDamaged(UserError):
    """A chunk file is not what was written: truncated, altered, or another file. what: how that shows."""

    def __init__(self, path: Path, what: str, command: str = COMMAND):
        super().__init__(f"{path} is damaged ({what}); make it again with: {command} --mode inverse")
        self.what = what


@dataclass
class ChunkContent:
    """The documents of one chunk; every array but `tokens` and `offsets` has one entry per document.

    tokens: uint16 or uint32 [n]; offsets: int64 [documents + 1] into tokens; ids: stable ids; source: uint16 into
    `sources`, the names of the sources; shard and row: uint32, where the document stands in the cleaned text;
    duplicates: uint32, how many documents it stood for when duplicates were removed.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    ids: list[str]
    source: np.ndarray
    sources: list[str]
    shard: np.ndarray = field(default=None)  # type: ignore[assignment]
    row: np.ndarray = field(default=None)  # type: ignore[assignment]
    duplicates: np.ndarray = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name in ("shard", "row", "duplicates"):
            if getattr(self, name) is None:
                setattr(self, name, np.zeros(len(self.ids), np.uint32))


def encode_chunk(
    content: ChunkContent, description: dict[str, Any], lz4_level: int = 0, threads: int = 1
) -> bytes:
    """Return the bytes of a chunk file; `description` (JSON) is kept in its header under its own keys.

    `description["vocab_size"]` must be above every token id. The bytes do not depend on `threads`.
    """
    code = best_code(content.tokens, description["vocab_size"])
    tokens, block_tables = _encode_tokens(content.tokens, code, lz4_level, threads)
    ids = _encode_ids(content)
    arrays = {
        "widths": code.width,
        **block_tables,
        "lengths": np.diff(content.offsets).astype(np.uint32),
        "source": content.source.astype(np.uint16),
        "shard": content.shard.astype(np.uint32),
        "row": content.row.astype(np.uint32),
        "duplicates": content.duplicates.astype(np.uint32),
        **{name: array for name, array in ids.items() if isinstance(array, np.ndarray)},
    }
    frames = {"tokens": (tokens, "uint8", len(content.tokens))}
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array, _TYPES[array.dtype.name])
        plain = raw.view(np.uint8).data if raw.size else b""
        frame = lz4.frame.compress(plain, compression_level=lz4_level, store_size=True)
        frames[name] = (frame, array.dtype.name, int(array.size))
    sections, position = {}, 0
    for name, (frame, kind, count) in frames.items():
        sections[name] = {
            "type": kind,
            "count": count,
            "position": position,
            "bytes": len(frame),
            "xxh3_128": xxhash.xxh3_128_hexdigest(frame),
        }
        position += len(frame)
    header = {
        **description,
        "version": VERSION,
        "documents": len(content.ids),
        "tokens": int(content.tokens.size),
        "dtype": content.tokens.dtype.name,
        "id_spelling": ids["spelling"],
        "sources": content.sources,
        "sections": sections,
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    body = [frame for frame, _, _ in frames.values()]
    return b"".join([_PREFIX.pack(MAGIC, len(text), xxhash.xxh3_128_digest(text)), text, *body])


def read_at(descriptor: int, count: int, position: int) -> bytes:
    """Return `count` bytes, fewer where the file ends: Linux gives at most 2 GiB per call."""
    parts = [os.pread(descriptor, count, position)]
    while 0 < (done := sum(map(len, parts))) < count and (part := os.pread(descriptor, count - done, position + done)):
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def chunk_digest(data: bytes) -> str:
    """Return the digest by which the index lists a chunk, from the bytes of its file."""
    return _PREFIX.unpack_from(data)[2].hex()


def _encode_tokens(
    tokens: np.ndarray, code: TokenCode, lz4_level: int, threads: int
) -> tuple[bytes, dict[str, np.ndarray]]:
    """Return the LZ4 frame of the coded tokens and the tables that find a lane and a block in it."""
    share = -(-len(tokens) // (threads * BLOCK)) * BLOCK or BLOCK
    shares = [tokens[start : start + share] for start in range(0, len(tokens), share)] or [tokens]
    jobs = [(part, code, lz4_level, part is shares[-1]) for part in shares]
    blocks, lane_bytes = [], []
    for made, lanes in ordered_threads(lambda job: _encode_blocks(*job), jobs, threads):
        blocks += made
        lane_bytes.append(np.diff(lanes).astype(np.uint16))
    tables = {
        "lane_bytes": np.concatenate(lane_bytes),
        "block_bytes": np.array([len(block) for block in blocks], np.uint16),
        "block_xxh3_64": np.array([xxhash.xxh3_64_intdigest(block) for block in blocks], np.uint64),
    }
    compressor = _compressor(lz4_level)
    head = compressor.begin(source_size=int(tables["lane_bytes"].sum(dtype=np.int64)) + SLACK)
    if len(head) != _FRAME_HEAD:
        raise RuntimeError(f"the LZ4 library writes a frame header of {len(head)} bytes instead of {_FRAME_HEAD}")
    return b"".join([head, *blocks, _FRAME_END]), tables


def _encode_blocks(
    tokens: np.ndarray, code: TokenCode, lz4_level: int, is_last: bool
) -> tuple[list[bytes], np.ndarray]:
    """Return the LZ4 blocks of some consecutive tokens, and where their lanes begin in what is compressed."""
    coded, lanes = code.encode(tokens)
    if is_last:
        coded = np.concatenate([coded, np.zeros(SLACK, np.uint8)])
    plain = memoryview(coded)
    starts = lanes[:-1:4].tolist() or [0]
    compressor = _compressor(lz4_level)
    compressor.begin()
    blocks = [compressor.compress(plain[a:b]) for a, b in zip(starts, [*starts[1:], len(coded)], strict=True)]
    return blocks, lanes


def _compressor(lz4_level: int) -> lz4.frame.LZ4FrameCompressor:
    return lz4.frame.LZ4FrameCompressor(
        block_size=lz4.frame.BLOCKSIZE_MAX64KB, block_linked=False, auto_flush=True, compression_level=lz4_level
    )


def _encode_ids(content: ChunkContent) -> dict[str, Any]:
    """Ids that are their source, a hyphen and 32 hexadecimal digits take 16 bytes; others their UTF-8 and a length."""
    prefixes = [f"{content.sources[code]}-" for code in content.source.tolist()]
    digits = [identity[-32:] for identity in content.ids]
    regular = all(
        len(own) == 32 and identity == prefix + own
        for identity, prefix, own in zip(content.ids, prefixes, digits, strict=True)
    )
    joined = "".join(digits)
    if regular and _HEXADECIMAL.fullmatch(joined):
        return {"spelling": "source-hex128", "ids": np.frombuffer(bytes.fromhex(joined), np.uint8)}
    spelled = [identity.encode() for identity in content.ids]
    return {
        "spelling": "utf8",
        "id_bytes": np.array([len(identity) for identity in spelled], np.uint32),
        "ids": np.frombuffer(b"".join(spelled), np.uint8),
    }


class ChunkFile:
    """Read access to one chunk file. Checksums are verified each time bytes are read from disk."""

    def __init__(self, path: Path, digest: str | None = None, command: str = COMMAND):
        """Read and verify the header; with `digest`, insist on that header. Raises ChunkDamaged, or OSError.

        command: what makes this cache, for messages.
        """
        self.path, self._command = path, command
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._damaged("it is missing") from None
        prefix = os.pread(self._descriptor, _PREFIX.size, 0)
        if len(prefix) < _PREFIX.size or prefix[: len(MAGIC)] != MAGIC:
            raise self._damaged("it does not start like a chunk of this version")
        _, length, checksum = _PREFIX.unpack(prefix)
        text = os.pread(self._descriptor, length, _PREFIX.size) if length <= _LONGEST_HEADER else b""
        if len(text) != length or xxhash.xxh3_128_digest(text) != checksum:
            raise self._damaged("the checksum of its header differs")
        self.digest = checksum.hex()
        if digest is not None and digest != self.digest:
            raise self._damaged(f"it is not the chunk that the index lists ({digest})")
        self.header: dict[str, Any] = json.loads(text)
        if self.header["version"] != VERSION:
            raise UserError(f"{path} has chunk format {self.header['version']}, this program reads {VERSION}")
        self._start = _PREFIX.size + length
        self.dtype = np.dtype(_TYPES[self.header["dtype"]])
        self.bytes = os.fstat(self._descriptor).st_size
        if self.bytes != self._start + sum(section["bytes"] for section in self.header["sections"].values()):
            raise self._damaged("its size differs from what its header says")

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _damaged(self, what: str) -> ChunkDamaged:
        return ChunkDamaged(self.path, what, self._command)

    def _frame(self, name: str) -> bytes:
        section = self.header["sections"][name]
        frame = read_at(self._descriptor, section["bytes"], self._start + section["position"])
        if xxhash.xxh3_128_hexdigest(frame) != section["xxh3_128"]:
            raise self._damaged(f"the checksum of its {name} differs")
        return frame

    def _section(self, name: str) -> np.ndarray:
        return np.frombuffer(lz4.frame.decompress(self._frame(name)), _TYPES[self.header["sections"][name]["type"]])

    @cached_property
    def _decoder(self) -> TokenDecoder:
        code = TokenCode(self._section("widths"))
        code.check()
        return code.decoder(self.dtype)

    @cached_property
    def _lanes(self) -> np.ndarray:
        """Where each lane begins among the coded tokens, and where the last one ends, int64 [lanes + 1]."""
        return np.concatenate([[0], np.cumsum(self._section("lane_bytes"), dtype=np.int64)])

    @cached_property
    def _blocks(self) -> tuple[list[int], list[int]]:
        """Where each LZ4 block begins in the file, the end last; and the checksum of each."""
        first = self._start + self.header["sections"]["tokens"]["position"] + _FRAME_HEAD
        ends = first + np.cumsum(self._section("block_bytes"), dtype=np.int64)
        return [first, *ends.tolist()], self._section("block_xxh3_64").tolist()

    def tokens(self, into: np.ndarray | None = None) -> np.ndarray:
        """Return all tokens of the chunk, uint16 or uint32 [tokens]. Raises ChunkDamaged.

        `into`: an array that is no longer needed; it is overwritten when it is large enough, which saves the page
        faults of a new one, as expensive as the decoding.
        """
        count = self.header["tokens"]
        whole = into if into is None or into.base is None else into.base
        usable = whole is not None and whole.dtype == self.dtype and len(whole) >= count
        tokens = whole[:count] if usable else np.empty(count, self.dtype)
        size = int(self._lanes[-1]) + SLACK
        # Arrow's LZ4 takes two thirds of the time of lz4.frame: its memory is not new at every call.
        plain = pa.Codec("lz4").decompress(self._frame("tokens"), decompressed_size=size)
        self._decoder.decode(np.frombuffer(plain, np.uint8), self._lanes, tokens)
        return tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens start..stop-1; only the blocks that hold them are read. Raises ChunkDamaged."""
        parts = []
        for block in range(start // BLOCK, (max(stop, start + 1) - 1) // BLOCK + 1):
            first = max(start, block * BLOCK)
            last = min(stop, (block + 1) * BLOCK)
            lane = first // LANE
            lanes = self._lanes[lane : -(-last // LANE) + 1] - self._lanes[4 * block]
            tokens = np.empty(last - lane * LANE, self.dtype)
            self._decoder.decode(np.frombuffer(self._block(block), np.uint8), lanes, tokens)
            parts.append(tokens[first - lane * LANE :])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _block(self, number: int) -> bytes:
        """Return the coded tokens of one block, with SLACK bytes after them."""
        places, checksums = self._blocks
        data = os.pread(self._descriptor, places[number + 1] - places[number], places[number])
        if xxhash.xxh3_64_intdigest(data) != checksums[number]:
            raise self._damaged(f"the checksum of block {number} of its tokens differs")
        if int.from_bytes(data[:4], "little") & _STORED:
            return data[4:] + bytes(SLACK)
        stop = min(4 * number + 4, len(self._lanes) - 1)
        size = int(self._lanes[stop] - self._lanes[4 * number]) + (SLACK if stop == len(self._lanes) - 1 else 0)
        return lz4.block.decompress(data[4:], uncompressed_size=size) + bytes(SLACK)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, uint32 [documents]."""
        return self._section("lengths")

    @cached_property
    def offsets(self) -> np.ndarray:
        """The boundaries of the documents within the tokens, int64 [documents + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the documents."""
        spelled = self._section("ids").tobytes()
        if self.header["id_spelling"] == "source-hex128":
            prefixes = [f"{source}-" for source in self.header["sources"]]
            return [
                prefixes[code] + spelled[16 * place : 16 * place + 16].hex()
                for place, code in enumerate(self.source.tolist())
            ]
        ends = np.cumsum(self._section("id_bytes"), dtype=np.int64).tolist()
        return [spelled[start:stop].decode() for start, stop in zip([0, *ends], ends, strict=False)]

    @cached_property
    def source(self) -> np.ndarray:
        """The source of each document, uint16 [documents] into `header["sources"]`."""
        return self._section("source")

    @cached_property
    def shard(self) -> np.ndarray:
        """The shard each document came from, uint32 [documents] into the shards of the chunk's part of the cache."""
        return self._section("shard")

    @cached_property
    def row(self) -> np.ndarray:
        """The row of its shard each document came from, uint32 [documents]."""
        return self._section("row")

    @cached_property
    def duplicates(self) -> np.ndarray:
        """How many duplicates were removed in favour of each document, uint32 [documents]."""
        return self._section("duplicates")

    def content(self) -> ChunkContent:
        """Return everything, after verifying every byte. Raises ChunkDamaged."""
        content = ChunkContent(
            self.tokens(),
            self.offsets,
            self.ids,
            self.source,
            self.header["sources"],
            self.shard,
            self.row,
            self.duplicates,
        )
        _ = self._blocks  # tables that whole reads do not need
        return content

    def verify(self) -> None:
        """Compare every byte of the file with its checksums. Raises ChunkDamaged."""
        for name in self.header["sections"]:
            self._frame(name)


@dataclass(frozen=True)
class ChunkFiles:
    """Chunk files to be read one after the other; each iteration opens them anew and holds one at a time.

    files: path and digest of each, the digest None to take what is there; command: as for ChunkFile.
    """

    files: Sequence[tuple[Path, str | None]]
    command: str = COMMAND

    def __iter__(self) -> Iterator[ChunkFile]:
        """Yield the files. Raises ChunkDamaged, or OSError."""
        for path, digest in self.files:
            yield ChunkFile(path, digest, self.command)
