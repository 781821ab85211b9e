"""Every task is tried before the first model is asked, so that a mistake in its file shows in seconds, not after hours.

lm-eval makes the filters that extract answers only when all answers of a task are there. Here each is made and given an
answer beforehand, and each task is built as plain and as chat models are asked it, and its templates are filled in with
every record and every example.

Trap: chat templates write calls in many notations, and an answer is read in one of them (function_calls.py). A model
with another one would look as if it could call nothing, so each template is made to write a call, which must read back.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.task_files import AnswerFilter, task_path
from pipeline_lib.post_training.chat_tokens import for_template
from pipeline_lib.stage import UserError

from .function_calls import CLOSE, OPEN, Call, read_calls
from .harness import build_task
from .questionnaire import MODELS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .questionnaire import Questionnaire

_ANSWER = "an answer"


def check_tasks(questions: "Questionnaire") -> dict[str, list[str]]:
    """Return {task: ids of the examples that its prompts leave out, because they ask the same as an item}.

    Raises UserError, naming the task file, for filters that cannot be made and templates that records do not fit.
    """
    left_out: dict[str, list[str]] = {}
    for name, chat in dict.fromkeys((task, MODELS[model].chat) for model, task in questions.pairs()):
        task, records = questions.tasks[name], questions.items[name].records
        try:
            for answer_filter in task.filter_list or []:
                _try_filter(answer_filter, records[0])
            built = build_task(task, records, chat, questions.settings.document_bytes, questions.examples[name])
            built.check_every_record()
        except UserError as error:
            raise UserError(f"{task_path(questions.settings, name)}: {error}") from None
        left_out[name] = list(dict.fromkeys([*left_out.get(name, ()), *built.left_out]))
    return left_out


def check_shown_functions(questions: "Questionnaire", folder_of: Callable[[str], Path]) -> None:
    """Raise UserError, naming task file and model, for a chat template that cannot show the functions of a record.

    Also for one that writes calls otherwise than answers are read, or whose calls the task's stops would cut.
    folder_of: where a model of the run lies.
    """
    from transformers import AutoTokenizer

    from .call_task import TOOLS
    from .language_model import render_chat

    for model, name in questions.pairs():
        task, records = questions.tasks[name], questions.items[name].records
        if task.output_type != "function_calls":
            continue
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder_of(model), local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"the tokenizer of {model} does not load: {error}") from None
        if not tokenizer.chat_template:
            raise UserError(f"the tokenizer of {model} has no chat template, which the prompts of {name} need")
        built = build_task(task, records, True, None)
        try:
            for doc in built.task_docs:
                built.fewshot_context(doc, 0, chat_template=partial(render_chat, tokenizer))
            _check_written_call(tokenizer, json.loads(built.task_docs[0][TOOLS]), built.config.generation_kwargs)
        except UserError as error:
            raise UserError(f"{task_path(questions.settings, name)}: {model}: {error}") from None


def _check_written_call(
    tokenizer: "PreTrainedTokenizerBase", tools: list[dict[str, Any]], settings: dict[str, Any]
) -> None:
    """Let the chat template write a call of an offered function, and read it as an answer of the model is read."""
    from jinja2 import TemplateError

    from .generation import cut_at

    call = Call(tools[0]["function"]["name"], {"number": 1, "text": 'a "b"'})
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    asked = [{"role": "user", "content": "a question"}]
    answer = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    render = partial(tokenizer.apply_chat_template, tools=tools, tokenize=False)
    try:
        prompts = [render(asked, add_generation_prompt=True), render(asked)]  # a header may open what no call repeats
        whole = render(for_template([*asked, answer]))
    except (TemplateError, TypeError) as error:  # some add the arguments to a text, and are given an object
        raise UserError(f"its chat template refuses a call of {call.name!r}: {error}") from None
    prompt = next((prompt for prompt in prompts if whole.startswith(prompt)), None)
    if prompt is None:
        raise UserError("its chat template renders a prompt alone differently from the same prompt with its answer")
    written = whole.removeprefix(prompt)
    text = tokenizer.decode(tokenizer(written, add_special_tokens=False)["input_ids"], skip_special_tokens=True)
    if read_calls(text) != [call]:
        lost = read_calls(written) == [call]
        seen = f"{written.strip()!r}, of which decoding leaves {text.strip()!r}" if lost else repr(text.strip())
        raise UserError(
            f"its chat template writes a call as {seen}, and answers are read as"
            f' {OPEN}{{"name": ..., "arguments": {{...}}}}{CLOSE} alone, so each of its calls would count as wrong;'
            " leave the model out with evaluate.skip, or fine-tune it with such a template"
        )
    until = settings.get("until") or []
    if read_calls(cut_at(text, [until] if isinstance(until, str) else until)) != [call]:
        raise UserError(
            f"generation_kwargs.until {until!r} cuts a call as the chat template writes it, {text.strip()!r}"
        )


def _try_filter(answer_filter: AnswerFilter, record: dict[str, Any]) -> None:
    from lm_eval.filters import build_filter_ensemble

    answers: list[Any] = [[_ANSWER]]
    for step in answer_filter.filter:
        try:
            (make,) = build_filter_ensemble(answer_filter.name, [(step.function, step.model_extra)]).filters
            answers = list(make().apply(answers, [record]))
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError, re.error) as error:
            problem = " ".join(str(error.args[0] if error.args else error).split())
            raise UserError(f"filter_list {answer_filter.name!r}, step {step.function!r}: {problem}") from None
    if not isinstance(answers[0], str):
        raise UserError(
            f"filter_list {answer_filter.name!r} makes {answers[0]!r} of an answer, and exact_match compares texts; end"
            " it with take_first, and give map a default_value that is a text"
        )
