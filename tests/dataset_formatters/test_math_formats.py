"""The formatters of mathematical solutions: what each layout becomes, what is refused, and genuine records."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_formatters import FORMAT_HANDLERS, MalformedRecord
from dataset_formatters.math import _steps_and_final, boxed_answer, normalised_number
from genuine_records import messages_of_all, read

WHERE = "reasoning/set.jsonl:3"
AQUA = {
    "question": "What is half of 60?",
    "options": ["A)15", "B)30", "C)None of these"],
    "rationale": "60 / 2 = 30.\nAnswer: B",
    "correct": "B",
}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def refused(name, record):
    with pytest.raises(MalformedRecord) as refusal:
        FORMAT_HANDLERS[name](record, WHERE)
    assert str(refusal.value).startswith(WHERE + ": ")
    return refusal.value.reason


@pytest.mark.parametrize(
    ("name", "asked", "answered", "solution"),
    [
        ("orca-math", "question", "answer", "He crossed it 5th, so 4 were faster."),
        ("metamath", "query", "response", "It is 16 * $47 = $752.\n#### 752\nThe answer is: 752"),
        ("metamath", "query", "response", r"It is $\boxed{\sqrt{5}}$." + "\nThe answer is: \\sqrt{5}"),
        ("mathinstruct", "instruction", "output", "def solve():\n  return 2 * 3\nprint(solve())"),
        ("math", "problem", "solution", r"The graph has $\boxed{2}$ asymptotes."),
    ],
)
def test_a_solution_keeps_its_text(name, asked, answered, solution):
    record = {asked: " How many?\n", answered: f"\n{solution} ", "original_question": "Another?", "type": "t"}
    expected = {"messages": [user("How many?"), assistant(solution)], "tools": None}
    assert FORMAT_HANDLERS[name](record, WHERE) == expected
    assert refused(name, {**record, asked: None}) == refused(name, {asked: "q"}) == "missing_field"
    assert refused(name, {**record, answered: " "}) == "empty_field"
    assert refused(name, {**record, answered: 4}) == refused(name, [record]) == "wrong_type"


@pytest.mark.parametrize(
    ("solution", "boxed"),
    [
        (r"so $\boxed{2}$", "2"),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"so \fbox{B}", "B"),
        (r"so \boxed {3}", "3"),
        (r"so $\boxed 4$", "4"),
        (r"so $\boxed\pi$", r"\pi"),
        (r"\boxed{\left\{ 1, 2 \right.}", r"\left\{ 1, 2 \right."),
        (r"\boxed{a \\{b}}", r"a \\{b}"),
        ("so 2", None),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed{1\}", None),
        (r"\boxed{ }", None),
        (r"$\boxed$ 2", None),
        (r"\boxedtext{2}", None),
        (r"\boxed", None),
    ],
)
def test_the_last_box_is_the_answer_of_a_competition_problem(solution, boxed):
    assert boxed_answer(solution) == boxed
    record = {"problem": "q", "solution": solution, "level": "Level 1", "type": "Algebra"}
    if boxed is None:
        assert refused("math", record) == "no_final_answer"
    else:
        assert FORMAT_HANDLERS["math"](record, WHERE)["messages"] == [user("q"), assistant(solution)]


groups = st.recursive(
    st.sampled_from(["x", "12", r"\pi", r"\{", r"\}", r"\\", " "]),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=6,
)


@given(st.lists(groups, min_size=1).map("".join), st.sampled_from(["", "$.", " {x}", r" \}", "}"]))
def test_balanced_braces_come_back_from_their_box(inside, after):
    assert boxed_answer(rf"Then \boxed{{{inside}}}{after}") == (inside.strip() or None)
    assert boxed_answer(rf"Then \boxed{{{inside}") is None


OLD_FINAL_LINE = re.compile(r"\n?[ \t]*####[ \t]*([^\n]*)\s*\Z")
OLD_NUMBER = re.compile(
    r"(?P<sign>[-+]?) *\$? *(?:(?P<whole>\d{1,3}(?P<separator>[, ])\d{3}(?:(?P=separator)\d{3})*|\d+)"
    r"(?:\.(?P<decimals>\d*))?|\.(?P<only>\d+))"
)
"""The oracle: patterns that say the same in the square of a text's length."""

near_final_lines = st.lists(
    st.sampled_from(["#", "##", "####", "\n", " ", "\t", "\r", "\x0b", "\u2028", "x", "5", "-", "$", ".", ","]),
    max_size=14,
).map("".join)


@given(near_final_lines)
def test_the_final_line_of_gsm8k_is_the_one_that_the_pattern_finds(text):
    answer = text.strip()
    found = OLD_FINAL_LINE.search(answer)
    if found is None:
        with pytest.raises(MalformedRecord) as refusal:
            _steps_and_final(answer, WHERE)
        assert refusal.value.reason == "no_final_answer"
    else:
        assert _steps_and_final(answer, WHERE) == (answer[: found.start()].strip(), found.group(1).strip())


@given(st.lists(st.sampled_from(["-", "+", "$", " ", "  ", "1", "234", ",", ".", "%"]), max_size=9).map("".join))
def test_a_number_is_one_that_the_pattern_finds(text):
    spelled = text.strip().lstrip("$€£").strip().rstrip("%").rstrip(".").strip()
    assert (normalised_number(text) is None) == (OLD_NUMBER.fullmatch(spelled) is None)


MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    ("answer", "steps"),
    [
        ("x" + " " * MEGABYTE + "y\n#### 4", "x" + " " * MEGABYTE + "y"),
        ("#" * MEGABYTE + "\n#### 4", "#" * MEGABYTE),
        ("x\n" + "\t" * MEGABYTE + "#### 4", "x"),
        ("<" * MEGABYTE + "\n#### 4", "<" * MEGABYTE),
    ],
    ids=range(4),
)
def test_a_megabyte_of_one_character_is_read(answer, steps):
    """It takes no time; with a pattern that starts anew at each character it took a quarter of an hour or more."""
    made = FORMAT_HANDLERS["gsm8k"]({"question": "q", "answer": answer}, WHERE)
    assert made["messages"][1]["content"] == f"{steps}\n#### 4"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("#" * MEGABYTE, "final_answer_is_not_a_number"),
        ("x\n#### -" + " " * MEGABYTE + "x", "final_answer_is_not_a_number"),
        ("x\n" + " " * MEGABYTE + "y", "no_final_answer"),
    ],
    ids=range(3),
)
def test_a_megabyte_of_one_character_is_refused(answer, reason):
    assert refused("gsm8k", {"question": "q", "answer": answer}) == reason


def test_aqua_asks_with_options_and_ends_with_the_letter():
    assert FORMAT_HANDLERS["aqua"](AQUA, WHERE) == {
        "messages": [
            user("What is half of 60?\n\nA. 15\nB. 30\nC. None of these"),
            assistant("60 / 2 = 30.\nAnswer: B\n#### B"),
        ],
        "tools": None,
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"options": ["15", "30"]}, "unlabelled_option"),
        ({"options": ["B)15", "A)30"]}, "unlabelled_option"),
        ({"options": ["A)15", 30]}, "unlabelled_option"),
        ({"options": ["A)15", "B)"]}, "empty_choice"),
        ({"options": ["A)15"]}, "too_few_choices"),
        ({"options": []}, "empty_field"),
        ({"options": "A)15 B)30"}, "wrong_type"),
        ({"options": ["A)30", "B)30", "C)4"]}, "ambiguous_answer"),
        ({"correct": "D"}, "answer_is_no_choice"),
        ({"correct": "b"}, "answer_is_no_choice"),
        ({"correct": ""}, "empty_field"),
        ({"rationale": None}, "missing_field"),
        ({"question": 4}, "wrong_type"),
    ],
)
def test_aqua_refuses_by_name(change, reason):
    assert refused("aqua", {**AQUA, **change}) == reason


def test_wrong_options_may_repeat_each_other():
    record = {**AQUA, "options": ["A)15", "B)30", "C)15"]}
    assert FORMAT_HANDLERS["aqua"](record, WHERE)["messages"][0]["content"].endswith("\n\nA. 15\nB. 30\nC. 15")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
complete = {
    "orca-math": {"question": "q", "answer": "a"},
    "metamath": {"query": "q", "response": "a"},
    "mathinstruct": {"instruction": "q", "output": "a"},
    "math": {"problem": "q", "solution": r"\boxed{1}"},
    "aqua": AQUA,
}


@given(st.sampled_from(sorted(complete)), st.data())
def test_any_value_of_any_field_is_formatted_or_refused(name, data):
    record = dict(complete[name])
    for field in data.draw(st.sets(st.sampled_from(sorted(record)), min_size=1)):
        record[field] = data.draw(json_values | st.lists(st.sampled_from(["A)1", "B)2", "C)2", " "]), max_size=4))
    try:
        made = FORMAT_HANDLERS[name](record, WHERE)
    except MalformedRecord as refusal:
        assert refusal.reason.replace("_", "").isalpha()
        return
    assert [turn["role"] for turn in made["messages"]] == ["user", "assistant"]
    assert all(turn["content"] == turn["content"].strip() != "" for turn in made["messages"])


@pytest.mark.parametrize(
    ("name", "file", "kept", "refused"),
    [
        ("orca-math", "hf_rows_quoted/orca_math_rows.jsonl", 2, {}),
        ("metamath", "hf_rows_quoted/metamathqa_rows.jsonl", 4, {}),
        ("mathinstruct", "hf_rows_quoted/mathinstruct_rows.jsonl", 2, {}),
        ("math", "math/MATH_test.part1.jsonl.gz", 1000, {}),
        ("aqua", "math/AQuA_dev.json", 254, {}),
        ("gsm8k", "hf_rows_quoted/orca_math_rows.jsonl", 0, {"no_final_answer": 2}),
        ("math", "math/AQuA_dev.json", 0, {"missing_field": 254}),
    ],
)
def test_genuine_records_are_kept_or_refused_for_a_known_reason(shared_data, name, file, kept, refused):
    made, reasons = messages_of_all(name, read(shared_data / file))
    assert (len(made), dict(reasons)) == (kept, refused)


def test_genuine_metamath_solutions_end_with_the_answer_and_ask_the_query(shared_data):
    made, _ = messages_of_all("metamath", read(shared_data / "hf_rows_quoted" / "metamathqa_rows.jsonl"))
    for record, (question, solution) in made:
        assert question["content"] == record["query"]
        final = solution["content"].rpartition("\nThe answer is: ")[2]
        assert f"#### {final}\n" in solution["content"] or f"\\boxed{{{final}}}" in solution["content"]


def test_genuine_competition_problems_are_solved_in_a_box(shared_data):
    made, _ = messages_of_all("math", read(shared_data / "math" / "MATH_test.part1.jsonl.gz"))
    for record, (question, solution) in made:
        assert (question["content"], solution["content"]) == (record["problem"].strip(), record["solution"].strip())
        after = solution["content"].rpartition(r"\boxed{")[2].lstrip()
        assert after.startswith(boxed_answer(solution["content"]))


def test_genuine_aqua_options_and_letters_can_be_read_back(shared_data):
    made, _ = messages_of_all("aqua", read(shared_data / "math" / "AQuA_dev.json"))
    for record, (question, solution) in made:
        lines = question["content"].splitlines()[-5:]
        assert [line.replace(". ", ")", 1) for line in lines] == record["options"]
        steps, _, letter = solution["content"].rpartition("\n#### ")
        assert (steps, letter) == (record["rationale"].strip(), record["correct"])


def test_mathinstruct_does_not_lose_the_input_of_an_alpaca_record():
    record = {"instruction": "q", "input": "", "output": "a"}
    assert FORMAT_HANDLERS["mathinstruct"](record, WHERE)["messages"][0]["content"] == "q"
    assert refused("mathinstruct", {**record, "input": "x"}) == "unread_input"
