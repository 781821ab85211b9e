"""Plans and index of a cache whose chunks are all there, and what the card says about it."""

from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import file_digest

from .cache_index import INDEX, describe_cache, recipe_of, save_index
from .chunk_format import ChunkFiles
from .kept_parts import CacheLayout
from .mixture_plan import describe_mixture, mixture_of, plan_mixture, training_tokens
from .packing_plan import join_plans, plan_file_name, write_plan
from .so_far import published_parts
from .text_encoder import TextEncoder

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline_lib.stage import Stage


def chunk_path(stage: "Stage", name: str) -> "Path":
    """Return where a chunk lies now: in the work folder if it was made by this start, else where it stays."""
    made = stage.work / name
    return made if made.is_file() else stage.folder / name


def write_plans(stage: "Stage", chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write one packing plan per context length; return their index entries."""
    mixture = mixture_of(chunks, stage.settings, stage.seed)
    say_mixture(stage, training_tokens(chunks))
    keys = {f"plan-{context}": context for context in stage.settings.contexts}
    for key in stage.todo(keys, "planning sequences", "context lengths"):
        with stage.unit(key) as unit:
            context, path = keys[key], unit.path(plan_file_name(keys[key]))
            if (parts := _plan_of_all_parts(stage, context, chunks)) is not None:
                join_plans([stage.work / file["file"] for file in parts["files"]], chunks, path)
                written = {name: parts[name] for name in ("splits", "chunks")}
            else:
                files = [(chunk_path(stage, chunk["file"]), chunk["digest"]) for chunk in chunks]
                written = write_plan(ChunkFiles(files, stage.command), context, path, mixture)
            unit.result = {"digest": file_digest(path), **written}
    return [
        {
            "context": context,
            "file": plan_file_name(context),
            "digest": result.pop("digest"),
            "mixture": mixture.to_json(),
            **result,
        }
        for context, result in ((context, dict(stage.unit_result(key))) for key, context in keys.items())
    ]


def _plan_of_all_parts(stage: "Stage", context: int, chunks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the plan of a context as its parts were published, None where the cache was not made in parts."""
    so_far = published_parts(stage.work)
    if so_far is None or so_far["chunks"] != chunks:
        return None
    return next(plan for plan in so_far["plans"] if plan["context"] == context)


def say_mixture(stage: "Stage", tokens: dict[str, int]) -> None:
    """Print what an epoch holds of each source, and note what differs from what was asked for."""
    named = {**stage.settings.weights, **stage.settings.token_shares}
    for source in sorted(set(named) - set(tokens)):
        stage.note(f"pack.weights or pack.token_shares names {source}, and no document has that source")
    if not named:
        return
    plans = plan_mixture(tokens, stage.settings)
    for line in describe_mixture(plans):
        stage.say(line)
    for plan in plans:
        if plan.capped:
            stage.note(
                f"{plan.source} is repeated {plan.copies:g} times an epoch, as pack.max_repeats allows, not more"
            )


def write_index(
    stage: "Stage", layout: CacheLayout, encoder: TextEncoder, chunks: list[dict[str, Any]], plans: list[dict[str, Any]]
) -> None:
    """Write index.json, enter every chunk in the ledger, and give the card its numbers."""
    index = describe_cache(recipe_of(stage.settings, stage.seed), encoder, layout.parts, chunks, plans)
    save_index(stage.work / INDEX, index)
    stage.adopt(INDEX)
    for chunk in chunks:
        made = (stage.work / chunk["file"]).is_file()
        stage.adopt(chunk["file"]) if made else stage.keep_published(chunk["file"])
        for source, amounts in chunk["sources"].items():
            stage.ledger.enter("text", source, **amounts)
            stage.ledger.keep("text", source, **amounts)
    stage.result = summarise(index, stage.unit_result("tokenizer"))


def summarise(index: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of the card."""
    stored = sum(chunk["bytes"] for chunk in index["chunks"])
    result: dict[str, Any] = {
        "tokens": index["tokens"],
        "documents": index["documents"],
        "vocabulary": index["vocab_size"],
        "bytes_per_token": round(index["text_bytes"] / max(1, index["tokens"] - index["documents"]), 3),
        "chunks": len(index["chunks"]),
        "parts": len(index["parts"]),
        "stored_bytes_per_token": round(stored / max(1, index["tokens"]), 3),
        "times_smaller_than_text": round(index["text_bytes"] / max(1, stored), 2),
    }
    for plan in index["plans"]:
        splits = plan["splits"]
        padding, tokens = (sum(split[name] for split in splits.values()) for name in ("padding", "tokens"))
        row = {f"{split}_sequences": splits.get(split, {}).get("sequences", 0) for split in ("train", "val")}
        row["padding_percent"] = round(100 * padding / max(1, padding + tokens), 4)
        row["filling_cuts"] = sum(split["filling_cuts"] for split in splits.values())
        if plan["mixture"]["weights"] or plan["mixture"]["rehydration"]:
            row["tokens_per_epoch"] = tokens
            for name in ("documents_left_out", "documents_repeated"):
                row[name] = sum(split[name] for split in splits.values())
        else:
            row["tokens_lost"] = index["tokens"] - tokens
        result[f"context_{plan['context']}"] = row
    if training:
        result["tokenizer_training"] = training
    return result
