"""Stage 06, reasoning data: worked solutions become checked conversations in Parquet.

Every source of kind reasoning is read by its formatter, rendered with the tokenizer's chat template, and checked: the
loss mask must cover the assistant's turns and nothing else, and the conversation must fit. What is refused is counted
by reason and listed in dropped.parquet.
"""

from pipeline_lib.stage import Estimate, Stage, run_stage


def run(stage: Stage) -> None:
    from pipeline_lib.post_training.data_kinds import REASONING
    from pipeline_lib.post_training.prepared_data import prepare

    prepare(stage, REASONING)


def estimate(stage: Stage) -> Estimate:
    from pipeline_lib.post_training.data_kinds import REASONING, estimate_preparation

    return estimate_preparation(stage, REASONING)


if __name__ == "__main__":
    run_stage("06_reasoning_data", run, estimate=estimate)
