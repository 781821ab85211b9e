"""Word problems whose answers are recomputed from the question alone."""

import operator
import re
from itertools import islice

import pytest

from pipeline_lib.sources.python_docs.arithmetic import problems
from pipeline_lib.sources.python_docs.arithmetic_templates import PEOPLE, TEMPLATES, THINGS

SOLUTIONS = {
    "get more": lambda a, b: a + b,
    "together": lambda a, b: a + b,
    "give away": lambda a, b: a - b,
    "how many more": lambda a, b: a - b,
    "still needed": lambda a, b: a - b,
    "boxes": lambda a, b: a * b,
    "price": lambda a, b: a * b,
    "per day": lambda pages, days: pages * days,
    "share": lambda total, children: total / children,
    "bags": lambda total, size: total / size,
    "twice": lambda a: 2 * a,
    "half": lambda a: a / 2,
    "get and give": lambda a, b, c: a + b - c,
    "three friends": lambda a, b, c: a + b + c,
    "boxes and loose": lambda boxes, each, loose: boxes * each + loose,
    "boxes and broken": lambda boxes, each, broken: boxes * each - broken,
    "change": lambda count, price, paid: paid - count * price,
    "two purchases": lambda ticket, drink, count: count * ticket + drink,
    "both each": lambda each, used: 2 * each - used,
    "collect and share": lambda a, b, children: (a + b) / children,
    "save up": lambda saved, weeks, spent: saved * weeks - spent,
    "more than twice": lambda a, more: a + a + more,
    "rows and rest": lambda total, row, more: total / row + more,
    "two days": lambda daily, days, last: daily * days + last,
}
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def shape(text: str) -> str:
    """The text with people, things and numbers taken out."""
    text = re.sub(r"\d+", "N", text)
    text = re.sub(rf"\b({'|'.join(PEOPLE)})\b", "P", text)
    return re.sub(rf"\b({'|'.join(THINGS)})\b", "T", text)


SHAPES = {
    shape(
        template.question.format(
            person="Ada", friend="Ben", things="apples", **dict.fromkeys([*template.operands, *template.derived], 1)
        )
    ): template.name
    for template in TEMPLATES
}


@pytest.mark.parametrize("for_evaluation", [False, True])
def test_every_answer_is_right(for_evaluation: bool):
    seen = set()
    for problem in problems(1500, for_evaluation):
        name = SHAPES[shape(problem["question"])]
        seen.add(name)
        numbers = [int(number) for number in re.findall(r"\d+", problem["question"])]
        answer = int(re.search(r"\n#### (-?\d+)$", problem["answer"])[1])
        assert SOLUTIONS[name](*numbers) == answer, problem["question"]
        assert 0 < answer < 1000
    assert seen == set(SOLUTIONS) == {template.name for template in TEMPLATES}


def test_every_step_of_the_work_is_right_and_the_last_one_is_the_answer():
    for problem in problems(1500, False):
        steps = re.findall(r"(\d+) (.) (\d+) = <<(\d+)(.)(\d+)=(\d+)>>(\d+)\b", problem["answer"])
        assert len(steps) == problem["answer"].count("\n")
        for left, sign, right, again_left, again_sign, again_right, inside, result in steps:
            assert (left, sign, right, inside) == (again_left, again_sign, again_right, result)
            assert OPERATORS[sign](int(left), int(right)) == int(result)
        assert problem["answer"].endswith(f"\n#### {steps[-1][-1]}")
        assert "{" not in problem["question"] + problem["answer"]


def test_problems_differ_and_none_is_on_both_sides_whoever_it_is_about():
    def key(problem: dict) -> tuple[str, tuple[str, ...]]:
        return shape(problem["question"]), tuple(re.findall(r"\d+", problem["question"]))

    trained = [key(problem) for problem in problems(10_000, False)]  # the most that the settings allow
    asked = [key(problem) for problem in problems(1000, True)]
    assert len(set(trained)) == len(trained) and len(set(asked)) == len(asked)
    assert set(trained).isdisjoint(asked)


def test_more_problems_begin_with_the_same_problems():
    assert list(problems(50, False)) == list(islice(problems(80, False), 50))
    assert len({problem["id"] for problem in problems(300, True)}) == 300
