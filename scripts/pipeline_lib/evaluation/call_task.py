"""The lm-eval task of output_type function_calls: conversations that offer functions, and the calls that answer them.

lm-eval has no such task. Here it is one of generated text, with two differences: the prompt is a conversation with its
functions, shown by the model's chat template, and the answer is read as calls (function_calls.py). The data set holds
JSON, because the arguments of different functions have different keys, which no column of Arrow can hold.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import TemplateError

from dataset_formatters.record import MalformedRecord
from dataset_formatters.tool_calls import parsed
from pipeline_lib.config.task_files import TaskFile
from pipeline_lib.post_training.chat_tokens import for_template
from pipeline_lib.stage import UserError

from .function_calls import accepted_calls, conversation, offered_tools, score
from .items import ID
from .local_task import LocalTask

MESSAGES, TOOLS, CALLS = "messages", "tools", "calls"
KEYS = {"doc_to_text": MESSAGES, "doc_to_target": CALLS}
"""What lm-eval's configuration names in the records of `call_records`."""


def call_records(task_file: TaskFile, records: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return {id, messages, tools, calls}, the last three as JSON, of records whose keys the task file names.

    Raises UserError for the first one that is no conversation with functions and right calls.
    """
    made = []
    for record in records:
        where = f"task {task_file.task}: item {record[ID]}"
        for key in (task_file.doc_to_text, task_file.doc_to_tools, task_file.doc_to_target):
            if record.get(key) is None:
                raise UserError(f"{where} lacks {key!r}, which the task file names")
        try:
            messages = conversation(record[task_file.doc_to_text], where)
            tools = offered_tools(record[task_file.doc_to_tools], where)
            calls = record[task_file.doc_to_target]
            calls = parsed(calls, "the list of right calls", where) if isinstance(calls, str) else calls
            right = accepted_calls(calls, where)
        except MalformedRecord as error:
            raise UserError(str(error)) from None
        offered = {tool["function"]["name"] for tool in tools}
        if strange := [call.name for call in right if call.name not in offered]:
            raise UserError(f"{where}: the right answer calls {strange[0]!r}, which is not offered")
        texts = {MESSAGES: messages, TOOLS: tools, CALLS: calls}
        made.append({ID: record[ID], **{key: json.dumps(value, ensure_ascii=False) for key, value in texts.items()}})
    return made


class CallTask(LocalTask):
    """Conversations with functions, from the records that `call_records` makes."""

    def fewshot_context(
        self, doc: dict[str, Any], num_fewshot: int, chat_template: Callable[..., str] | None = None, **_: Any
    ) -> str:
        """Return the prompt. Raises UserError when the chat template refuses the conversation or hides a function."""
        messages, tools = for_template(json.loads(doc[MESSAGES])), json.loads(doc[TOOLS])
        try:
            prompt, hidden = chat_template(messages, tools=tools), chat_template(messages)
        except (TemplateError, TypeError) as error:
            raise self._misfit(doc, f"the chat template refuses it: {error}") from None
        for name in (tool["function"]["name"] for tool in tools):
            if prompt.count(name) <= hidden.count(name):  # the messages may name it too
                raise self._misfit(doc, f"the chat template does not show the function {name!r}")
        return prompt

    def process_results(self, doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
        """Return {metric: 0 or 1} of the one answer."""
        scores = score(results[0], json.loads(doc[TOOLS]), accepted_calls(json.loads(doc[CALLS]), doc[ID]))
        return {metric: scores[metric] for metric in self._metric_fn_list}

    def doc_to_target(self, doc: dict[str, Any], doc_to_target: Any = None) -> str:
        """Return the right calls as JSON."""
        return doc[CALLS]
