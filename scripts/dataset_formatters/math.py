"""Worked solutions with a final answer: GSM8K.

GSM8K's raw answers carry two kinds of markup. `<<48/2=24>>` is for a calculator that watches the decoder; a model
trained on it writes the marks for nothing, so they are removed. The last line `#### 1,080` is the answer by which
solutions are graded; it is kept, with the number in one spelling (no thousands separators, currency or final dot),
so that "1080", "1,080" and "$1080." cannot count as different answers.
"""

import re
from typing import Any

from .record import MalformedRecord, Where, message, text_field
from .turns import conversation

_CALCULATION = re.compile(r"<<[^<>]*>>")
_FINAL_LINE = re.compile(r"\n?[ \t]*####[ \t]*([^\n]*)\s*\Z")
_NUMBER = re.compile(
    r"(?P<sign>[-+]?) *\$? *"
    r"(?:(?P<whole>\d{1,3}(?P<separator>[, ])\d{3}(?:(?P=separator)\d{3})*|\d+)"
    r"(?:\.(?P<decimals>\d*))?|\.(?P<only>\d+))"
)
"""Separators stand between groups of three digits, all of one kind: "3, 4" and "12 15" are two numbers each."""


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
    found = _FINAL_LINE.search(answer)
    if found is None:
        raise MalformedRecord("no_final_answer", where, 'the answer has no last line "#### number"')
    number = normalised_number(found.group(1))
    if number is None:
        raise MalformedRecord("final_answer_is_not_a_number", where, f"the final answer is {found.group(1)!r}")
    steps = _CALCULATION.sub("", answer[: found.start()]).strip()
    solution = f"{steps}\n#### {number}" if steps else f"#### {number}"
    return conversation([message("user", question), message("assistant", solution)], where)


CONVERSATIONS = {"gsm8k": format_gsm8k}
