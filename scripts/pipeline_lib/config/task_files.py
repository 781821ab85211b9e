"""Task files: what is asked, in lm-eval's own keys, plus five of ours.

A file in configs/eval_tasks/ is an lm-eval task (doc_to_text, doc_to_choice, generation_kwargs, filter_list ... as its
task guide describes them) without a data set on the hub:

    source     the evaluation source (download.sources, kind eval) whose records are the items
    metrics    {name in results.json: lm-eval metric}
    chat       keys that differ when the prompt goes through the model's chat template
    chance     accuracy of guessing
    doc_to_tools  what a task of function calls offers

Examples in the prompt (num_fewshot) come from another evaluation source, which lm-eval's fewshot_split names here, or
stand in the file itself (fewshot_config.samples).

Templates come from these files only; records are data and are never evaluated. lm-eval's keys that run code
(`!function`, process_docs, custom_dataset) do not exist here, and an unknown key is an error.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from pipeline_lib.stage import UserError

from .base import Section, resolve_path
from .evaluate import EvaluateSettings
from .load import build_file
from .patterns import TASK_NAME

OutputType = Literal["multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until", "function_calls"]
Metric = Literal[
    "acc",
    "acc_norm",
    "acc_bytes",
    "exact_match",
    "bits_per_byte",
    "calls_valid",
    "functions_match",
    "calls_match",
]

METRICS_OF: dict[str, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes"),
    "generate_until": ("exact_match",),
    "loglikelihood": ("bits_per_byte", "acc"),
    "loglikelihood_rolling": ("bits_per_byte",),
    "function_calls": ("calls_valid", "functions_match", "calls_match"),
}
READ_BY: dict[str, tuple[str, ...]] = {
    "doc_to_choice": ("multiple_choice", "generate_until"),
    "target_delimiter": ("multiple_choice", "loglikelihood", "generate_until"),
    "description": ("multiple_choice", "loglikelihood", "generate_until"),
    "generation_kwargs": ("generate_until", "function_calls"),
    "regexes_to_ignore": ("generate_until",),
}
"""The kinds of requests that read a key; it would change nothing for the others, which its writer could not see."""
MEANING = {
    "acc": "share of items whose right choice has the highest log-likelihood",
    "acc_norm": "share of items whose right choice has the highest log-likelihood per character",
    "acc_bytes": "share of items whose right choice has the highest log-likelihood per UTF-8 byte",
    "exact_match": "share of items whose extracted answer equals the reference",
    "bits_per_byte": "bits the model needs per UTF-8 byte of the text",
    "calls_valid": "share of items answered by calls of offered functions with all required arguments",
    "functions_match": "share of items whose answer calls the right functions, each as often",
    "calls_match": "share of items whose answer calls the right functions with the right arguments, in any order",
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


class FewshotWording(Section):
    """Where an example reads differently from what is asked."""

    doc_to_text: str | None = None
    """Template or record key of an example's prompt, if not the task's."""
    doc_to_target: str | int | None = None
    """Template or record key of an example's answer, if not the task's (a solution, where only its number is asked)."""
    doc_to_choice: str | list[str] | None = None
    """Template or record key of an example's choices, if not the task's."""
    target_delimiter: str | None = None
    """What stands between an example's prompt and its answer, if not the task's."""
    fewshot_delimiter: str | None = None
    """What stands after an example, if not the task's."""


class FewshotSettings(FewshotWording):
    """lm-eval's fewshot_config: how examples are chosen, and their wording."""

    sampler: Literal["default", "first_n"] = "default"
    """default draws examples for every item, with a seed; first_n shows every item the first ones."""
    samples: list[dict[str, Any]] | None = None
    """The examples themselves, instead of an evaluation source (fewshot_split)."""


class ChatPrompt(Section):
    """What changes when the prompt goes through a chat template."""

    doc_to_text: str | None = None
    """Template or record key of the user's message."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Number of examples before it, each a turn of the user and one of the assistant."""
    fewshot_config: FewshotWording | None = None
    """Wording of the examples, where it differs."""
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
    """lm-eval: the kind of request; function_calls is ours (evaluation/call_task.py)."""
    doc_to_text: str = ""
    """lm-eval: template or record key of the prompt."""
    doc_to_target: str | int
    """lm-eval: template or record key of the reference (the right choice's number or text, the text to be scored)."""
    doc_to_choice: str | list[str] | None = None
    """lm-eval: template or record key of the choices."""
    doc_to_tools: str | None = None
    """function_calls: record key of the functions that are offered; doc_to_text and doc_to_target are keys too."""
    target_delimiter: str = " "
    """lm-eval: what stands between a plain-text prompt and the answer."""
    description: str = ""
    """lm-eval: text before every prompt."""
    num_fewshot: int = Field(default=0, ge=0)
    """lm-eval: number of examples before what is asked."""
    fewshot_split: str | None = None
    """lm-eval: where the examples are; here the name of another evaluation source in 01_download."""
    fewshot_delimiter: str = "\n\n"
    """lm-eval: what stands after an example in plain text."""
    fewshot_config: FewshotSettings = FewshotSettings()
    """lm-eval: sampler, samples, and the keys that differ for examples."""
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
        generates = self.output_type in ("generate_until", "function_calls")
        if generates and self.generation_kwargs is None:
            raise ValueError(f"{self.output_type} needs generation_kwargs (until, max_gen_toks)")
        if generates and not self.doc_to_text:
            raise ValueError(f"{self.output_type} needs doc_to_text")
        if (self.output_type == "function_calls") != (self.doc_to_tools is not None):
            raise ValueError(
                "doc_to_tools names the functions of a function_calls task, which needs it; no other has any"
            )
        if self.output_type == "function_calls" and (self.description or self.chat.doc_to_text):
            raise ValueError("function_calls asks what the messages say; remove description and chat.doc_to_text")
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

    @model_validator(mode="after")
    def _examples_are_none_of_the_items(self) -> "TaskFile":
        samples = self.fewshot_config.samples
        most = max(self.shots(chat=False), self.shots(chat=True))
        if most and self.output_type == "loglikelihood_rolling":
            raise ValueError("num_fewshot: loglikelihood_rolling scores whole texts, which have no prompt; remove it")
        if most and self.output_type == "function_calls":
            raise ValueError("num_fewshot: function_calls shows conversations; put examples into their messages")
        if most and (self.fewshot_split is None) == (samples is None):
            raise ValueError(
                "num_fewshot needs one place of examples: another evaluation source (fewshot_split), or"
                " fewshot_config.samples"
            )
        if not most and (self.fewshot_split or samples is not None):
            raise ValueError("there are examples and no prompt shows them; set num_fewshot, or remove them")
        if most and self.fewshot_split == self.source:
            raise ValueError(
                f"fewshot_split is {self.source}, whose records are asked, so answers would stand in prompts; take the"
                " examples from another source"
            )
        if samples is not None and len(samples) < most:
            raise ValueError(f"num_fewshot is {most} and fewshot_config.samples has {len(samples)} examples")
        wordings = (self.example_wording(chat) for chat in (False, True))
        if self.output_type != "multiple_choice" and any(isinstance(way.doc_to_target, int) for way in wordings):
            raise ValueError("fewshot_config.doc_to_target: the number of a choice needs multiple_choice")
        return self

    @model_validator(mode="after")
    def _every_key_is_read(self) -> "TaskFile":
        plain, chat = self.shots(chat=False), self.shots(chat=True)
        for key, shots in {"fewshot_config": plain or chat, "fewshot_delimiter": plain}.items():
            if not shots and _is_set(self, key):
                raise ValueError(f"{key} is for examples, and prompts show none; set num_fewshot, or remove {key}")
        if self.chat.fewshot_config is not None and not chat:
            raise ValueError("chat.fewshot_config is for examples, and chat prompts show none; remove it")
        for key, kinds in READ_BY.items():
            for name, section in ((key, self), (f"chat.{key}", self.chat)):
                if self.output_type not in kinds and _is_set(section, key):
                    raise ValueError(f"{name} is for {', '.join(kinds)}; {self.output_type} ignores it, so remove it")
        return self

    def shots(self, chat: bool) -> int:
        """Return the number of examples in a prompt; chat: one that goes through a chat template."""
        return self.chat.num_fewshot if chat and self.chat.num_fewshot is not None else self.num_fewshot

    def example_wording(self, chat: bool) -> FewshotWording:
        """Return how examples read; chat: in a prompt that goes through a chat template."""
        changed = self.chat.fewshot_config.model_dump(exclude_unset=True) if chat and self.chat.fewshot_config else {}
        return self.fewshot_config.model_copy(update=changed)


def _is_set(section: Section, key: str) -> bool:
    """Whether a key that the section may have is there with another value than its default."""
    field = type(section).model_fields.get(key)
    return field is not None and getattr(section, key) != field.default


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
