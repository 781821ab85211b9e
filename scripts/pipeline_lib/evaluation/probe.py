"""What an evaluation would cost: a few items of every task on the last model, timed and scaled up."""

import resource
import time
from typing import TYPE_CHECKING

from pipeline_lib.stage import Estimate

from .questionnaire import MODELS, Questionnaire, model_folder

if TYPE_CHECKING:
    from pipeline_lib.stage import Stage

PROBE_ITEMS = 8
BYTES_PER_SAMPLE = 150


def estimate_cost(stage: "Stage", questions: Questionnaire) -> Estimate:
    """Return time, memory and disk of the whole stage, from PROBE_ITEMS items per task on one model."""
    from .harness import run_task
    from .language_model import choose_device, load_model

    settings = stage.settings
    name = settings.models[-1]
    started = time.perf_counter()
    model = load_model(model_folder(stage, name), choose_device(settings.device), settings.dtype, settings.batch_tokens)
    loading = time.perf_counter() - started
    seconds, samples = loading * len(settings.models), 0
    per_item = {}
    for task, task_file in questions.tasks.items():
        records = questions.items[task].records[:PROBE_ITEMS]
        started = time.perf_counter()
        run_task(model, task_file, records, MODELS[name].chat, settings.document_bytes)
        per_item[task] = (time.perf_counter() - started) / len(records)
    for _, task in questions.pairs():
        count = len(questions.items[task].records)
        seconds += per_item[task] * count
        samples += count
    return Estimate(
        seconds=seconds,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        disk_bytes=samples * BYTES_PER_SAMPLE,
        basis=f"{PROBE_ITEMS} items of each task on the model {name}; larger batches run faster than the probe",
    )
