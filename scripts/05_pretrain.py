"""Pretrain the model of stage 04 on the packed cache of stage 03.

Writes final/ (a Hugging Face directory with tokenizer), metrics.jsonl (one line per step), and, as records of this
machine, checkpoints/, timings.jsonl and tensorboard/. It can be killed at any instant: started again it continues from
the newest valid checkpoint and ends with the same final/ and metrics.jsonl to the last bit (docs/resume.md). Under
torchrun several processes share the work (docs/scale_out.md): all of them train, the first one writes.
"""

from typing import TYPE_CHECKING, Any

from pipeline_lib.heavy_imports import collector_paused
from pipeline_lib.pretraining.launch import run_on_all_processes
from pipeline_lib.stage import ActionContext, Estimate, Stage

if TYPE_CHECKING:
    import argparse

    from pipeline_lib.pretraining.outcome import Outcome


def train_together(stage: Stage) -> "Outcome":
    with collector_paused():
        from pipeline_lib.pretraining.accumulation import take_over
        from pipeline_lib.pretraining.cost import predict_once
        from pipeline_lib.pretraining.distribution import join
        from pipeline_lib.pretraining.growing import await_all_text
        from pipeline_lib.pretraining.inputs import open_training_inputs
        from pipeline_lib.pretraining.logbook import open_logbook
        from pipeline_lib.pretraining.loop import train
        from pipeline_lib.pretraining.outcome import finish
        from pipeline_lib.pretraining.run_state import restore_run
        from pipeline_lib.pretraining.setup import prepare_run
        from pipeline_lib.pretraining.strategy import choose_strategy

    inputs = open_training_inputs(stage)
    processes = choose_strategy(stage, join(stage.settings.strategy), inputs)
    training = prepare_run(stage, inputs, processes)
    prediction = predict_once(stage, training, inputs)
    resumed = restore_run(training, stage.work / "checkpoints", stage.say)
    if resumed:
        stage.say(f"  continuing from {resumed.name}, {training.step:,} of {inputs.horizon.steps:,} steps done")
    if (said := take_over(training, stage.work)) is not None:
        stage.note(said)
    name = stage.run_folder.name
    with open_logbook(stage.work, training, resumed is not None, stage.settings, name, stage.note) as book:
        saving = train(stage, training, inputs.data, book)
    await_all_text(stage, training, inputs.data)
    return finish(training, inputs, saving, prediction)


def run(stage: Stage) -> None:
    outcome = train_together(stage)
    outcome.save_final_model(stage.work / "final")
    for name, is_record in (("final", False), ("metrics.jsonl", False), ("timings.jsonl", True), ("checkpoints", True)):
        stage.adopt(name, record=is_record)
    for name in ("tensorboard", "trackers", "incidents"):
        if (stage.work / name).exists():
            stage.adopt(name, record=True)
    outcome.text.account(stage.ledger)
    stage.result = outcome.summarise(stage.work)
    outcome.note_prediction(stage)


def continue_with(stage: Stage, saved: dict[str, Any], present: dict[str, Any]) -> Any:
    from pipeline_lib.pretraining.resume_plan import continue_with

    return continue_with(stage, saved, present)


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    parser.add_argument(
        "--resume_plan", "--resume-plan", action="store_const", const=True,
        help="say how unfinished training would continue: what differs, what overrides, the learning rate",
    )  # fmt: skip
    parser.add_argument(
        "--replay", type=int, metavar="STEP",
        help="do a step again that was a spike or not finite: is it the same bit for bit, which documents stand out",
    )  # fmt: skip
    parser.add_argument("--trace", metavar="STEP", help="list the documents that a step reads; STEP:ROW prints one of"
                        " its sequences with text, file, row, licence and scores")  # fmt: skip


def replay(context: ActionContext, step: int) -> int:
    from pipeline_lib.pretraining.incidents import replay

    return replay(context, step)


def trace(context: ActionContext, step: str) -> None:
    from pipeline_lib.pretraining.trace_step import print_step

    print_step(context, step)


def resume_plan(context: ActionContext, _: bool) -> int:
    from pipeline_lib.pretraining.resume_plan import print_resume_plan

    return print_resume_plan(context)


def estimate(stage: Stage) -> Estimate:
    from pipeline_lib.pretraining.cost import expected_cost
    from pipeline_lib.pretraining.inputs import open_training_inputs

    return expected_cost(stage, open_training_inputs(stage))


if __name__ == "__main__":
    run_on_all_processes(
        "05_pretrain",
        run,
        estimate,
        follow=train_together,
        extra_arguments=add_arguments,
        actions={"resume_plan": resume_plan, "replay": replay, "trace": trace},
        continue_with=continue_with,
    )
