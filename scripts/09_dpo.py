"""Stage 09: direct preference optimisation.

TRL's DPOTrainer on the preference pairs, starting from the fine-tuned model, which is also the reference it is held to.
Checkpoints continue bit for bit. Writes final/ (model and tokenizer) and metrics.jsonl.
"""

from pipeline_lib.stage import Stage, run_stage


def run(stage: Stage) -> None:
    from pipeline_lib.post_training.training_setup import prepare_libraries

    prepare_libraries(stage)
    from pipeline_lib.post_training.preference import align

    align(stage)


if __name__ == "__main__":
    run_stage("09_dpo", run)
