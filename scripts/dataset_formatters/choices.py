"""Questions with choices, in one look for every data set, and the line that states the answer of a worked solution.

    Which gas do plants take in?          the user's turn

    A. oxygen
    B. carbon dioxide

    B. carbon dioxide                     the answer, where there is no solution
    #### B                                the last line of a solution: gsm8k's mark, by which answers are graded

The labels are the record's own. A question whose right choice has the same text as another one has two answers, so it
is refused (ambiguous_answer); wrong choices may repeat each other.
"""

import re
from string import ascii_uppercase
from typing import Any, NamedTuple

from .record import MalformedRecord, Where

FINAL_MARK = "####"
"""Stands before the final answer, as in GSM8K; what graders read is behind the last one."""

_LABEL = re.compile(r"[A-Za-z]|[0-9]{1,2}")


class Choice(NamedTuple):
    """One choice of a question; as text it is "B. carbon dioxide"."""

    label: str
    text: str

    def __str__(self) -> str:
        return f"{self.label}. {self.text}"


def choices_of(labels: list[Any], texts: list[Any], where: Where) -> list[Choice]:
    """Return the choices of two parallel lists.

    A label is a letter or a number below 100. Raises MalformedRecord (wrong_type, labels_do_not_match_choices,
    too_few_choices, empty_choice, unknown_label, repeated_label).
    """
    if len(labels) != len(texts):
        raise MalformedRecord("labels_do_not_match_choices", where, f"{len(labels)} labels for {len(texts)} choices")
    if len(texts) < 2:
        raise MalformedRecord("too_few_choices", where, f"a question needs two choices, this one has {len(texts)}")
    choices = []
    for label, text in zip(labels, texts, strict=True):
        if not isinstance(label, str) or not isinstance(text, str):
            raise MalformedRecord("wrong_type", where, "a choice and its label must be strings")
        choices.append(Choice(label.strip(), text.strip()))
        if not choices[-1].text:
            raise MalformedRecord("empty_choice", where, f"choice {label!r} is empty")
        if not _LABEL.fullmatch(choices[-1].label):
            raise MalformedRecord("unknown_label", where, f"a label is a letter or a number, not {label!r}")
    if len({choice.label for choice in choices}) < len(choices):
        raise MalformedRecord("repeated_label", where, f"two choices have the same label: {labels!r}")
    return choices


def lettered(texts: list[Any], where: Where) -> list[Choice]:
    """Return choices labelled A, B, C ... in their order; letters that all of them bring along ("A)30") are removed.

    Raises MalformedRecord as choices_of does, and too_many_choices, and mixed_labels when only some bring their letter:
    in machine-translated sets a letter has slipped into the text ("Country C.H", "d.The rate"), and no rule finds it.
    """
    if len(texts) > len(ascii_uppercase):
        raise MalformedRecord("too_many_choices", where, f"{len(texts)} choices, and {len(ascii_uppercase)} letters")
    letters = list(ascii_uppercase[: len(texts)])
    brought = brought_letters(texts)
    if all(brought):
        texts = [text[len(mark) :] for text, mark in zip(texts, brought, strict=True)]
    elif any(brought):
        raise MalformedRecord("mixed_labels", where, f"only some choices begin with their letter: {texts!r:.80}")
    return choices_of(letters, texts, where)


def brought_letters(texts: list[Any]) -> list[str]:
    """Return what each text begins with of its own letter, "A)", "B.", "(C)" ... in their order; "" for nothing."""
    found = []
    for letter, text in zip(ascii_uppercase, texts, strict=False):
        mark = re.match(rf"\s*(?:\({letter}\)|{letter}[).])", text) if isinstance(text, str) else None
        found.append(mark.group() if mark else "")
    return found


def question_with(question: str, choices: list[Choice]) -> str:
    """Return the question, an empty line, and a line for each choice."""
    return question + "\n\n" + "\n".join(map(str, choices))


def right_choice(choices: list[Choice], label: str, where: Where) -> Choice:
    """Return the choice with this label. Raises MalformedRecord (answer_is_no_choice, ambiguous_answer)."""
    right = next((choice for choice in choices if choice.label == label), None)
    if right is None:
        labels = ", ".join(choice.label for choice in choices)
        raise MalformedRecord("answer_is_no_choice", where, f"the answer is {label!r}, the choices are {labels}")
    if sum(choice.text == right.text for choice in choices) > 1:
        raise MalformedRecord("ambiguous_answer", where, f"{right.text!r}, the answer, is the text of two choices")
    return right


def worked_solution(steps: str, answer: str, where: Where) -> str:
    """Return the steps and, on a last line of its own, "#### answer".

    Raises MalformedRecord (mark_in_answer) when the answer holds that mark itself and could not be read back.
    """
    if FINAL_MARK in answer:
        raise MalformedRecord("mark_in_answer", where, f'the answer contains "{FINAL_MARK}", the mark before an answer')
    return f"{steps}\n{FINAL_MARK} {answer}" if steps else f"{FINAL_MARK} {answer}"
