"""One chunk of the packed cache as a file: a JSON header that describes itself, then LZ4 frames, all checksummed.

    bytes 0-7    magic "LTPCHNK1"
    bytes 8-11   length of the header, uint32 little-endian
    bytes 12-27  xxh3-128 of the header, big-endian
    then         the header, UTF-8 JSON; then the sections, one LZ4 frame each, in the order the header lists them

The header holds the checksum of every section, and the index of the cache holds the checksum of the header, so that
one number identifies the whole file and no byte of it can change unnoticed. Sections can be read alone: packing a new
context length reads the document offsets only. docs/packed_cache.md is the specification.
Cost: LZ4 decodes at more than 1 GB/s per core, xxh3 at memory speed.
"""

import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import xxhash

from pipeline_lib.stage import UserError

MAGIC = b"LTPCHNK1"
VERSION = 1
_PREFIX = struct.Struct("<8sI16s")
_LONGEST_HEADER = 1 << 26
_TYPES = {"uint8": "<u1", "uint16": "<u2", "uint32": "<u4", "int64": "<i8"}


class ChunkDamaged(UserError):
    """A chunk file is not what was written: truncated, altered, or another file."""


@dataclass
class ChunkContent:
    """The documents of one chunk.

    tokens: uint16 or uint32 [n]; offsets: int64 [documents + 1] into tokens; ids: one stable id per document;
    source: uint16 [documents] into `sources`, the names of the sources.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    ids: list[str]
    source: np.ndarray
    sources: list[str]


def encode_chunk(content: ChunkContent, description: dict[str, Any], lz4_level: int = 0) -> bytes:
    """Return the bytes of a chunk file; `description` (JSON) is kept in its header under its own keys."""
    ids = [identity.encode() for identity in content.ids]
    id_offsets = np.concatenate([[0], np.cumsum([len(identity) for identity in ids], dtype=np.int64)]).astype(np.int64)
    arrays = {
        "tokens": content.tokens,
        "offsets": content.offsets.astype(np.int64),
        "source": content.source.astype(np.uint16),
        "id_offsets": id_offsets,
        "ids": np.frombuffer(b"".join(ids), np.uint8),
    }
    sections, frames, position = {}, [], 0
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array, _TYPES[array.dtype.name])
        plain = raw.view(np.uint8).data if raw.size else b""
        frame = lz4.frame.compress(plain, compression_level=lz4_level, store_size=True)
        sections[name] = {
            "type": array.dtype.name,
            "count": int(array.size),
            "position": position,
            "bytes": len(frame),
            "xxh3_128": xxhash.xxh3_128_hexdigest(frame),
        }
        frames.append(frame)
        position += len(frame)
    header = {
        **description,
        "version": VERSION,
        "documents": len(content.ids),
        "tokens": int(content.tokens.size),
        "sources": content.sources,
        "sections": sections,
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return b"".join([_PREFIX.pack(MAGIC, len(text), xxhash.xxh3_128_digest(text)), text, *frames])


class ChunkFile:
    """Read access to one chunk file. Every section's checksum is verified each time it is read from disk."""

    def __init__(self, path: Path, digest: str | None = None):
        """Read and verify the header; with `digest`, insist on that header. Raises ChunkDamaged, or OSError."""
        self.path = path
        try:
            with open(path, "rb") as stream:
                prefix = stream.read(_PREFIX.size)
                if len(prefix) < _PREFIX.size or prefix[: len(MAGIC)] != MAGIC:
                    raise self._damaged("it does not start like a chunk")
                _, length, checksum = _PREFIX.unpack(prefix)
                text = stream.read(length) if length <= _LONGEST_HEADER else b""
        except FileNotFoundError:
            raise self._damaged("it is missing") from None
        if len(text) != length or xxhash.xxh3_128_digest(text) != checksum:
            raise self._damaged("the checksum of its header differs")
        self.digest = checksum.hex()
        if digest is not None and digest != self.digest:
            raise self._damaged(f"it is not the chunk that the index lists ({digest})")
        self.header: dict[str, Any] = json.loads(text)
        if self.header["version"] != VERSION:
            raise UserError(f"{path} has chunk format {self.header['version']}, this program reads {VERSION}")
        self._start = _PREFIX.size + length
        sections = self.header["sections"].values()
        if path.stat().st_size != self._start + sum(section["bytes"] for section in sections):
            raise self._damaged("its size differs from what its header says")

    def _damaged(self, what: str) -> ChunkDamaged:
        return ChunkDamaged(f"{self.path} is damaged ({what}); make it again with stage 03 --force")

    def _section(self, name: str) -> np.ndarray:
        section = self.header["sections"][name]
        with open(self.path, "rb") as stream:
            stream.seek(self._start + section["position"])
            frame = stream.read(section["bytes"])
        if xxhash.xxh3_128_hexdigest(frame) != section["xxh3_128"]:
            raise self._damaged(f"the checksum of its {name} differs")
        return np.frombuffer(lz4.frame.decompress(frame), _TYPES[section["type"]])

    def tokens(self) -> np.ndarray:
        """Return all tokens of the chunk, uint16 or uint32 [tokens]. Raises ChunkDamaged."""
        return self._section("tokens")

    @cached_property
    def offsets(self) -> np.ndarray:
        """The boundaries of the documents within the tokens, int64 [documents + 1]."""
        return self._section("offsets")

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the documents."""
        text, boundaries = self._section("ids").tobytes(), self._section("id_offsets").tolist()
        return [text[start:stop].decode() for start, stop in zip(boundaries, boundaries[1:], strict=False)]

    @cached_property
    def source(self) -> np.ndarray:
        """The source of each document, uint16 [documents] into `header["sources"]`."""
        return self._section("source")

    def content(self) -> ChunkContent:
        """Return everything."""
        return ChunkContent(self.tokens(), self.offsets, self.ids, self.source, self.header["sources"])
