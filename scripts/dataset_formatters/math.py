"""Worked solutions of mathematical problems: GSM8K, Orca-Math, MetaMathQA, MathInstruct, MATH, AQuA-RAT.

Each data set states its final answer in its own way, and each solution keeps its text, so an evaluation reads the
answer where its data set writes it:

    gsm8k, aqua             a last line "#### 1080" or "#### C"
    metamath                "The answer is: 752" at the end, after "#### 752" where the problem comes from GSM8K
    math                    the last \\boxed{...}
    orca-math, mathinstruct free text or a program: no mark, none is invented

GSM8K's raw answers carry two kinds of markup. `<<48/2=24>>` is for a calculator that watches the decoder; a model
trained on it writes the marks for nothing, so they are removed. The last line `#### 1,080` is the answer by which
solutions are graded; it is kept, with the number in one spelling (no thousands separators, currency or final dot),
so that "1080", "1,080" and "$1080." cannot count as different answers.
"""

import re
from typing import Any

from .choices import FINAL_MARK, brought_letters, lettered, question_with, right_choice, worked_solution
from .record import MalformedRecord, Where, list_field, message, refuse_unread, text_field
from .turns import conversation

_CALCULATION = re.compile(r"<<[^<>]*>>")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_TOKEN = re.compile(r"\\(?:[A-Za-z]+|[^\sA-Za-z])|[^\s\\{}$]")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(
    r"(?P<sign>[-+]?) *(?:\$ *)?"
    r"(?:(?P<whole>\d{1,3}(?P<separator>[, ])\d{3}(?:(?P=separator)\d{3})*|\d+)"
    r"(?:\.(?P<decimals>\d*))?|\.(?P<only>\d+))"
)
"""Separators stand between groups of three digits, all of one kind: "3, 4" and "12 15" are two numbers each.

Trap: two repetitions that can share the same spaces would try every way to share them, in the square of their number.
"""


def normalised_number(text: str) -> str | None:
    """Return the number a final answer states ("$1,080.00" -> "1080"), or None when it is not one number."""
    found = _NUMBER.fullmatch(text.strip().lstrip("$€£").strip().rstrip("%").rstrip(".").strip())
    if not found:
        return None
    whole = re.sub("[, ]", "", found["whole"] or "").lstrip("0") or "0"
    fraction = (found["decimals"] or found["only"] or "").rstrip("0")
    sign = "-" if found["sign"] == "-" else ""
    number = f"{whole}.{fraction}" if fraction else whole
    return number if number == "0" else sign + number


def format_gsm8k(record: Any, where: Where) -> dict[str, Any]:
    """Read {"question", "answer"}, the answer ending in a line "#### number"."""
    question = text_field(record, "question", where)
    answer = text_field(record, "answer", where)
    refuse_unread(record, (), where)
    steps, final = _steps_and_final(answer, where)
    number = normalised_number(final)
    if number is None:
        raise MalformedRecord("final_answer_is_not_a_number", where, f"the final answer is {final!r:.80}")
    steps = _CALCULATION.sub("", steps).strip()
    return _solved(question, worked_solution(steps, number, where), where)


def _steps_and_final(answer: str, where: Where) -> tuple[str, str]:
    """Return what stands before and behind the first mark of the last line of an answer without white space around it.

    Found by plain search, in one pass: a pattern with white space before the mark starts anew at each space of a text.
    Raises MalformedRecord (no_final_answer).
    """
    mark = answer.find(FINAL_MARK, answer.rfind("\n") + 1)
    if mark < 0:
        raise MalformedRecord("no_final_answer", where, 'the answer has no last line "#### number"')
    return answer[:mark].strip(), answer[mark + len(FINAL_MARK) :].strip()


def format_orca_math(record: Any, where: Where) -> dict[str, Any]:
    """Read {"question", "answer"}, the answer free text without a mark before its result."""
    question, answer = text_field(record, "question", where), text_field(record, "answer", where)
    refuse_unread(record, (), where)
    return _solved(question, answer, where)


def format_metamath(record: Any, where: Where) -> dict[str, Any]:
    """Read {"query", "response"}; the question asked is the query, not "original_question" it was made from."""
    question, solution = text_field(record, "query", where), text_field(record, "response", where)
    refuse_unread(record, (), where)
    return _solved(question, solution, where)


def format_mathinstruct(record: Any, where: Where) -> dict[str, Any]:
    """Read {"instruction", "output"}; the output is a solution in words, or a program that prints the answer."""
    question, solution = text_field(record, "instruction", where), text_field(record, "output", where)
    refuse_unread(record, (), where)
    return _solved(question, solution, where)


def format_math(record: Any, where: Where) -> dict[str, Any]:
    """Read {"problem", "solution"} of the MATH competition data; "level" and "type" are not needed.

    Raises MalformedRecord; reason no_final_answer when the solution has no last \\boxed{...} that can be read.
    """
    problem, solution = text_field(record, "problem", where), text_field(record, "solution", where)
    refuse_unread(record, (), where)
    if boxed_answer(solution) is None:
        raise MalformedRecord("no_final_answer", where, r"the solution has no \boxed{answer}, or an unfinished one")
    return _solved(problem, solution, where)


def boxed_answer(solution: str) -> str | None:
    r"""Return what stands in the last \boxed (or \fbox) of a TeX text, or None when there is none or it never closes.

    The argument is a group in braces, escaped braces (\{) being text, or without braces the next token, as in TeX.
    """
    boxes = list(_BOX.finditer(solution))
    if not boxes:
        return None
    start = boxes[-1].end()
    if solution[start : start + 1] != "{":
        token = _TOKEN.match(solution, start)
        return token.group() if token else None
    depth = 0
    for brace in _BRACE.finditer(solution, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return solution[start + 1 : brace.start()].strip() or None
    return None


def format_aqua(record: Any, where: Where) -> dict[str, Any]:
    """Read {"question", "options": ["A)...", ...], "rationale", "correct": letter}.

    The user asks the question with its options, one a line. The solution is the rationale as it is, which names the
    letter mostly but not always and in many ways, and a last line "#### C". That is the mark of GSM8K's answers, so a
    task that compares what is behind the last mark with "correct" grades solutions of both kinds alike. Raises
    MalformedRecord; reason unlabelled_option when the options do not begin with A, B, C ... in their order.
    """
    question = text_field(record, "question", where)
    options = list_field(record, "options", where)
    if not all(brought_letters(options)):
        raise MalformedRecord("unlabelled_option", where, f"the options do not begin with A), B) ...: {options!r:.80}")
    choices = lettered(options, where)
    right = right_choice(choices, text_field(record, "correct", where), where)
    solution = worked_solution(text_field(record, "rationale", where), right.label, where)
    refuse_unread(record, (), where)
    return _solved(question_with(question, choices), solution, where)


def _solved(question: str, solution: str, where: Where) -> dict[str, Any]:
    return conversation([message("user", question), message("assistant", solution)], where)


CONVERSATIONS = {
    "gsm8k": format_gsm8k,
    "orca-math": format_orca_math,
    "metamath": format_metamath,
    "mathinstruct": format_mathinstruct,
    "math": format_math,
    "aqua": format_aqua,
}
