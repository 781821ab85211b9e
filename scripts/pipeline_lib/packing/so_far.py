"""The parts of a cache that are finished while stage 03 is still making the others: what training can begin with.

What: with `pack.part_bytes` the text is divided into parts, and each one is finished before the next begins: its chunks
are written and verified, its rows of every plan are written, and an index of all parts so far is published (Stage.
publish_so_far), so whoever reads it sees whole parts only. Numbers of chunks and sequences go on from part to part, so
what was published stays as it is, and the finished cache holds the same rows under the same numbers.
Where: `03_packed/work/so_far/`; the chunks lie in `work/chunks/` and move when the whole cache is published.
Trap: the index and the plans of a later part are files of their own. A file that was published is never written again,
or a reader could find the old digest and the new content.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import atomic_path, file_digest
from pipeline_lib.stage.inputs import read_so_far

from .cache_index import by_number, describe_cache, describe_chunk, read_index, recipe_of, save_index
from .chunk_format import ChunkFiles
from .kept_parts import CacheLayout
from .mixture_plan import mixture_of
from .packing_plan import write_plan
from .text_encoder import TextEncoder

if TYPE_CHECKING:
    from pipeline_lib.stage import Stage

FOLDER = "so_far"


def index_name(parts: int) -> str:
    """Return the name, inside the work folder, of the index of the first `parts` parts."""
    return f"{FOLDER}/index-{parts:05d}.json"


def newest_index_name(files: list[str]) -> str | None:
    """Return the name of the index among the files that were published so far, if any were."""
    return max((name for name in files if name.startswith(f"{FOLDER}/index-")), key=by_number, default=None)


def published_parts(work: Path) -> dict[str, Any] | None:
    """Return the index of the parts that are finished, None while there are none."""
    manifest = read_so_far(work)
    name = newest_index_name(list(manifest.files)) if manifest is not None else None
    return None if name is None else read_index(work, name=name)


def publish_part(stage: "Stage", layout: CacheLayout, encoder: TextEncoder, part: int, names: list[str]) -> None:
    """Publish the next part, whose chunks `names` lie in the work folder. Raises ChunkDamaged."""
    before = published_parts(stage.work) or {"chunks": [], "plans": []}
    names = sorted(names, key=by_number)
    files = ChunkFiles([(stage.work / name, None) for name in names], stage.command)
    chunks = [*before["chunks"]]
    for name, file in zip(names, files, strict=True):
        file.verify()
        chunks.append(describe_chunk(file, name))
    mixture = mixture_of(chunks, stage.settings, stage.seed)
    earlier = {plan["context"]: plan for plan in before["plans"]}
    plans = []
    for context in stage.settings.contexts:
        name = f"{FOLDER}/plan-{context}-{part:05d}.parquet"
        plan = earlier.get(context, {"files": []})
        with atomic_path(stage.work / name) as path:
            written = write_plan(files, context, path, mixture, plan if plan["files"] else None)
        parts = [*plan["files"], {"file": name, "digest": file_digest(stage.work / name)}]
        plans.append({"context": context, "files": parts, "mixture": mixture.to_json(), **written})
    recipe = recipe_of(stage.settings, stage.seed)
    index = describe_cache(recipe, encoder, layout.parts[: part + 1], chunks, plans)
    whole = stage.input("02_clean").ledger.total("text")["bytes"]
    index["unfinished"] = {"parts": len(layout.parts), "text_bytes": whole}
    save_index(stage.work / index_name(part + 1), index)
    plan_files = [file["file"] for plan in plans for file in plan["files"]]
    stage.publish_so_far(["tokenizer", "token_bytes.npy", index_name(part + 1), *plan_files])
    stage.say(
        f"  part {part + 1} of {len(layout.parts)} is published: {index['tokens']:,} tokens,"
        f" {index['text_bytes'] / max(1, whole):.1%} of the text"
    )
