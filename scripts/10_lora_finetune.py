"""Stage 10: adapt the aligned model to a domain with LoRA or QLoRA, then merge.

Low-rank adapters are trained on the domain's examples, mixed with a share of the general instruction data, and
merged into an ordinary model. Checkpoints continue bit for bit. Writes adapter/, merged/ (model and tokenizer) and
metrics.jsonl.
"""

from pipeline_lib.stage import Stage, run_stage


def run(stage: Stage) -> None:
    from pipeline_lib.post_training.training_setup import prepare_libraries

    prepare_libraries(stage)
    from pipeline_lib.post_training.adapters import adapt

    adapt(stage)


if __name__ == "__main__":
    run_stage("10_lora", run)
