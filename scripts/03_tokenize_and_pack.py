"""Stage 03: train a tokenizer, encode the text, and pack it into sequences.

Tokens are stored once, in shuffled compressed chunks; a plan per context length says which pieces of which documents
make up each training sequence. No token is lost, and a document that fits into the context is never cut.
"""

import os
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import (
    Estimate,
    StageFailure,
    UserError,
    bytes_digest,
    file_digest,
    run_stage,
    write_json_atomic,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline_lib.config.pack import PackSettings
    from pipeline_lib.packing.shards import Run
    from pipeline_lib.packing.text_encoder import TextEncoder
    from pipeline_lib.stage import Stage

CHECKED_BYTES = 1_000_000
PROBED_BYTES = 2_000_000


def describe_inputs(settings: "PackSettings") -> dict[str, str]:
    """Identify an existing tokenizer by the content of its files."""
    if settings.tokenizer is None:
        return {}
    from pipeline_lib.config import resolve_path
    from pipeline_lib.packing.tokenizer_folder import tokenizer_files

    return {path.name: bytes_digest(path.read_bytes()) for path in tokenizer_files(resolve_path(settings.tokenizer))}


def run(stage: "Stage") -> None:
    os.environ["RAYON_NUM_THREADS"] = str(stage.threads)  # gigatoken starts its threads at the first call
    from pipeline_lib.packing.shards import plan_runs
    from pipeline_lib.packing.text_encoder import TextEncoder

    runs = plan_runs(stage.input("02_clean").files("part-*.parquet"))
    make_tokenizer(stage, runs)
    encoder = TextEncoder(stage.work / "tokenizer")
    check_encoder(stage, encoder, runs)
    encode(stage, encoder, runs)
    chunks = write_chunks(stage, encoder, runs)
    plans = write_plans(stage, chunks)
    write_index(stage, encoder, chunks, plans)


def make_tokenizer(stage: "Stage", runs: "list[Run]") -> None:
    """Train a tokenizer or copy the one the settings name, with the number of bytes of each token beside it."""
    import numpy as np

    from pipeline_lib.config import resolve_path
    from pipeline_lib.packing.shards import training_batches
    from pipeline_lib.packing.text_encoder import TextEncoder
    from pipeline_lib.packing.tokenizer_folder import copy_tokenizer
    from pipeline_lib.packing.trained_tokenizer import train_tokenizer, write_tokenizer

    settings = stage.settings
    for key in stage.todo(["tokenizer"], "making the tokenizer"):
        with stage.unit(key) as unit:
            folder = unit.path("tokenizer")
            if settings.tokenizer is not None:
                copy_tokenizer(resolve_path(settings.tokenizer), folder)
            else:
                batches = training_batches(runs, stage.seed, settings.training_bytes)
                write_tokenizer(folder, train_tokenizer(batches, settings.vocab_size, settings.min_pair_count))
            with open(unit.path("token_bytes.npy"), "wb") as stream:
                np.save(stream, TextEncoder(folder).token_bytes(), allow_pickle=False)


def check_encoder(stage: "Stage", encoder: "TextEncoder", runs: "list[Run]") -> None:
    """Prove on a sample of this run that two tokenizer implementations agree and that no text is lost."""
    from pipeline_lib.packing.shards import sample_texts
    from pipeline_lib.packing.text_encoder import PROBES
    from pipeline_lib.packing.tokenizer_folder import chat_template_is_trainable

    texts = [*PROBES, *sample_texts(runs, CHECKED_BYTES)]
    encoder.check_against_hugging_face(texts)
    if not encoder.is_lossless(texts):
        if stage.settings.tokenizer is None:
            raise StageFailure("the trained tokenizer does not give a text back unchanged; please report this defect")
        stage.note("the given tokenizer rewrites text: decoding does not give it back, bits per byte are approximate")
    if not chat_template_is_trainable(encoder.folder):
        stage.note("the given tokenizer has no chat template with generation markers: fine-tuning needs another one")


def encode(stage: "Stage", encoder: "TextEncoder", runs: "list[Run]") -> None:
    """Encode every run of shards into a file of the work folder that only lives until the chunks are written."""
    from pipeline_lib.packing.encoded_runs import encode_run
    from pipeline_lib.stage import atomic_path

    by_key = {f"encode {run.key}": run for run in runs}
    for key in stage.todo(by_key, "encoding", "runs"):
        with stage.unit(key) as unit, atomic_path(encoded_path(stage, by_key[key])) as path:
            encode_run(by_key[key], encoder, stage.seed, path)
            unit.result = {"digest": file_digest(path)}


def encoded_path(stage: "Stage", run: "Run") -> "Path":
    return stage.work / "encoded" / f"{run.key}.arrow"


def write_chunks(stage: "Stage", encoder: "TextEncoder", runs: "list[Run]") -> list[str]:
    """Write the shuffled documents as chunk files; return their names, train before val."""
    from pipeline_lib.packing.chunk_format import encode_chunk
    from pipeline_lib.packing.encoded_runs import EncodedRuns

    encoded = EncodedRuns(verified_encodings(stage, runs), stage.settings.val_fraction)
    if encoded.val_is_one_document:
        stage.note("no document fell into the validation share, so one was taken; raise pack.val_fraction or add text")
    ranges = encoded.cut(stage.settings.chunk_tokens)
    names = {f"chunk-{number:05d}": documents for number, documents in enumerate(ranges)}
    for key in stage.todo(names, "writing chunks", "chunks"):
        with stage.unit(key) as unit:
            content, text_bytes, split = encoded.gather(*names[key])
            description = {
                "split": split,
                "vocab_size": encoder.vocab_size,
                "separator_id": encoder.special.separator,
                "text_bytes": int(text_bytes.sum()),
            }
            unit.path(f"chunks/{key}.lz4").write_bytes(encode_chunk(content, description, stage.settings.lz4_level))
            for code, source in enumerate(content.sources):
                mine = content.source == code
                amount = {
                    "documents": int(mine.sum()),
                    "bytes": int(text_bytes[mine].sum()),
                    "tokens": int((content.offsets[1:] - content.offsets[:-1])[mine].sum()),
                }
                unit.ledger.enter("text", source, **amount)
                unit.ledger.keep("text", source, **amount)
    return [f"chunks/{key}.lz4" for key in names]


def verified_encodings(stage: "Stage", runs: "list[Run]") -> "list[Path]":
    """Return the encoded runs after checking that they are what was written. Raises UserError."""
    paths = [encoded_path(stage, run) for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if not path.is_file() or file_digest(path) != stage.unit_result(f"encode {run.key}")["digest"]:
            raise UserError(f"{path} is missing or damaged; start again with --force")
    return paths


def write_plans(stage: "Stage", chunks: list[str]) -> dict[int, dict[str, dict[str, int]]]:
    """Write one packing plan per context length; return {context: {split: counts}}."""
    from pipeline_lib.packing.chunk_format import ChunkFile
    from pipeline_lib.packing.packing_plan import plan_file_name, write_plan

    keys = {f"plan-{context}": context for context in stage.settings.contexts}
    for key in stage.todo(keys, "planning sequences", "context lengths"):
        with stage.unit(key) as unit:
            files = [ChunkFile(stage.work / name) for name in chunks]
            unit.result = write_plan(files, keys[key], unit.path(plan_file_name(keys[key])))
    return {context: stage.unit_result(key) for key, context in keys.items()}


def write_index(stage: "Stage", encoder: "TextEncoder", chunks: list[str], plans: dict[int, Any]) -> None:
    """Write index.json and the numbers of the card."""
    from pipeline_lib.packing.cache_index import describe_cache

    index = describe_cache(stage.work, chunks, plans, encoder)
    write_json_atomic(stage.work / "index.json", index)
    stage.adopt("index.json")
    stage.result = {
        "tokens": index["tokens"],
        "documents": index["documents"],
        "vocabulary": index["vocab_size"],
        "bytes_per_token": round(index["text_bytes"] / max(1, index["tokens"] - index["documents"]), 3),
        "chunks": len(chunks),
        "stored_bytes_per_token": round(sum(chunk["bytes"] for chunk in index["chunks"]) / index["tokens"], 3),
    }
    for context, splits in plans.items():
        padding = sum(split["padding"] for split in splits.values())
        sequences = {name: split["sequences"] for name, split in splits.items()}
        share = padding / (padding + index["tokens"])
        stage.result[f"context_{context}"] = {
            "train_sequences": sequences.get("train", 0),
            "val_sequences": sequences.get("val", 0),
            "padding_percent": round(100 * share, 4),
            "tokens_lost": index["tokens"] - sum(split["tokens"] for split in splits.values()),
        }


def estimate(stage: "Stage") -> Estimate:
    from pipeline_lib.packing.probe import probe_packing
    from pipeline_lib.packing.shards import plan_runs

    runs = plan_runs(stage.input("02_clean").files("part-*.parquet"))
    return Estimate(**probe_packing(runs, stage.settings, PROBED_BYTES))


if __name__ == "__main__":
    run_stage("03_packed", run, estimate=estimate, inputs=describe_inputs)
