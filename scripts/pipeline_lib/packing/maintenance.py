"""Looking after a finished cache: read every byte, name what is damaged, restore the index.

Nothing is deleted here. A damaged file is marked by a new modification time, so that the next start of the stage reads
it, finds another digest than the manifest has, and makes that file again and no other. The index alone is written here,
where what the chunks give is the index that was there, so that a cache whose text is gone can be repaired too; whatever
else is wrong with it, the stage sees to (kept_parts.py).
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline_lib.stage import UserError, file_digest
from pipeline_lib.stage.lock import LOCK, StageIsLocked, StageLock
from pipeline_lib.stage.manifest import MANIFEST, Manifest
from pipeline_lib.stage.progress import progress, size

from .cache_index import INDEX, Shard, describe_cache, read_index, save_index, tokenizer_digests
from .chunk_format import ChunkDamaged, ChunkFile, ChunkFiles
from .chunk_headers import index_from_headers, settings_of
from .mixture_plan import mixture_of
from .packing_plan import Mixture, plan_file_name, write_plan
from .text_encoder import TextEncoder


def verify_cache(folder: Path, command: str) -> int:
    """Read a whole cache and print what is wrong with it; return the exit code, 1 if anything is.

    command: what makes this cache, for messages. Raises UserError when there is no cache.
    """
    index = _whole_index(folder, command)
    found = _files_that_differ(folder) if index is None else _damage(folder, index)
    problems = [f"{folder / name}: {what}" for name, what in found]
    for line in problems:
        print(f"  {line}")
    verdict = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "whole"
    if index is None:
        print(f"{folder}: {verdict}; without its index the chunks were not read")
    else:
        stored = sum(chunk["bytes"] for chunk in index["chunks"])
        print(
            f"{folder}: {verdict}; {len(index['chunks'])} chunks, {size(stored)}, {index['documents']:,} documents,"
            f" {index['tokens']:,} tokens, contexts {[plan['context'] for plan in index['plans']]}"
        )
    if problems:
        print(f"make what is damaged again with: {command} --mode repair")
    return 1 if problems else 0


def _whole_index(folder: Path, command: str) -> dict[str, Any] | None:
    """Return the index, None where the manifest of the stage says that it is missing or damaged."""
    try:
        return read_index(folder, command)
    except UserError:
        manifest = Manifest.read(folder / MANIFEST)
        if manifest is None or INDEX not in manifest.files:
            raise
        return None


def _damage(folder: Path, index: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name of a file, what is wrong with it)."""
    yield from _files_that_differ(folder)
    if tokenizer_digests(folder / "tokenizer") != index["tokenizer"] if (folder / "tokenizer").is_dir() else True:
        yield "tokenizer", "it is not the tokenizer that the chunks were made with"
    whole = True
    with progress(len(index["chunks"]), "reading chunks", "chunks") as bar:
        for entry in index["chunks"]:
            try:
                chunk = ChunkFile(folder / entry["file"], entry["digest"])
                chunk.verify()
                if chunk.header["tokenizer"] != index["tokenizer_digest"]:
                    yield entry["file"], "it was made with another tokenizer"
            except ChunkDamaged as error:
                whole = False
                yield entry["file"], error.what
            bar.advance(1)
    if whole:
        yield from _plans_that_differ(folder, index)


def _files_that_differ(folder: Path) -> Iterator[tuple[str, str]]:
    """Compare every file but the chunks, which have checksums of their own, with the manifest."""
    manifest = Manifest.read(folder / MANIFEST)
    if manifest is None:
        yield MANIFEST, "it is missing or damaged"
        return
    for name, entry in sorted(manifest.files.items()):
        if not name.startswith("chunks/"):
            path = folder / name
            if not path.is_file():
                yield name, "it is missing"
            elif file_digest(path) != entry.digest:
                yield name, "its checksum differs"


def _plans_that_differ(folder: Path, index: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Pack again: a plan must be the one that the chunks give, which also proves that it holds every token."""
    chunks = ChunkFiles([(folder / entry["file"], entry["digest"]) for entry in index["chunks"]])
    for plan in index["plans"]:
        path = folder / plan["file"]
        if not path.is_file() or file_digest(path) != plan["digest"]:
            yield plan["file"], "it is not the plan that the index lists"
            continue
        with tempfile.TemporaryDirectory() as scratch:
            mixture = Mixture.from_json(plan["mixture"])
            again = write_plan(chunks, plan["context"], Path(scratch) / plan["file"], mixture)
        if {"splits": plan["splits"], "chunks": plan["chunks"]} != again:
            yield plan["file"], "it is not the plan that the chunks give"


def mark_damage(folder: Path) -> None:
    """Restore the index of a finished cache and mark every damaged file, so that the stage makes it again; say so."""
    manifest = Manifest.read(folder / MANIFEST)
    if manifest is None:
        return
    try:
        lock = StageLock(folder / LOCK, print)
    except StageIsLocked:
        print(f"  {folder} is in use by another process, so its files are not read for damage; start again after it")
        return
    try:
        _restore_index(folder, manifest)
        with progress(len(manifest.files), "reading the cache", "files") as bar:
            for name, entry in sorted(manifest.files.items()):
                path = folder / name
                if path.is_file() and file_digest(path) != entry.digest:
                    print(f"  {path} is damaged")
                    os.utime(path)
                elif not path.is_file():
                    print(f"  {path} is missing")
                bar.advance(1)
    finally:
        lock.release()


def _restore_index(folder: Path, manifest: Manifest) -> None:
    """Write index.json again from the headers of the chunks, if it is damaged and they are all there.

    What is written must have the digest that the manifest recorded; otherwise nothing is.
    """
    if INDEX not in manifest.files:
        return
    path = folder / INDEX
    if path.is_file() and file_digest(path) == manifest.files[INDEX].digest:
        return
    try:
        index = _index_from_chunks(folder, manifest)
    except UserError:
        return
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        save_index(Path(scratch) / INDEX, index)
        if file_digest(Path(scratch) / INDEX) == manifest.files[INDEX].digest:
            os.replace(Path(scratch) / INDEX, path)
            print(f"  {path} was restored from the headers of {len(index['chunks'])} chunks")


def _index_from_chunks(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the index with the plans that the chunks give. Raises UserError where that takes what is not there."""
    known, settings = index_from_headers(folder, manifest), settings_of(manifest)
    if any(chunk["digest"] is None for chunk in known["chunks"]):
        raise UserError("a chunk is missing")
    tokenizer = folder / "tokenizer"
    if not tokenizer.is_dir() or tokenizer_digests(tokenizer) != known["tokenizer"]:
        raise UserError("the tokenizer is missing or damaged")
    chunks = ChunkFiles([(folder / chunk["file"], chunk["digest"]) for chunk in known["chunks"]])
    mixture = mixture_of(known["chunks"], settings, manifest.fingerprint["seed"])
    plans = []
    for context in settings.contexts:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / plan_file_name(context)
            counts = write_plan(chunks, context, path, mixture)
            digest = file_digest(path)
        plans.append({"context": context, "file": path.name, "digest": digest, "mixture": mixture.to_json(), **counts})
    parts = [[Shard(**shard) for shard in part["shards"]] for part in known["parts"]]
    return describe_cache(known["recipe"], TextEncoder(tokenizer), parts, known["chunks"], plans)
