"""Do records have what a task's templates name? A template shows a missing value as the text "None"."""

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline_lib.stage import UserError

from .items import ID

FIELDS = ("doc_to_text", "doc_to_target", "doc_to_choice")


def keys_named(config: Mapping[str, Any], fields: Iterable[str] = FIELDS) -> set[str]:
    """Return the keys of a record that these fields of an lm-eval configuration name.

    Raises UserError for a template that cannot be read.
    """
    from jinja2 import Environment, TemplateError, meta

    named: set[str] = set()
    for field in fields:
        template = config.get(field)
        if not isinstance(template, str):
            continue
        if template.isidentifier():
            named.add(template)
            continue
        try:
            named |= meta.find_undeclared_variables(Environment().parse(template))
        except TemplateError as error:
            raise UserError(f"task {config['task']}: {field} is not a valid template: {error.message}") from None
    return named


def check_records(config: Mapping[str, Any], records: Iterable[dict[str, Any]], kind: str = "item") -> None:
    """Raise UserError for the first record that lacks what the templates name, before a model is asked "None".

    kind: what the records are, for the message.
    """
    named = keys_named(config)
    for record in records:
        about = f"task {config['task']}: {kind} {record[ID]}"
        if missing := sorted(key for key in named if record.get(key) is None):
            raise UserError(f"{about} lacks {missing[0]!r}, which the task file names")
        key = config["doc_to_target"]  # or a template, which has its turn when it is filled in
        is_scored = config["output_type"].startswith("loglikelihood") and key in record
        if is_scored and not (isinstance(record[key], str) and record[key]):
            raise UserError(f"{about}: {key} is not a text: {record[key]!r}")
