"""Stage 10: adapt the aligned model to a domain with LoRA or QLoRA, then merge.

Low-rank adapters are trained on the domain's examples, mixed with a share of the general instruction data, and
merged into an ordinary model. Checkpoints continue bit for bit. Writes adapter/, merged/ (model and tokenizer) and
metrics.jsonl.
"""

from pipeline_lib.stage import Estimate, Stage, run_stage


def run(stage: Stage) -> None:
    from pipeline_lib.post_training.training_setup import prepare_libraries

    prepare_libraries(stage)
    from pipeline_lib.post_training.adapters import adapt

    adapt(stage)


def estimate(stage: Stage) -> Estimate:
    from pipeline_lib.post_training.held_out import expected_held_out
    from pipeline_lib.post_training.training_probe import estimate_training

    general = stage.input("06_sft_data").result
    domain = stage.input("01_download").ledger.total("domain")["documents"]
    examples = round(domain / (1 - stage.settings.general_share))
    mean = general["tokens"] / (general["train"] + general["val"])
    held_out = expected_held_out(domain, stage.settings.val_fraction, stage.settings.val_examples)
    folder = stage.input("09_dpo").folder("final")
    return estimate_training(stage, folder, examples, mean, 1, adapters=True, held_out=held_out)


if __name__ == "__main__":
    run_stage("10_lora", run, estimate=estimate)
