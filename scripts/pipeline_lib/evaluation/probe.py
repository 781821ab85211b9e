"""What an evaluation would cost: a few items of every task, timed and scaled up.

Each task is timed on the last model that it is asked of, since evaluate.skip may keep it from others; a task that shows
plain-text and chat models different numbers of examples, whose prompts differ in length, on the last one of either.
"""

import time
from typing import TYPE_CHECKING

from pipeline_lib.oom_handler import is_out_of_memory
from pipeline_lib.stage import Estimate, StageFailure
from pipeline_lib.stage.memory import own_peak_bytes

from .questionnaire import MODELS, Questionnaire, model_folder

if TYPE_CHECKING:
    from pipeline_lib.stage import Stage

    from .language_model import EvaluatedModel

FEW_ITEMS, MORE_ITEMS = 8, 48
BYTES_PER_SAMPLE = 150


def estimate_cost(stage: "Stage", questions: Questionnaire) -> Estimate:
    """Return time, memory and disk of the whole stage, from two small samples of every task.

    Two sizes tell what asking a task costs at all from what one more item costs. Raises StageFailure when memory runs
    out.
    """
    from .language_model import load_model
    from .placement import choose_device

    settings = stage.settings
    costs: dict[tuple[str, bool | None], tuple[float, float]] = {}
    loading = []
    timed = timed_models(questions)
    for name, tasks in timed.items():
        started = time.perf_counter()
        folder = model_folder(stage, name)
        model = load_model(folder, choose_device(settings.device), settings.dtype, settings.batch_tokens)
        loading.append(time.perf_counter() - started)
        for task in tasks:
            costs[task, _kind(questions, name, task)] = _time_task(questions, model, name, task)
    seconds, samples = max(loading, default=0.0) * len({model for model, _ in questions.pairs()}), 0
    for model_name, task in questions.pairs():
        at_all, per_item = costs[task, _kind(questions, model_name, task)]
        count = len(questions.items[task].records)
        seconds += at_all + per_item * count
        samples += count
    return Estimate(
        seconds=seconds,
        memory_bytes=own_peak_bytes(),
        disk_bytes=samples * BYTES_PER_SAMPLE,
        basis=f"{FEW_ITEMS} and {MORE_ITEMS} items of each task on the model {' or '.join(timed)}",
    )


def timed_models(questions: Questionnaire) -> dict[str, list[str]]:
    """Return {model: the tasks that are timed on it}: each on the last model of its kind that it is asked of."""
    last = {(task, _kind(questions, model, task)): model for model, task in questions.pairs()}
    timed: dict[str, list[str]] = {}
    for (task, _), model in last.items():
        timed.setdefault(model, []).append(task)
    return timed


def _kind(questions: Questionnaire, model: str, task: str) -> bool | None:
    """Return whether a model is prompted through its chat template, None where that changes no number of examples."""
    file = questions.tasks[task]
    return None if file.shots(chat=False) == file.shots(chat=True) else MODELS[model].chat


def _time_task(questions: Questionnaire, model: "EvaluatedModel", name: str, task: str) -> tuple[float, float]:
    """Return the seconds that asking a model a task takes at all, and those for each item."""
    from .harness import run_task

    settings = questions.settings

    def time_items(count: int) -> tuple[int, float]:
        records = questions.items[task].records[:count]
        started = time.perf_counter()
        try:
            run_task(
                model,
                questions.tasks[task],
                records,
                MODELS[name].chat,
                settings.document_bytes,
                questions.examples[task],
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise StageFailure(
                f"out of memory with batches of {settings.batch_tokens:,} tokens ({task}), which the evaluation would"
                " do in halves; lower evaluate.batch_tokens"
            ) from None
        return len(records), time.perf_counter() - started

    time_items(1)  # warms up
    (few, short), (more, long) = time_items(FEW_ITEMS), time_items(MORE_ITEMS)
    per_item = max(long - short, 0.0) / (more - few) if more > few else long / more
    return max(long - more * per_item, 0.0), per_item
