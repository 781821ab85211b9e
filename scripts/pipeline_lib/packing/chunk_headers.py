"""What the headers of the chunks tell of a cache whose index.json is lost: enough that no text is encoded again.

What: a chunk's header says which documents it holds, and that of a part's first chunk which shards the part is made of;
manifest.json says which files there were and with which settings they were made. Plans are not needed: they follow
from the chunks, and nothing in a chunk depends on them.
How: the ranges of a part's chunks cover the places of its documents without a gap, train before val. So the range of a
chunk that is missing follows from its neighbours, if these are there and it is not the first of its part.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline_lib.config.pack import PackSettings
from pipeline_lib.stage import UserError, json_digest
from pipeline_lib.stage.manifest import Manifest

from .cache_index import INDEX, by_number, describe_chunk, recipe_of
from .chunk_format import ChunkFile
from .chunk_ranges import BUCKETS


def settings_of(manifest: Manifest) -> PackSettings:
    """Return the settings that the cache was made with. Raises UserError when this program does not know them."""
    try:
        return PackSettings.model_validate(manifest.fingerprint["settings"])
    except ValidationError:
        raise UserError(f"{INDEX} is missing or damaged, and another version of this program made it") from None


def index_from_headers(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return recipe, tokenizer, parts and chunks of a cache as its index lists them.

    The entry of a chunk that is missing, or whose header is damaged, is what making it again needs: file, part, split,
    range, and None as its digest. Raises UserError when that cannot be told, or the files are not of one cache.
    """
    settings = settings_of(manifest)
    tokenizer = {name.removeprefix("tokenizer/"): entry.digest for name, entry in sorted(manifest.files.items())
                 if name.startswith("tokenizer/")}  # fmt: skip
    names = sorted((name for name in manifest.files if name.startswith("chunks/")), key=by_number)
    there: list[dict[str, Any] | None] = []
    shards: dict[int, list[dict[str, str]]] = {}
    for name in names:
        try:
            chunk = ChunkFile(folder / name)
        except UserError:
            there.append(None)
            continue
        if chunk.header["tokenizer"] != json_digest(tokenizer):
            raise UserError(f"{INDEX} is missing or damaged, and {name} was made with another tokenizer")
        there.append(describe_chunk(chunk, name))
        if "shards" in chunk.header:
            shards[chunk.header["part"]] = chunk.header["shards"]
    chunks = []
    for place, (name, chunk) in enumerate(zip(names, there, strict=True)):
        before, after = there[max(0, place - 1)], there[min(place + 1, len(there) - 1)]
        if chunk is None and (before is None or (after is None and place + 1 < len(there))):
            raise UserError(f"{INDEX} and {name} are missing or damaged")
        chunks.append(chunk or _between(name, before, after))
    if sorted(shards) != list(range(manifest.result["parts"])) or not _cover_everything(chunks):
        raise UserError(f"{INDEX} is missing or damaged, and what the chunks say is not the whole of one cache")
    return {
        "recipe": recipe_of(settings, manifest.fingerprint["seed"]),
        "tokenizer": tokenizer,
        "parts": [{"shards": shards[part]} for part in sorted(shards)],
        "chunks": chunks,
    }


def _between(name: str, before: dict[str, Any], after: dict[str, Any] | None) -> dict[str, Any]:
    """Return what is known of the chunk that stood between two others, or after the last one that is there."""
    split, first = before["split"], before["range"]["stop"]
    if first == BUCKETS:
        split, first = "val", 0
    goes_on = after is not None and (after["part"], after["split"]) == (before["part"], split)
    stop = after["range"]["first"] if goes_on else BUCKETS
    place = {"split": split, "first": first, "stop": stop, "val_below": before["range"]["val_below"]}
    return {"file": name, "part": before["part"], "split": split, "range": place, "digest": None}


def _cover_everything(chunks: list[dict[str, Any]]) -> bool:
    """Say whether the ranges of each split of each part follow each other from the first place to the last."""
    ends: dict[tuple[int, str], int] = {}
    for chunk in chunks:
        group = chunk["part"], chunk["split"]
        if not ends.get(group, 0) == chunk["range"]["first"] < chunk["range"]["stop"]:
            return False
        ends[group] = chunk["range"]["stop"]
    return all(end == BUCKETS for end in ends.values())
