"""index.json: the one file that says what a packed cache holds. Its digests cover every chunk and plan."""

from pathlib import Path
from typing import Any

from pipeline_lib.stage import bytes_digest, file_digest

from .chunk_format import ChunkFile
from .packing_plan import plan_file_name
from .reader import FORMAT, VERSION
from .text_encoder import TextEncoder


def describe_cache(
    folder: Path, chunk_names: list[str], plans: dict[int, dict[str, dict[str, int]]], encoder: TextEncoder
) -> dict[str, Any]:
    """Return the content of index.json for a cache folder whose files are all written."""
    chunks = []
    for name in chunk_names:
        chunk = ChunkFile(folder / name)
        chunks.append(
            {
                "file": name,
                "split": chunk.header["split"],
                "documents": chunk.header["documents"],
                "tokens": chunk.header["tokens"],
                "text_bytes": chunk.header["text_bytes"],
                "sources": chunk.header["sources"],
                "bytes": (folder / name).stat().st_size,
                "digest": chunk.digest,
            }
        )
    return {
        "format": FORMAT,
        "version": VERSION,
        "vocab_size": encoder.vocab_size,
        "dtype": encoder.dtype.name,
        "separator_id": encoder.special.separator,
        "pad_id": encoder.special.pad,
        "tokenizer": {path.name: bytes_digest(path.read_bytes()) for path in sorted(encoder.folder.iterdir())},
        "documents": sum(chunk["documents"] for chunk in chunks),
        "tokens": sum(chunk["tokens"] for chunk in chunks),
        "text_bytes": sum(chunk["text_bytes"] for chunk in chunks),
        "chunks": chunks,
        "plans": [
            {
                "context": context,
                "file": plan_file_name(context),
                "digest": file_digest(folder / plan_file_name(context)),
                "splits": splits,
            }
            for context, splits in plans.items()
        ],
    }
