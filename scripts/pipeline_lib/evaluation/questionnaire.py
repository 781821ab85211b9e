"""Who is asked what: the run's models, the task files, the items of each task, and the account of items not asked."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.task_files import MEANING, TaskFile, read_task_files
from pipeline_lib.stage import UserError

from .few_shot import Example, read_examples
from .items import ID, Items, choose_items, item_places, read_items

if TYPE_CHECKING:
    from pipeline_lib.config.evaluate import EvaluateSettings
    from pipeline_lib.stage import Ledger, Stage


@dataclass(frozen=True)
class ModelSource:
    """Where a model of the run lies, and whether it is prompted through its chat template."""

    stage: str
    folder: str
    chat: bool


MODELS = {
    "init": ModelSource("04_init", "", chat=False),
    "pretrained": ModelSource("05_pretrain", "final", chat=False),
    "sft": ModelSource("07_sft", "final", chat=True),
    "dpo": ModelSource("09_dpo", "final", chat=True),
    "lora": ModelSource("10_lora", "merged", chat=True),
}


def model_folder(stage: "Stage", name: str) -> Path:
    """Return the folder of a model with every file verified. Raises UserError naming the command that makes it."""
    source = MODELS[name]
    made = stage.input(source.stage)
    if source.folder:
        return made.folder(source.folder)
    made.file("config.json")
    made.files("*")
    return made.path


@dataclass(frozen=True)
class Questionnaire:
    """The tasks of a run with their chosen items, and which model is asked which."""

    settings: "EvaluateSettings"
    tasks: dict[str, TaskFile]
    items: dict[str, Items]
    examples: dict[str, list[Example]]  # what prompts may show, if any
    files: dict[str, tuple[str, ...]]  # of each task's source, inside 01_download
    folder: Path  # 01_download

    @classmethod
    def read(cls, stage: "Stage") -> "Questionnaire":
        """Read task files and items. Raises UserError when a task's records were not downloaded."""
        tasks = read_task_files(stage.settings)
        download = stage.input("01_download")
        entries = json.loads(download.file("sources.json").read_bytes())["sources"]
        files = {entry["name"]: tuple(entry["files"]) for entry in entries if entry["kind"] == "eval"}

        def paths(name: str, source: str, key: str) -> list[Path]:
            if source not in files:
                known = ", ".join(sorted(files)) or "none"
                raise UserError(
                    f"task {name}: its {key} {source!r} was not downloaded (evaluation sources: {known}); add it"
                    " to download.sources or leave the task out of evaluate.tasks"
                )
            return [download.file(file) for file in files[source]]

        items, examples = {}, {}
        for name, task in tasks.items():
            records = read_items(paths(name, task.source, "source"))
            items[name] = choose_items(records, stage.settings.limits.get(name, stage.settings.limit), stage.seed)
            shown = paths(name, task.fewshot_split, "fewshot_split") if task.fewshot_split else []
            examples[name] = read_examples(task, shown)
        of_task = {name: files[task.source] for name, task in tasks.items()}
        return cls(stage.settings, tasks, items, examples, of_task, download.path)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (model, task), model by model, so that each model is loaded once."""
        for model in self.settings.models:
            for task in self.tasks:
                if f"{model}.{task}" not in self.settings.skip:
                    yield model, task

    def places(self, task: str) -> dict[str, str]:
        """Return {item that is asked: its record, `eval/<file>:<line>`}, in the order of the items."""
        places = item_places([self.folder / file for file in self.files[task]])
        return {record[ID]: places[record[ID]] for record in self.items[task].records}

    def account(self, ledger: "Ledger", downloaded: "Ledger") -> None:
        """Enter every downloaded evaluation record: asked, beyond the limit, only shown, or of no task."""
        shown = {task.fewshot_split for task in self.tasks.values()}
        asked: dict[str, set[str]] = {}
        for task, items in self.items.items():
            asked.setdefault(self.tasks[task].source, set()).update(record[ID] for record in items.records)
        for flow, source, entry in downloaded.items():
            if flow != "eval":
                continue
            documents = entry.kept[0]
            used = len(asked.get(source, ()))
            ledger.enter("eval", source, documents)
            ledger.keep("eval", source, used)
            unasked = "an example for prompts, not asked" if source in shown else "no task asks it"
            reason = "beyond the limit of its task" if source in asked else unasked
            if documents > used:
                ledger.drop("eval", source, reason, documents - used)

    def metrics(self) -> dict[str, dict[str, str]]:
        """Return {task: {name in results.json: lm-eval metric}}."""
        return {name: dict(task.metrics) for name, task in self.tasks.items()}

    def describe(self, left_out: dict[str, list[str]]) -> dict[str, Any]:
        """Return what a reader of the results needs to know about each task.

        left_out: {task: examples that ask the same as an item} (task_checks.py).
        """
        described = {}
        for name, task in self.tasks.items():
            described[name] = {
                "metrics": {metric: MEANING[kind] for metric, kind in task.metrics.items()},
                "chance": task.chance,
                "items": len(self.items[name].records),
                "available": self.items[name].available,
                "num_fewshot": {"plain text": task.shots(chat=False), "chat template": task.shots(chat=True)},
            }
            if self.examples[name]:
                described[name]["examples"] = {
                    "of": task.fewshot_split or "the task file",
                    "available": len(self.examples[name]),
                    "sampler": task.fewshot_config.sampler,
                    "left_out": left_out.get(name, []),
                }
        return described
