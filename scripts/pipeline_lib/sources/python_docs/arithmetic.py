"""Generated arithmetic word problems with worked solutions, in the form of GSM8K (arXiv:2110.14168).

Every number of an answer is computed by the code that writes the sentence, so answers cannot be wrong. A problem is a
template with its operands; its hash decides whether it belongs to training or to evaluation, so that no problem is in
both, not even with another person or other things in it. Everything is drawn from hashes of a running number: the
first n problems are the same on every machine, whatever is generated after them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

from ..base import Record
from .arithmetic_templates import PEOPLE, TEMPLATES, THINGS, Template
from .splits import draw, pick

EVALUATION_SHARE = 125
"""Share of all problems that belongs to evaluation, in thousandths."""

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


@dataclass(frozen=True)
class Problem:
    """A template with numbers in it."""

    template: Template
    numbers: dict[str, int]

    @property
    def key(self) -> str:
        """What makes it the same problem: the template and the operands, not the persons or things."""
        return f"{self.template.name} {sorted(self.numbers.items())}"

    @property
    def for_evaluation(self) -> bool:
        """Whether it belongs to evaluation rather than to training."""
        return draw("problem", self.key) % 1000 < EVALUATION_SHARE


def problems(count: int, for_evaluation: bool) -> Iterator[Record]:
    """`count` different problems of one side as records {question, answer, id}."""
    seen: set[str] = set()
    number = 0
    while len(seen) < count:
        problem = _draw_problem(number)
        if problem.for_evaluation == for_evaluation and problem.key not in seen:
            seen.add(problem.key)
            yield _record(problem, number)
        number += 1


def _draw_problem(number: int) -> Problem:
    template = pick(TEMPLATES, "template", number)
    numbers = {
        name: low + draw("operand", number, name) % (high - low + 1) for name, (low, high) in template.operands.items()
    }
    for name, (left, sign, right) in template.derived.items():
        numbers[name] = OPERATIONS[sign](numbers[left], numbers[right])
    return Problem(template, numbers)


def _record(problem: Problem, number: int) -> Record:
    person = pick(PEOPLE, "person", number)
    friend = pick([name for name in PEOPLE if name != person], "friend", number)
    words = {"person": person, "friend": friend, "things": pick(THINGS, "things", number)}
    values = dict(problem.numbers)
    lines = []
    for step in problem.template.steps:
        left, right = (values[name] if name in values else int(name) for name in (step.left, step.right))
        if step.sign == "/" and left % right:
            raise AssertionError(f"template {problem.template.name} divides {left} by {right}")
        values[step.result] = result = OPERATIONS[step.sign](left, right)
        work = f"{left} {step.sign} {right} = <<{left}{step.sign}{right}={result}>>{result}"
        lines.append(step.sentence.format(**words, **values, work=work))
    lines.append(f"#### {result}")
    question = problem.template.question.format(**words, **values)
    return {"question": question, "answer": "\n".join(lines), "id": f"arithmetic-{number:06d}"}
