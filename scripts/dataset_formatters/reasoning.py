"""Reasoning in words, and questions with choices: OpenOrca, CoT-Collection, ARC, LogiQA.

ARC and LogiQA state only which choice is right, so the answer is that choice, "B. carbon dioxide" (choices.py).
CoT-Collection states a reason and an answer: the answer stands on a last line "#### answer", as in GSM8K.
"""

from string import ascii_uppercase
from typing import Any

from .choices import Choice, choices_of, lettered, question_with, right_choice, worked_solution
from .record import MalformedRecord, Where, list_field, message, refuse_unread, text_field
from .turns import conversation

_CONTEXTS = ("context", "text")
_QUESTIONS = ("question", "query")
_OPTIONS = ("options", "answers", "choices")
_ANSWERS = ("answer", "label", "correct_option")
"""What LogiQA's versions call the same four fields: the original one, its copies on the hub, and LogiQA 2.0."""


def format_openorca(record: Any, where: Where) -> dict[str, Any]:
    """Read {"system_prompt", "question", "response"}; an empty or absent system prompt makes no system turn."""
    system = text_field(record, "system_prompt", where, required=False)
    question, response = text_field(record, "question", where), text_field(record, "response", where)
    refuse_unread(record, ("system_prompt",), where)
    first = [message("system", system)] if system else []
    return conversation([*first, message("user", question), message("assistant", response)], where)


def format_cot_collection(record: Any, where: Where) -> dict[str, Any]:
    """Read {"source", "rationale", "target"}: the answer is the rationale, a newline, "#### " and the target.

    The target may have several lines: everything behind the last mark is the answer. Raises MalformedRecord; reason
    mark_in_answer when a target holds the mark itself.
    """
    source = text_field(record, "source", where)
    rationale, target = text_field(record, "rationale", where), text_field(record, "target", where)
    refuse_unread(record, (), where)
    solution = worked_solution(rationale, target, where)
    return conversation([message("user", source), message("assistant", solution)], where)


def format_arc(record: Any, where: Where) -> dict[str, Any]:
    """Read {"question", "choices", "answerKey"} or {"question": {"stem", "choices"}, "answerKey"}.

    Choices are {"text": [...], "label": [...]} or a list of {"text", "label"}; both layouts occur in CommonsenseQA and
    other sets of AI2 too. The labels (A to E, or 1 to 5) stay as they are.
    """
    asked = record.get("question") if isinstance(record, dict) else None
    holder, name = (asked, "stem") if isinstance(asked, dict) else (record, "question")
    question = text_field(holder, name, where)
    choices = _arc_choices(holder, where)
    label = text_field(record, "answerKey", where)
    refuse_unread(record, (), where)
    return _chosen(question, choices, label, where)


def _arc_choices(holder: dict[str, Any], where: Where) -> list[Choice]:
    parallel = holder.get("choices")
    if isinstance(parallel, dict):
        return choices_of(list_field(parallel, "label", where), list_field(parallel, "text", where), where)
    listed = list_field(holder, "choices", where)
    labels = [text_field(choice, "label", where) for choice in listed]
    return choices_of(labels, [text_field(choice, "text", where, required=False) for choice in listed], where)


def format_logiqa(record: Any, where: Where) -> dict[str, Any]:
    """Read {context or text, question or query, options (answers, choices), answer (label, correct_option)}.

    The answer is the index of an option from 0, or its letter in either case; a number written as text could count
    from 1, so it is refused. Raises MalformedRecord; reason entailment_record for LogiQA 2.0's NLI version, which asks
    whether a conclusion follows and has no choices, and ambiguous_layout for two of the names of one field.
    """
    if isinstance(record, dict) and "conclusion" in record and "major_premise" in record:
        raise MalformedRecord("entailment_record", where, "premises and a conclusion (LogiQA NLI), no question")
    context = text_field(record, _name_of(record, _CONTEXTS, where), where)
    question = text_field(record, _name_of(record, _QUESTIONS, where), where)
    choices = lettered(list_field(record, _name_of(record, _OPTIONS, where), where), where)
    letter = _letter_of(record.get(_name_of(record, _ANSWERS, where)), where)
    refuse_unread(record, _CONTEXTS, where)
    return _chosen(f"{context}\n\n{question}", choices, letter, where)


def _name_of(record: Any, names: tuple[str, ...], where: Where) -> str:
    """Return which of the names a record uses, the first when it uses none. Raises MalformedRecord."""
    given = [name for name in names if isinstance(record, dict) and record.get(name) is not None]
    if len(given) > 1:
        raise MalformedRecord("ambiguous_layout", where, f'"{given[0]}" and "{given[1]}" are names of the same field')
    return given[0] if given else names[0]


def _letter_of(answer: Any, where: Where) -> str:
    """Return the letter that an answer names, by index or by itself. Raises MalformedRecord."""
    if answer is None:
        raise MalformedRecord("missing_field", where, f"no answer under any of {', '.join(_ANSWERS)}")
    if isinstance(answer, str):
        return answer.strip().upper()
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise MalformedRecord("wrong_type", where, f"an answer is an index or a letter, not {type(answer).__name__}")
    if not 0 <= answer < len(ascii_uppercase):
        raise MalformedRecord("answer_is_no_choice", where, f"the answer is choice {answer}, counted from 0")
    return ascii_uppercase[answer]


def _chosen(question: str, choices: list[Choice], label: str, where: Where) -> dict[str, Any]:
    right = right_choice(choices, label, where)
    asked = question_with(question, choices)
    return conversation([message("user", asked), message("assistant", str(right))], where)


CONVERSATIONS = {
    "openorca": format_openorca,
    "cot-collection": format_cot_collection,
    "arc": format_arc,
    "logiqa": format_logiqa,
}
