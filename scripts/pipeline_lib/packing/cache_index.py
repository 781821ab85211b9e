"""index.json: the one file that says what a packed cache holds. Its digests cover every chunk and plan.

A cache consists of parts. The first part is the text that was there when the cache was made; text that is added later
is another part with chunks of its own, and the chunks that are there are not touched.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.pack import PackSettings
from pipeline_lib.stage import UserError, bytes_digest, file_digest, json_digest, write_json_atomic
from pipeline_lib.stage.digests import canonical_json
from pipeline_lib.stage.manifest import MANIFEST, Manifest

from .chunk_format import COMMAND, ChunkFile
from .tokenizer_folder import tokenizer_files

if TYPE_CHECKING:
    from .text_encoder import TextEncoder

INDEX = "index.json"
FORMAT = "packed-cache"
VERSION = 2


@dataclass(frozen=True)
class Shard:
    """A shard of cleaned text as the index lists it."""

    file: str
    digest: str

    def to_json(self) -> dict[str, str]:
        """Return the fields by name."""
        return {"file": self.file, "digest": self.digest}


def recipe_of(settings: PackSettings, seed: int) -> dict[str, Any]:
    """Return the settings that decide the content of chunks; the tokenizer's files are compared by their digests."""
    names = ("chunk_tokens", "val_fraction", "lz4_level")
    recipe: dict[str, Any] = {"seed": seed, **{name: getattr(settings, name) for name in names}}
    if settings.part_bytes is not None:
        recipe["part_bytes"] = settings.part_bytes
    if settings.tokenizer is None:
        recipe.update({name: getattr(settings, name) for name in ("vocab_size", "min_pair_count", "training_bytes")})
    return recipe


def tokenizer_digests(folder: Path) -> dict[str, str]:
    """Return {file: digest} of a tokenizer folder; what else lies there (.DS_Store) says nothing of the tokenizer."""
    return {path.name: file_digest(path) for path in tokenizer_files(folder)}


def by_number(name: str) -> tuple[int, str]:
    """Return the place of a numbered name among others of its kind, which are longer once five digits are too few."""
    return len(name), name


def save_index(path: Path, index: dict[str, Any]) -> None:
    """Write an index; its bytes do not depend on the order in which it was put together."""
    write_json_atomic(path, json.loads(canonical_json(index)))


def read_index(folder: Path, command: str = COMMAND, name: str = INDEX) -> dict[str, Any]:
    """Return the index of a cache; command: what makes it, for messages. Raises UserError when there is none.

    name: of the file, another one for a cache that is still being made (so_far.py). An index that lies beside the
    manifest of its stage must be the one that this lists.
    """
    path = folder / name
    try:
        data = path.read_bytes()
        index = json.loads(data)
    except (FileNotFoundError, NotADirectoryError):
        if (folder / MANIFEST).exists():
            raise UserError(f"{path} is missing; make it again with: {command} --mode repair") from None
        raise UserError(f"{folder} holds no finished packed cache; make it with: {command}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); make it again with: {command} --mode repair") from None
    manifest = Manifest.read(folder / MANIFEST)
    if manifest is not None and name in manifest.files and manifest.files[name].digest != bytes_digest(data):
        raise UserError(f"{path} is damaged (its checksum differs); make it again with: {command} --mode repair")
    if not isinstance(index, dict) or (index.get("format"), index.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{path} is no packed cache of version {VERSION}; make it again with: {command}")
    return index


def describe_chunk(chunk: ChunkFile, name: str) -> dict[str, Any]:
    """Return the entry of a chunk; everything in it stands in the chunk's own header."""
    header = chunk.header
    return {
        "file": name,
        "part": header["part"],
        "split": header["split"],
        "range": header["range"],
        "documents": header["documents"],
        "tokens": header["tokens"],
        "text_bytes": header["text_bytes"],
        "sources": header["amounts"],
        "bytes": chunk.bytes,
        "digest": chunk.digest,
    }


def describe_cache(
    recipe: dict[str, Any],
    encoder: "TextEncoder",
    parts: Sequence[Sequence[Shard]],
    chunks: Sequence[dict[str, Any]],
    plans: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Return the content of index.json."""
    tokenizer = tokenizer_digests(encoder.folder)
    return {
        "format": FORMAT,
        "version": VERSION,
        "recipe": recipe,
        "vocab_size": encoder.vocab_size,
        "dtype": encoder.dtype.name,
        "separator_id": encoder.special.separator,
        "pad_id": encoder.special.pad,
        "tokenizer": tokenizer,
        "tokenizer_digest": json_digest(tokenizer),
        "documents": sum(chunk["documents"] for chunk in chunks),
        "tokens": sum(chunk["tokens"] for chunk in chunks),
        "text_bytes": sum(chunk["text_bytes"] for chunk in chunks),
        "parts": [{"shards": [shard.to_json() for shard in shards]} for shards in parts],
        "chunks": list(chunks),
        "plans": list(plans),
    }
