"""What of a cache that is there stays: nothing is tokenised twice.

A part of the published cache stays when its shards are all still there, byte for byte, and nothing changed that decides
the content of chunks. Then only its missing or damaged chunks are made again, and shards that belong to no part make up
a new one at the end. A damaged index.json is no loss: the headers of the chunks say what it said. Whatever changed, the
decision is taken once and kept in the work folder, so that a killed start continues with it and a second process shares
it.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import UserError, file_digest, json_digest, write_json_atomic
from pipeline_lib.stage.manifest import MANIFEST, Manifest
from pipeline_lib.stage.workspace import read_json

from .cache_index import INDEX, Shard, read_index, recipe_of, tokenizer_digests
from .chunk_headers import index_from_headers
from .shards import plan_runs

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline_lib.stage import Stage

_DECISION = "kept.json"


@dataclass
class CacheLayout:
    """The parts of the cache that is being made.

    parts: shards of each, the new ones last; paths: where a shard lies now, by its digest; chunks: index entries of the
    parts that stay; whole: names of published files that are as they were written; recorded: digests of all that were
    published; tokenizer: its digests, if it stays.
    """

    parts: list[list[Shard]]
    paths: "dict[str, Path]"
    kept: int = 0
    chunks: list[dict[str, Any]] = field(default_factory=list)
    whole: set[str] = field(default_factory=set)
    recorded: dict[str, str] = field(default_factory=dict)
    tokenizer: dict[str, str] | None = None

    def shards(self, part: int) -> "list[Path]":
        """Return the files of a part's shards."""
        return [self.paths[shard.digest] for shard in self.parts[part]]


def lay_out(stage: "Stage", decide: bool = True) -> CacheLayout:
    """Decide which parts stay and which shards are new, or return what was decided when this work began.

    Raises FileNotFoundError when the cache whose parts were to stay is gone, and, for a process that only takes a share
    of the work and is not to `decide`, when nothing was decided or the work is gone.
    """
    clean = stage.input("02_clean")
    paths = clean.files("part-*.parquet")
    shards = [Shard(path.name, clean.manifest.files[path.name].digest) for path in paths]
    by_digest = {shard.digest: path for shard, path in zip(shards, paths, strict=True)}
    decision, index = read_json(stage.work / _DECISION), None
    if decision is None:
        if not decide:
            raise FileNotFoundError(stage.work / _DECISION)
        kept, reason, index = (0, "", None) if stage.forced else _parts_that_stay(stage, by_digest)
        decision = {"parts": kept, "reason": reason}
        write_json_atomic(stage.work / _DECISION, decision)
    if decision["reason"]:
        stage.note(decision["reason"])
    if not decision["parts"]:
        return CacheLayout(divide(shards, by_digest, stage.settings.part_bytes, stage.seed), by_digest)
    manifest = Manifest.read(stage.folder / MANIFEST)
    if manifest is None:  # another process is publishing this very moment
        raise FileNotFoundError(stage.folder / MANIFEST)
    return _layout(stage, decision["parts"], shards, by_digest, manifest, index or _index_that_stays(stage, manifest))


def _layout(
    stage: "Stage",
    kept: int,
    shards: list[Shard],
    by_digest: "dict[str, Path]",
    manifest: Manifest,
    index: dict[str, Any],
) -> CacheLayout:
    parts = [[Shard(**shard) for shard in part["shards"]] for part in index["parts"][:kept]]
    old = {shard.digest for part in parts for shard in part}
    new = [shard for shard in shards if shard.digest not in old]
    unreadable = {chunk["file"] for chunk in index["chunks"] if chunk["digest"] is None}
    return CacheLayout(
        parts=[*parts, *divide(new, by_digest, stage.settings.part_bytes, stage.seed)] if new else parts,
        paths=by_digest,
        kept=kept,
        chunks=[chunk for chunk in index["chunks"] if chunk["part"] < kept],
        whole=set(manifest.files) - set(manifest.damaged_files(stage.folder)) - unreadable,
        recorded={name: entry.digest for name, entry in manifest.files.items()},
        tokenizer=index["tokenizer"],
    )


def _index_that_stays(stage: "Stage", manifest: Manifest) -> dict[str, Any]:
    """Return the index of the cache that unfinished work goes on from. Raises UserError, with what helps against it."""
    try:
        return _published_index(stage, manifest)
    except UserError as error:
        raise UserError(
            f"{error}, and the unfinished work in {stage.work} goes on from that cache; make the whole cache again"
            f" with: {stage.command} --force-rebuild"
        ) from None


def _published_index(stage: "Stage", manifest: Manifest) -> dict[str, Any]:
    """Return the index of the published cache; if it is damaged, what the chunks say of it. Raises UserError."""
    path = stage.folder / INDEX
    if path.is_file() and file_digest(path) == manifest.files[INDEX].digest:
        return read_index(stage.folder, stage.command)
    index = index_from_headers(stage.folder, manifest)
    count = len(index["chunks"])
    stage.say(f"  {path} is missing or damaged: what it said was read from the headers of {count} chunks")
    return index


def divide(shards: list[Shard], paths: "dict[str, Path]", part_bytes: int | None, seed: int) -> list[list[Shard]]:
    """Return the shards of each new part: at least `part_bytes` bytes of text each; all are one part when it is None.

    Which shards make up a part is drawn by a hash under the seed, so that each part is a sample of the whole although
    shards lie in order of their source. What is left at the end joins the last part if it is less than half of one.
    """
    if part_bytes is None:
        return [shards]
    parts: list[list[Shard]] = [[]]
    sizes = [0]
    for shard in sorted(shards, key=lambda shard: json_digest([seed, shard.digest])):
        if sizes[-1] >= part_bytes:
            parts.append([])
            sizes.append(0)
        parts[-1].append(shard)
        sizes[-1] += sum(run.bytes for run in plan_runs([paths[shard.digest]]))
    if len(parts) > 1 and sizes[-1] < part_bytes / 2:
        rest = parts.pop()
        parts[-1] += rest
    return [sorted(part, key=lambda shard: shard.file) for part in parts]


def _parts_that_stay(stage: "Stage", by_digest: "dict[str, Path]") -> tuple[int, str, dict[str, Any] | None]:
    """Return how many parts of the published cache stay, a line to say if some do not, and the index of that cache."""
    manifest = Manifest.read(stage.folder / MANIFEST)
    if manifest is None and (stage.folder / INDEX).is_file():
        return 0, "the cache that is there is made again: its manifest.json is missing or damaged", None
    if manifest is None or INDEX not in manifest.files:
        return 0, "", None
    try:
        index = _published_index(stage, manifest)
    except UserError as error:
        return 0, f"the cache that is there is made again: {error}", None
    if index["recipe"] != recipe_of(stage.settings, stage.seed):
        line = "the cache that is there is made again: a setting changed that decides the content of its chunks"
        return 0, line, None
    if stage.settings.tokenizer is not None and index["tokenizer"] != _given_tokenizer(stage):
        return 0, "the cache that is there is made again: it was made with another tokenizer", None
    for number, part in enumerate(index["parts"]):
        gone = [shard["file"] for shard in part["shards"] if shard["digest"] not in by_digest]
        if gone:
            line = f"part {number} of the cache is made again: {gone[0]} changed or is gone since it was packed"
            return number, line, index
    return len(index["parts"]), "", index


def _given_tokenizer(stage: "Stage") -> dict[str, str]:
    from .tokenizer_folder import resolve_tokenizer, tokenizer_files

    return {path.name: file_digest(path) for path in tokenizer_files(resolve_tokenizer(stage.settings.tokenizer))}


def published_tokenizer(stage: "Stage", layout: CacheLayout) -> "Path | None":
    """Return the tokenizer folder of the cache that stays, or None when it must be made (again)."""
    folder = stage.folder / "tokenizer"
    if layout.tokenizer is None or not folder.is_dir() or tokenizer_digests(folder) != layout.tokenizer:
        return None
    return folder
