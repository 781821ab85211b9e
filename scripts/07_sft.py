"""Stage 07: supervised fine-tuning on conversations.

TRL's SFTTrainer on the instruction and reasoning data, starting from the pretrained model; only the assistant's
tokens bear a loss. Checkpoints continue bit for bit. Writes final/ (model and tokenizer) and metrics.jsonl.
"""

from pipeline_lib.stage import Stage, run_stage


def run(stage: Stage) -> None:
    from pipeline_lib.post_training.training_setup import prepare_libraries

    prepare_libraries(stage)
    from pipeline_lib.post_training.supervised import fine_tune

    fine_tune(stage)


if __name__ == "__main__":
    run_stage("07_sft", run)
