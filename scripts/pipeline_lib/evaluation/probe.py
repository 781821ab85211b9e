"""What an evaluation would cost: a few items of every task on the last model, timed and scaled up."""

import time
from typing import TYPE_CHECKING

from pipeline_lib.oom_handler import is_out_of_memory
from pipeline_lib.stage import Estimate, StageFailure
from pipeline_lib.stage.memory import own_peak_bytes

from .questionnaire import MODELS, Questionnaire, model_folder

if TYPE_CHECKING:
    from pipeline_lib.stage import Stage

FEW_ITEMS, MORE_ITEMS = 8, 48
BYTES_PER_SAMPLE = 150


def estimate_cost(stage: "Stage", questions: Questionnaire) -> Estimate:
    """Return time, memory and disk of the whole stage, from two small samples of every task on one model.

    Two sizes tell what asking a task costs at all from what one more item costs. Raises StageFailure when memory runs
    out.
    """
    from .harness import run_task
    from .language_model import load_model
    from .placement import choose_device

    settings = stage.settings
    name = settings.models[-1]
    started = time.perf_counter()
    model = load_model(model_folder(stage, name), choose_device(settings.device), settings.dtype, settings.batch_tokens)
    seconds, samples = (time.perf_counter() - started) * len(settings.models), 0

    def time_items(task: str, count: int) -> tuple[int, float]:
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

    costs = {}
    for task in questions.tasks:
        time_items(task, 1)  # warms up
        (few, short), (more, long) = time_items(task, FEW_ITEMS), time_items(task, MORE_ITEMS)
        per_item = max(long - short, 0.0) / (more - few) if more > few else long / more
        costs[task] = (max(long - more * per_item, 0.0), per_item)
    for _, task in questions.pairs():
        count = len(questions.items[task].records)
        seconds += costs[task][0] + costs[task][1] * count
        samples += count
    return Estimate(
        seconds=seconds,
        memory_bytes=own_peak_bytes(),
        disk_bytes=samples * BYTES_PER_SAMPLE,
        basis=f"{FEW_ITEMS} and {MORE_ITEMS} items of each task on the model {name}",
    )
