"""Stage 03: train a tokenizer, encode the text, and pack it into sequences.

Tokens are stored once, in shuffled compressed chunks; a plan per context length says which pieces of which documents
make up each training sequence. No token is lost, padding is at most 0.1 %, and cuts made for that are counted. Text
that is added later becomes new chunks, a damaged chunk is made again alone, and two processes share the work (--mode
inverse starts from the other end). `--trace SEQUENCE` shows where a training sequence comes from.
"""

import os
from typing import TYPE_CHECKING

from pipeline_lib.stage import GO_ON, Estimate, UserError, bytes_digest, run_stage

if TYPE_CHECKING:
    import argparse

    from pipeline_lib.config.run import RunConfig
    from pipeline_lib.stage import ActionContext, Stage

PROBED_BYTES = 2_000_000


def describe_inputs(config: "RunConfig") -> dict[str, str]:
    """Identify an existing tokenizer by the content of its files."""
    if config.pack.tokenizer is None:
        return {}
    from pipeline_lib.packing.tokenizer_folder import resolve_tokenizer, tokenizer_files

    files = tokenizer_files(resolve_tokenizer(config.pack.tokenizer))
    return {path.name: bytes_digest(path.read_bytes()) for path in files}


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    parser.add_argument(
        "--mode",
        choices=["forward", "inverse", "verify", "repair"],
        help="forward: make what is missing, from the first chunk on (default); inverse: read every file, make what is"
        " missing or damaged, from the last chunk on; verify: read every file, change nothing; repair: like inverse,"
        " but from the first chunk on",
    )
    parser.add_argument("--force-rebuild", dest="force", action="store_true", help="the same as --force")
    parser.add_argument("--trace", metavar="SEQUENCE", help="print where a packed sequence comes from; CONTEXT:SEQUENCE"
                        " or CONTEXT:val:SEQUENCE for another plan or split")  # fmt: skip


def choose_mode(context: "ActionContext", mode: str) -> int | str:
    from pipeline_lib.packing.maintenance import mark_damage, verify_cache

    if mode == "verify":
        return verify_cache(context.stage_folder, context.command)
    if context.config.packed:
        raise UserError(f"--mode {mode}: the run starts from {context.config.packed}; repair it where it was made")
    if context.plan:
        return GO_ON
    if mode in ("repair", "inverse"):
        mark_damage(context.stage_folder)
    return GO_ON


def trace(context: "ActionContext", place: str) -> None:
    from pipeline_lib.packing.trace import print_sequence

    print_sequence(context, place)


def prepare_process(stage: "Stage") -> None:
    os.environ["RAYON_NUM_THREADS"] = str(stage.threads)  # gigatoken starts its threads at the first call


def run(stage: "Stage") -> None:
    prepare_process(stage)
    from pipeline_lib.packing.build_chunks import bound_memory, list_chunks, make_chunks
    from pipeline_lib.packing.build_plans import write_index, write_plans
    from pipeline_lib.packing.build_tokenizer import check_encoder, make_tokenizer, write_tokenizer_report
    from pipeline_lib.packing.kept_parts import lay_out
    from pipeline_lib.packing.licenses import write_licenses
    from pipeline_lib.packing.shards import plan_runs, require_text

    layout = lay_out(stage)
    runs = plan_runs(list(layout.paths.values()))
    require_text(runs)
    bound_memory(runs)
    encoder = make_tokenizer(stage, layout)
    check_encoder(stage, encoder, runs)
    write_tokenizer_report(stage, encoder, runs)
    made = make_chunks(stage, layout, encoder, backwards=stage.flags.get("mode") == "inverse")
    chunks = list_chunks(stage, layout, made)
    write_index(stage, layout, encoder, chunks, write_plans(stage, chunks))
    write_licenses(stage, list(layout.paths.values()))


def share(stage: "Stage") -> None:
    prepare_process(stage)
    from pipeline_lib.packing.build_chunks import share_work

    share_work(stage)


def estimate(stage: "Stage") -> Estimate:
    from pipeline_lib.packing.mixture_plan import describe_mixture, plan_mixture
    from pipeline_lib.packing.probe import probe_packing
    from pipeline_lib.packing.shards import plan_runs
    from pipeline_lib.packing.vocabulary_forecast import foresee_vocabulary

    runs = plan_runs(stage.input("02_clean").files("part-*.parquet"))
    estimated, bytes_per_token = probe_packing(runs, stage.settings, PROBED_BYTES)
    ledger = stage.input("02_clean").ledger.items()
    cleaned = {source: entry.kept[1] for flow, source, entry in ledger if flow == "text"}
    if warning := foresee_vocabulary(runs, sum(cleaned.values()), stage.settings, PROBED_BYTES):
        print(f"  WARNING {warning}")
    if stage.settings.weights or stage.settings.token_shares:
        plans = plan_mixture(cleaned, stage.settings, bytes_per_token)
        print(f"  mixture, at {bytes_per_token:.2f} bytes of text per token")
        print("\n".join(describe_mixture(plans, "bytes")))
    return Estimate(**estimated)


if __name__ == "__main__":
    run_stage(
        "03_packed",
        run,
        estimate=estimate,
        inputs=describe_inputs,
        extra_arguments=add_arguments,
        actions={"mode": choose_mode, "trace": trace},
        join=share,
    )
