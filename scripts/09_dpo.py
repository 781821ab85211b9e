"""Stage 09: direct preference optimisation.

TRL's DPOTrainer on the preference pairs, starting from the fine-tuned model, which is also the reference it is held
to. Checkpoints continue bit for bit. Writes final/ (model and tokenizer) and metrics.jsonl.
"""

from pipeline_lib.stage import Estimate, Stage, run_stage


def run(stage: Stage) -> None:
    from pipeline_lib.post_training.training_setup import prepare_libraries

    prepare_libraries(stage)
    from pipeline_lib.post_training.preference import align

    align(stage)


def estimate(stage: Stage) -> Estimate:
    from pipeline_lib.post_training.training_probe import estimate_training

    data = stage.input("08_dpo_data").result
    tokens = data["tokens"] / (2 * (data["train"] + data["val"]))
    folder = stage.input("07_sft").folder("final")
    return estimate_training(stage, folder, data["train"], tokens, 2, forward_share=1 / 3, held_out=data["val"])


if __name__ == "__main__":
    run_stage("09_dpo", run, estimate=estimate)
