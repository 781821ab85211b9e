"""Stage 08: original preference records become checked pairs in Parquet.

Every source of kind preference is read by its formatter into a prompt and two answers, rendered with the tokenizer's
chat template, and checked: the answers must differ in the tokens that training will see. What is refused is counted
by reason and listed in dropped.parquet.
"""

from pipeline_lib.stage import Estimate, Stage, run_stage


def run(stage: Stage) -> None:
    from pipeline_lib.post_training.data_kinds import PREFERENCES
    from pipeline_lib.post_training.prepared_data import prepare

    prepare(stage, PREFERENCES)


def estimate(stage: Stage) -> Estimate:
    from pipeline_lib.post_training.data_kinds import PREFERENCES, estimate_preparation

    return estimate_preparation(stage, PREFERENCES)


if __name__ == "__main__":
    run_stage("08_dpo_data", run, estimate=estimate)
