"""Stage 07: supervised fine-tuning on conversations.

TRL's SFTTrainer on the instruction and reasoning data, starting from the pretrained model; only the assistant's
tokens bear a loss. Checkpoints continue bit for bit. Writes final/ (model and tokenizer) and metrics.jsonl.
"""

from pipeline_lib.stage import Estimate, Stage, run_stage


def run(stage: Stage) -> None:
    from pipeline_lib.post_training.training_setup import prepare_libraries

    prepare_libraries(stage)
    from pipeline_lib.post_training.supervised import fine_tune

    fine_tune(stage)


def estimate(stage: Stage) -> Estimate:
    from pipeline_lib.post_training.training_probe import estimate_training

    data = [stage.input(name) for name in ("06_sft_data", "06_reasoning_data")]
    examples = sum(source.result["train"] for source in data)
    tokens = sum(source.result["tokens"] for source in data)
    documents = sum(source.result["train"] + source.result["val"] for source in data)
    folder = stage.input("05_pretrain").folder("final")
    return estimate_training(stage, folder, examples, tokens / documents, 1, held_out=documents - examples)


if __name__ == "__main__":
    run_stage("07_sft", run, estimate=estimate)
