"""Examples in a prompt (few-shot): records with their answers before what is asked, and none of what is asked.

lm-eval chooses and formats them; `default` draws anew for every item from one seeded stream, so an item's examples
depend on its place among the items and on how many each is shown. They are the same for all models prompted with plain
text, and for all chat models; for both where both are shown as many and leave out the same ones. Another limit draws
others. `first_n` shows every item the same ones. The seed is lm-eval's own, so that its command line makes the same
prompts.

Trap: data sets repeat records across their splits, and an example that is an item tells its answer. An example that
asks the same as any item is left out by name, for all items, so that every item has the same number of examples. The
same is, whatever the white space and the case: the same prompt; of choices, the same prompt with the same choices or
with the same right one; of whole answers to one and the same prompt, the same answer.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.task_files import TaskFile
from pipeline_lib.stage import UserError

from .items import ID, read_items
from .record_keys import check_records, keys_named

if TYPE_CHECKING:
    from .local_task import LocalTask

SEED = 1234
"""What lm-eval's simple_evaluate and command line take when no fewshot_random_seed is given."""


class Example(dict[str, Any]):
    """A record that prompts show with its answer; LocalTask names it so when it does not fit."""


def read_examples(task_file: TaskFile, paths: Sequence[Path]) -> list[Example]:
    """Return the records of the files, or those that stand in the task file, each with a unique text under "id".

    Raises UserError (file:line, or the task) for an id given twice.
    """
    if (samples := task_file.fewshot_config.samples) is not None:
        examples = [
            Example({**sample, ID: str(sample.get(ID, f"sample-{number}"))}) for number, sample in enumerate(samples, 1)
        ]
        for name, times in Counter(example[ID] for example in examples).items():
            if times > 1:
                raise UserError(
                    f"task {task_file.task}: fewshot_config.samples has the id {name!r} {times} times; make it unique"
                )
        return examples
    return [Example(record) for record in read_items(paths)] if paths else []


def fewshot_config(task_file: TaskFile, chat: bool, examples: Sequence[Example]) -> dict[str, Any]:
    """Return the keys of lm-eval's configuration that say what prompts show; chat: through a chat template."""
    if not (shots := task_file.shots(chat)):
        return {"num_fewshot": 0}
    changed = task_file.example_wording(chat).model_dump(exclude_none=True, exclude={"samples"})
    return {
        "num_fewshot": shots,
        "fewshot_delimiter": task_file.fewshot_delimiter,
        "fewshot_config": {**changed, "samples": list(examples)},
    }


def show_examples(task: "LocalTask", config: dict[str, Any], items: Iterable[dict[str, Any]]) -> None:
    """Let the task draw from its examples without those that ask the same as an item (`task.left_out` names them).

    config: what the task was made of. Raises UserError when too few are left, or one does not fit its templates.
    """
    shots, own = config["num_fewshot"], config.get("fewshot_config", {})
    if not shots:
        return
    as_shown = {**config, **{key: own[key] for key in ("doc_to_text", "doc_to_target", "doc_to_choice") if key in own}}
    wordings = [as_shown] if as_shown == config else [as_shown, config]
    asked: set[tuple[str, ...]] = set().union(*(_questions(task, item, [config]) for item in items))
    if task.OUTPUT_TYPE == "loglikelihood" and len({prompt for prompt, *_ in asked}) == 1:  # which tells nothing apart
        asked = {question for question in asked if len(question) > 1}
    kept: list[Example] = []
    left_out: list[str] = []
    for example in own["samples"]:
        if len(kept) == shots and own["sampler"] == "first_n":
            break
        check_records(as_shown, [example], "example")
        fitting = [
            wording
            for wording in wordings
            if wording is as_shown or keys_named(wording, _asked_fields(task)) <= example.keys()
        ]
        if _questions(task, example, fitting) & asked:
            left_out.append(example[ID])
        else:
            kept.append(example)
    if len(kept) < shots:
        same = f", of which {len(left_out)} ask the same as an item ({', '.join(left_out[:3])})" if left_out else ""
        raise UserError(
            f"task {config['task']}: num_fewshot is {shots} and there are {len(own['samples'])} examples{same}; add"
            " others or show fewer"
        )
    task.sampler.replace_df(kept)
    task.set_fewshot_seed(SEED)
    task.examples, task.left_out = tuple(kept), tuple(left_out)


def _asked_fields(task: "LocalTask") -> list[str]:
    """Return the fields that make up a question; of choices the right one is known from the wording that is shown."""
    further = {"multiple_choice": ["doc_to_choice"], "loglikelihood": ["doc_to_target"]}
    return ["doc_to_text", *further.get(task.OUTPUT_TYPE, [])]


def _questions(task: "LocalTask", doc: dict[str, Any], wordings: Sequence[dict[str, Any]]) -> set[tuple[str, ...]]:
    """Return what makes a record the same as another one, in each wording; the first is its own.

    Of choices the right one is spelled as its own wording has it: another may not fit the record.
    """
    questions: set[tuple[str, ...]] = set()
    for wording in wordings:
        prompt = task.doc_to_text(doc, wording["doc_to_text"])
        if task.OUTPUT_TYPE == "multiple_choice":
            right = task.right_choice(doc, task.doc_to_target(doc, wordings[0]["doc_to_target"]))
            choices = sorted(task.doc_to_choice(doc, wording["doc_to_choice"]))
            questions |= {_plain(prompt, "right", right), _plain(prompt, "of", *choices)}
        elif task.OUTPUT_TYPE == "loglikelihood":
            questions |= {_plain(prompt), _plain(prompt, task.doc_to_target(doc, wording["doc_to_target"]))}
        else:
            questions.add(_plain(prompt))
    return questions


def _plain(*parts: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()).casefold() for part in parts)
