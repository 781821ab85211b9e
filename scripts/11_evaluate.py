"""Stage 11: evaluate every model of the run with lm-eval on local tasks, with confidence intervals.

Writes results.json (values, intervals, paired comparisons) and samples.parquet (a folder of parquet files: one row per
model, task, metric and item). Needs no network. Models after fine-tuning are prompted through their chat template, the
pretrained and the untrained model with plain text.
"""

import logging
import os
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import Estimate, run_stage, write_json_atomic

if TYPE_CHECKING:
    from pipeline_lib.config.run import RunConfig
    from pipeline_lib.evaluation.questionnaire import Questionnaire
    from pipeline_lib.stage import Stage


def describe_inputs(config: "RunConfig") -> dict[str, Any]:
    """Identify the task files by content. Raises UserError if one is invalid."""
    from pipeline_lib.config.task_files import read_task_files
    from pipeline_lib.stage import json_digest

    return {name: json_digest(task.model_dump(mode="json")) for name, task in read_task_files(config.evaluate).items()}


def prepare_libraries(stage: "Stage") -> None:
    """Keep the libraries offline, quiet and within the stage's cores; before any of them is imported."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers

    torch.set_num_threads(stage.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def sample_file(model: str, task: str) -> str:
    return f"samples.parquet/{model}.{task}.parquet"


def ask(stage: "Stage", questions: "Questionnaire") -> None:
    """Ask every model its tasks; one (model, task) is a resumable unit, in which finished batches are kept too."""
    import pyarrow.parquet

    from pipeline_lib.evaluation.harness import run_task
    from pipeline_lib.evaluation.kept_answers import KeptAnswers
    from pipeline_lib.evaluation.language_model import load_model
    from pipeline_lib.evaluation.placement import choose_device
    from pipeline_lib.evaluation.questionnaire import MODELS, model_folder
    from pipeline_lib.evaluation.results import samples_table

    settings = stage.settings
    device = choose_device(settings.device)
    units = {f"{model}.{task}": (model, task) for model, task in questions.pairs()}
    loaded_name, loaded = None, None
    for key in stage.todo(units, "evaluating", "model x task"):
        name, task = units[key]
        if name != loaded_name:
            loaded_name = name
            loaded = load_model(model_folder(stage, name), device, settings.dtype, settings.batch_tokens)
        with stage.unit(key) as unit, KeptAnswers(stage, key) as kept:
            loaded.begin_task(kept)
            samples = run_task(
                loaded,
                questions.tasks[task],
                questions.items[task].records,
                MODELS[name].chat,
                settings.document_bytes,
                questions.examples[task],
            )
            table = samples_table(name, task, samples)
            pyarrow.parquet.write_table(table, unit.path(sample_file(name, task)), compression="zstd")
            unit.result = {"shortened_prompts": loaded.scorer.truncated}


def summarise(stage: "Stage", questions: "Questionnaire", left_out: dict[str, list[str]]) -> dict[str, Any]:
    """Return the content of results.json; left_out: {task: examples that ask the same as an item}."""
    from pipeline_lib.evaluation.questionnaire import MODELS
    from pipeline_lib.evaluation.results import Scores, reproducible_numbers
    from pipeline_lib.evaluation.training_copies import TrainingCopies, tell_apart

    settings = stage.settings
    scores = Scores.read(stage.work / sample_file(*pair) for pair in questions.pairs())
    training = {
        MODELS[name].stage: reproducible_numbers(stage.input(MODELS[name].stage).result) for name in settings.models
    }
    return {
        "models": scores.summaries(questions.metrics(), settings.confidence),
        "comparisons": scores.comparisons(settings.comparisons, questions.metrics(), settings.confidence),
        "training": training,
        "prompts": {name: "chat template" if MODELS[name].chat else "plain text" for name in settings.models},
        "tasks": questions.describe(left_out),
        "contamination": tell_apart(TrainingCopies.read(stage), questions, scores, settings.confidence),
        "confidence": settings.confidence,
    }


def example_lines(task: str, description: dict[str, Any]) -> list[str]:
    """Return what the card says of the examples in a task's prompts: nothing when there are none."""
    if not (shots := description["num_fewshot"])["plain text"] and not shots["chat template"]:
        return []
    counts = " and ".join(f"{count} in {prompt}" for prompt, count in shots.items())
    lines = [f"{task}: examples before each item: {counts} ({description['examples']['of']})"]
    if names := description["examples"]["left_out"]:
        lines.append(f"{task}: {len(names)} examples ask the same as an item and are not shown: {', '.join(names[:5])}")
    return lines


def tell(stage: "Stage", questions: "Questionnaire", results: dict[str, Any]) -> None:
    """Put the numbers on the card, and what a reader must know to read them right."""
    from pipeline_lib.evaluation.results import comparison_lines
    from pipeline_lib.evaluation.training_copies import notes

    for line in comparison_lines(results):
        stage.say(f"  {line}")
    for task, description in results["tasks"].items():
        if description["items"] < description["available"]:
            stage.note(f"{task}: a seeded sample of {description['items']} of {description['available']} items")
        for line in example_lines(task, description):
            stage.note(line)
    rolling = [name for name, task in questions.tasks.items() if task.output_type == "loglikelihood_rolling"]
    if stage.settings.document_bytes is not None and rolling:
        stage.note(f"{', '.join(rolling)}: of each document the first {stage.settings.document_bytes:,} bytes")
    plain = [name for name, prompt in results["prompts"].items() if prompt == "plain text"]
    stage.note(f"prompted with plain text: {', '.join(plain) or 'none'}; all others through their chat template")
    for model, task in questions.pairs():
        shortened = stage.unit_result(f"{model}.{task}")["shortened_prompts"]
        if shortened:
            stage.note(f"{model} {task}: {shortened} prompts exceed the model's context and lost their beginning")
    for line in notes(results["contamination"]):
        stage.note(line)
    for model, tasks in results["models"].items():
        values = {
            f"{task} {metric}": entry["value"] for task, metrics in tasks.items() for metric, entry in metrics.items()
        }
        stage.result[model] = values


def run(stage: "Stage") -> None:
    from pipeline_lib.evaluation.questionnaire import Questionnaire, model_folder
    from pipeline_lib.evaluation.task_checks import check_shown_functions, check_tasks

    questions = Questionnaire.read(stage)
    questions.account(stage.ledger, stage.input("01_download").ledger)
    for name in stage.settings.models:  # a damaged model is found before hours of questions, not after
        model_folder(stage, name)
    prepare_libraries(stage)
    left_out = check_tasks(questions)
    check_shown_functions(questions, lambda name: model_folder(stage, name))
    ask(stage, questions)
    results = summarise(stage, questions, left_out)
    write_json_atomic(stage.work / "results.json", results)
    stage.adopt("results.json")
    tell(stage, questions, results)


def estimate(stage: "Stage") -> Estimate:
    """Time the first items of every task and scale up."""
    from pipeline_lib.evaluation.probe import estimate_cost
    from pipeline_lib.evaluation.questionnaire import Questionnaire, model_folder
    from pipeline_lib.evaluation.task_checks import check_shown_functions, check_tasks

    prepare_libraries(stage)
    questions = Questionnaire.read(stage)
    check_tasks(questions)
    check_shown_functions(questions, lambda name: model_folder(stage, name))
    return estimate_cost(stage, questions)


if __name__ == "__main__":
    run_stage("11_eval", run, estimate=estimate, inputs=describe_inputs)
