"""Pretrain the model of stage 04 on the packed cache of stage 03.

Writes final/ (a Hugging Face directory with tokenizer), metrics.jsonl (one line per step), and, as records of this
machine, checkpoints/, timings.jsonl and tensorboard/. It can be killed at any instant: started again it continues from
the newest valid checkpoint and ends with the same final/ and metrics.jsonl to the last bit (docs/resume.md).
"""

from pipeline_lib.stage import Estimate, Stage, run_stage


def run(stage: Stage) -> None:
    from pipeline_lib.pretraining.inputs import open_training_inputs
    from pipeline_lib.pretraining.logbook import open_logbook
    from pipeline_lib.pretraining.loop import train
    from pipeline_lib.pretraining.outcome import save_final_model, summarise
    from pipeline_lib.pretraining.run_state import restore_run
    from pipeline_lib.pretraining.setup import prepare_run

    inputs = open_training_inputs(stage)
    training = prepare_run(stage, inputs.load_model(), inputs.horizon, inputs.probe())
    resumed = restore_run(training, stage.work / "checkpoints", stage.say)
    if resumed:
        stage.say(f"  continuing from {resumed.name}, {training.step:,} of {inputs.horizon.steps:,} steps done")
    with open_logbook(stage.work, training, resumed is not None, stage.settings.tensorboard) as book:
        saving = train(stage, training, inputs.data, book)
    save_final_model(training.model, inputs.tokenizer_files, stage.work / "final")
    for name, is_record in (("final", False), ("metrics.jsonl", False), ("timings.jsonl", True), ("checkpoints", True)):
        stage.adopt(name, record=is_record)
    if stage.settings.tensorboard:
        stage.adopt("tensorboard", record=True)
    stage.result = summarise(stage.work / "metrics.jsonl", training, inputs, saving)


def estimate(stage: Stage) -> Estimate:
    from pipeline_lib.pretraining.cost import expected_cost
    from pipeline_lib.pretraining.inputs import open_training_inputs

    return expected_cost(stage.settings, stage.threads, open_training_inputs(stage))


if __name__ == "__main__":
    run_stage("05_pretrain", run, estimate=estimate)
