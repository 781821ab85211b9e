"""Task files: what is asked, in ten of lm-eval's own keys, plus four of ours.

A file in configs/eval_tasks/ is an lm-eval task (doc_to_text, doc_to_choice, generation_kwargs, filter_list ... as its
task guide describes them) without a data set on the hub and without examples in the prompt:

    source     the evaluation source (download.sources, kind eval) whose records are the items
    metrics    {name in results.json: lm-eval metric}
    chat       keys that differ when the prompt goes through the model's chat template

Templates come from these files only; records are data and are never evaluated. lm-eval's keys that run code
(`!function`, process_docs, custom_dataset) do not exist here, and an unknown key is an error.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from pipeline_lib.stage import UserError

from .base import Section, resolve_path
from .evaluate import EvaluateSettings
from .load import build_file
from .patterns import TASK_NAME

OutputType = Literal["multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until"]
Metric = Literal["acc", "acc_norm", "acc_bytes", "exact_match", "bits_per_byte"]

METRICS_OF: dict[str, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes"),
    "generate_until": ("exact_match",),
    "loglikelihood": ("bits_per_byte", "acc"),
    "loglikelihood_rolling": ("bits_per_byte",),
}
MEANING = {
    "acc": "share of items whose right choice has the highest log-likelihood",
    "acc_norm": "share of items whose right choice has the highest log-likelihood per character",
    "acc_bytes": "share of items whose right choice has the highest log-likelihood per UTF-8 byte",
    "exact_match": "share of items whose extracted answer equals the reference",
    "bits_per_byte": "bits the model needs per UTF-8 byte of the text",
}


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a valid pattern ({error})") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression."""


class GenerationSettings(Section):
    """lm-eval's generation_kwargs, as far as greedy answers have them."""

    until: str | list[str] = ["\n\n"]
    """Texts at which an answer ends; they do not belong to it."""
    max_gen_toks: int = Field(default=256, ge=1)
    """Greatest length of an answer in tokens."""
    do_sample: bool = False
    """Never true: answers are greedy."""
    temperature: float = 0.0
    """Never above 0: answers are greedy."""

    @field_validator("do_sample", "temperature")
    @classmethod
    def _greedy(cls, value: bool | float) -> bool | float:
        if value:
            raise ValueError("answers are generated greedily; remove do_sample and temperature")
        return value


class FilterStep(Section):
    """One of lm-eval's filters with its arguments, which are lm-eval's to judge (evaluation/task_checks.py)."""

    model_config = ConfigDict(extra="allow")

    function: str
    """Name of the filter."""

    @model_validator(mode="after")
    def _arguments_fit_texts(self) -> "FilterStep":
        """Refuse what lm-eval takes and trips over when an answer comes that matches."""
        if isinstance(pattern := self.model_extra.get("regex_pattern"), str):
            _compiles(pattern)
        if type(self.model_extra.get("group_select", 0)) is not int:
            raise ValueError("group_select is the number of a match, an integer")
        mapping = self.model_extra.get("mapping_dict")
        if isinstance(mapping, dict) and not all(isinstance(word, str) for pair in mapping.items() for word in pair):
            raise ValueError("mapping_dict leads from texts to texts; put its numbers, true, false and null in quotes")
        return self


class AnswerFilter(Section):
    """How an answer is extracted from generated text, step by step."""

    name: str
    """Name of the whole."""
    filter: list[FilterStep] = Field(min_length=1)
    """The steps."""


class ChatPrompt(Section):
    """What changes when the prompt goes through a chat template."""

    doc_to_text: str | None = None
    """Template or record key of the user's message."""
    generation_kwargs: GenerationSettings | None = None
    """Generation settings: until, max_gen_toks."""


class TaskFile(Section):
    """One evaluation task; keys without a word on lm-eval are ours."""

    task: str = Field(pattern=TASK_NAME)
    """Name of the task in results.json."""
    source: str
    """Name of the evaluation source in 01_download whose records are asked."""
    metrics: dict[str, Metric] = Field(min_length=1)
    """Name in results.json -> lm-eval metric."""
    chat: ChatPrompt = ChatPrompt()
    """Keys that differ for models prompted through their chat template."""
    chance: float | None = Field(default=None, ge=0, le=1)
    """Accuracy of guessing, shown beside the result."""
    output_type: OutputType
    """lm-eval: the kind of request."""
    doc_to_text: str = ""
    """lm-eval: template or record key of the prompt."""
    doc_to_target: str | int
    """lm-eval: template or record key of the reference (the right choice's number or text, the text to be scored)."""
    doc_to_choice: str | list[str] | None = None
    """lm-eval: template or record key of the choices."""
    target_delimiter: str = " "
    """lm-eval: what stands between a plain-text prompt and the answer."""
    description: str = ""
    """lm-eval: text before every prompt."""
    generation_kwargs: GenerationSettings | None = None
    """lm-eval: until, max_gen_toks."""
    filter_list: list[AnswerFilter] | None = None
    """lm-eval: how the answer is extracted from generated text, one entry; none, or an empty list, takes it whole."""
    regexes_to_ignore: list[Pattern] = []
    """lm-eval: patterns removed from answer and reference before exact_match compares them."""

    @model_validator(mode="after")
    def _metrics_fit_the_requests(self) -> "TaskFile":
        for name, metric in self.metrics.items():
            if metric not in METRICS_OF[self.output_type]:
                fitting = ", ".join(METRICS_OF[self.output_type])
                raise ValueError(f"metrics.{name}: {self.output_type} has no metric {metric}; it has: {fitting}")
        if self.output_type == "multiple_choice" and self.doc_to_choice is None:
            raise ValueError("multiple_choice needs doc_to_choice")
        if self.output_type == "generate_until" and self.generation_kwargs is None:
            raise ValueError("generate_until needs generation_kwargs (until, max_gen_toks)")
        if self.output_type == "generate_until" and not self.doc_to_text:
            raise ValueError("generate_until needs doc_to_text")
        if self.output_type.startswith("loglikelihood") and not isinstance(self.doc_to_target, str):
            raise ValueError(f"{self.output_type} needs doc_to_target to be a record key or a template of the text")
        if self.filter_list and self.output_type != "generate_until":
            raise ValueError(
                f"filter_list extracts answers from generated text, and {self.output_type} generates none; remove it"
            )
        if self.filter_list and len(self.filter_list) > 1:  # lm-eval would score every answer once per entry
            raise ValueError(
                f"filter_list has {len(self.filter_list)} entries ({', '.join(way.name for way in self.filter_list)}),"
                " and a metric has one value per item; keep one and write a task file for each of the others"
            )
        return self


def task_path(settings: EvaluateSettings, name: str) -> Path:
    """Return the file of a task."""
    return resolve_path(settings.tasks_folder) / f"{name}.yaml"


def read_task_file(folder: Path, name: str) -> TaskFile:
    """Read `folder`/`name`.yaml. Raises UserError (file:line) on a missing file, an unknown key or a bad value."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "nothing"
        raise UserError(f"evaluation task {name!r}: {path} does not exist; {folder} has: {known}")
    task = build_file(TaskFile, path)
    if task.task != name:
        raise UserError(f"{path}: the file is called {name} and its task {task.task}; give both one name")
    return task


def read_task_files(settings: EvaluateSettings) -> dict[str, TaskFile]:
    """Return {name: task}. Raises UserError for a bad file and for limits or skips of a task that does not exist.

    A limit of a task that is merely not asked this time is fine: `--tasks [domain]` must work with any configuration.
    """
    folder = resolve_path(settings.tasks_folder)
    tasks = {name: read_task_file(folder, name) for name in settings.tasks}
    existing = sorted(path.stem for path in folder.glob("*.yaml"))
    named = {"limits": list(settings.limits), "skip": [pair.partition(".")[2] for pair in settings.skip]}
    for field, names in named.items():
        if strange := sorted(set(names) - set(existing)):
            raise UserError(f"evaluate.{field} names the task {strange[0]!r}; {folder} has: {', '.join(existing)}")
    return tasks
