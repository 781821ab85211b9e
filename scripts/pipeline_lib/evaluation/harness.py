"""One model, one task: lm-eval asks, and every item's score comes back as a row.

lm-eval builds the prompts (templates, chat format), sends them to the model, extracts answers and scores them. We hand
it the records in memory, so that nothing is looked up on a hub or cached elsewhere, and take its scores per item rather
than its averages, because intervals and paired comparisons need the items.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.task_files import TaskFile
from pipeline_lib.stage import StageFailure, UserError

from .few_shot import Example, fewshot_config, show_examples
from .items import ID
from .record_keys import check_records

if TYPE_CHECKING:
    from .language_model import EvaluatedModel
    from .local_task import LocalTask

_LONGEST_TEXT = 500


@dataclass(frozen=True)
class Sample:
    """The score of one item.

    score: 0 or 1, or bits per byte; weight: 1, or bytes of the text. The metric's value is the weighted mean.
    response and target: what the model said or chose and what was right, shortened, for a person to read.
    """

    metric: str
    item: str
    score: float
    weight: float
    response: str
    target: str


def run_task(
    model: "EvaluatedModel",
    task_file: TaskFile,
    records: Sequence[dict[str, Any]],
    chat: bool,
    document_bytes: int | None,
    examples: Sequence[Example] = (),
) -> list[Sample]:
    """Ask one model the items of one task and return one Sample per metric and item, in the order of the items.

    chat: prompt through the model's chat template; document_bytes: length to which whole-text items are cut; examples:
    what prompts may show (few_shot.py). Raises UserError when a record lacks what the task's templates name, or does
    not fit them.
    """
    from jinja2 import TemplateError
    from lm_eval.evaluator import evaluate

    if chat and not model.tokenizer.chat_template:
        raise UserError("the model's tokenizer has no chat template, which its prompts need")
    task = build_task(task_file, records, chat, document_bytes, examples)
    try:
        answers = evaluate(
            model,
            {"tasks": {task_file.task: task}},
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat,
            fewshot_as_multiturn=True,
        )
    except TemplateError as error:
        raise UserError(f"task {task_file.task}: a record does not fit its templates: {error.message}") from None
    by_position = {sample["doc_id"]: sample for sample in answers["samples"][task_file.task]}
    if sorted(by_position) != list(range(len(records))):
        raise StageFailure(f"{task_file.task}: lm-eval returned {len(by_position)} of {len(records)} items")
    ordered = [by_position[position] for position in range(len(records))]
    return [_to_sample(task, task_file, name, sample) for name in task_file.metrics for sample in ordered]


def build_task(
    task_file: TaskFile,
    records: Sequence[dict[str, Any]],
    chat: bool,
    document_bytes: int | None,
    examples: Sequence[Example] = (),
) -> "LocalTask":
    """Return the lm-eval task with `records` as its data set. Raises UserError naming the task on a misfit."""
    import datasets
    from jinja2 import TemplateError

    from .local_task import LocalTask

    config = lm_eval_config(task_file, chat) | fewshot_config(task_file, chat, examples)
    kind: type[LocalTask] = LocalTask
    if task_file.output_type == "function_calls":
        from .call_task import KEYS, CallTask, call_records

        if not chat:
            raise UserError(
                f"task {task_file.task}: a chat template shows functions, and init and pretrained are prompted without"
                f" one; add init.{task_file.task} and pretrained.{task_file.task} to evaluate.skip"
            )
        # process_results tells lm-eval that the metrics are none of its own
        kind, records = CallTask, call_records(task_file, records)
        config |= {**KEYS, "output_type": "generate_until", "process_results": "call_task.py"}
    check_records(config, records)
    try:
        dataset = datasets.Dataset.from_list(list(records))
        config |= {"custom_dataset": lambda **_: {"test": dataset}, "metadata": {}}
        task = kind(config, document_bytes)
    except (TemplateError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"task {task_file.task}: its records do not fit its templates: {error!r}") from None
    show_examples(task, config, records)
    return task


def lm_eval_config(task_file: TaskFile, chat: bool) -> dict[str, Any]:
    """Return the dict lm-eval builds its task from, without data set and examples."""
    kinds = {
        metric: {
            "metric": metric,
            "aggregation": "bits_per_byte" if metric == "bits_per_byte" else "mean",
            "higher_is_better": metric != "bits_per_byte",
        }
        for metric in dict.fromkeys(task_file.metrics.values())
    }
    if "exact_match" in kinds:
        kinds["exact_match"]["regexes_to_ignore"] = task_file.regexes_to_ignore or None
    config: dict[str, Any] = {
        "task": task_file.task,
        "output_type": task_file.output_type,
        "test_split": "test",
        "doc_to_text": task_file.doc_to_text,
        "doc_to_target": task_file.doc_to_target,
        "target_delimiter": task_file.target_delimiter,
        "description": task_file.description,
        "metric_list": list(kinds.values()),
    }
    optional = {
        "doc_to_choice": task_file.doc_to_choice,
        "generation_kwargs": task_file.generation_kwargs and task_file.generation_kwargs.model_dump(exclude_unset=True),
        "filter_list": [entry.model_dump() for entry in task_file.filter_list or []] or None,
    }
    own = {"num_fewshot", "fewshot_config"}  # few_shot.py
    changed = task_file.chat.model_dump(exclude_none=True, exclude_unset=True, exclude=own) if chat else {}
    return config | {key: value for key, value in optional.items() if value is not None} | changed


def _to_sample(task: "LocalTask", task_file: TaskFile, name: str, sample: dict[str, Any]) -> Sample:
    raw = sample[task_file.metrics[name]]
    if isinstance(raw, tuple):
        log_likelihood, size = raw
        score, weight = -log_likelihood / math.log(2) / size, float(size)
    else:
        score, weight = float(raw), 1.0
    response, target = _what_was_said(task, task_file, sample)
    return Sample(name, sample["doc"][ID], score, weight, response[:_LONGEST_TEXT], target[:_LONGEST_TEXT])


def _what_was_said(task: "LocalTask", task_file: TaskFile, sample: dict[str, Any]) -> tuple[str, str]:
    if task_file.output_type in ("generate_until", "function_calls"):
        return sample["resps"][0][0], str(sample["target"])
    if task_file.output_type == "multiple_choice":
        choices = task.doc_to_choice(sample["doc"])
        likelihoods = [response[0] for response in sample["filtered_resps"]]
        weights = [
            len(choice.encode("utf-8")) if "acc_bytes" in task_file.metrics.values() else 1 for choice in choices
        ]
        best = max(range(len(choices)), key=lambda index: likelihoods[index] / weights[index])
        return choices[best], task.right_choice(sample["doc"], sample["target"])
    return "", str(sample["target"])
