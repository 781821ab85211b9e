"""The verdict logic, as properties over random metrics: fail-closed, strict, direction as declared."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.gates import verdict_files
from pipeline_lib.gates.gate_file import Gate, GateFile
from pipeline_lib.gates.verdict import judge

finite = st.floats(allow_nan=False, allow_infinity=False)
anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "low", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def gate(metric="sft.task.accuracy", **fields):
    if "equals" not in fields:
        fields = {"direction": "higher", "threshold": 0.0, **fields}
    return Gate(name="g", metric=metric, **fields)


def results(metric, model="sft"):
    return {"models": {model: {"task": {"accuracy": metric}}}, "comparisons": {}, "training": {}}


@given(finite, finite)
def test_exactly_one_direction_passes_unless_the_metric_is_on_the_threshold(value, threshold):
    metric = results({"value": value})
    higher = judge(gate(direction="higher", threshold=threshold), metric).passed
    lower = judge(gate(direction="lower", threshold=threshold), metric).passed
    assert higher == (value > threshold) and lower == (value < threshold)
    assert not (higher and lower)
    assert (higher or lower) == (value != threshold)


@given(finite, st.sampled_from(["higher", "lower"]))
def test_equality_passes_only_when_the_gate_says_so(value, direction):
    metric = results({"value": value})
    assert not judge(gate(direction=direction, threshold=value), metric).passed
    assert judge(gate(direction=direction, threshold=value, or_equal=True), metric).passed


@given(st.lists(finite, min_size=3, max_size=3).map(sorted), finite)
def test_a_gate_on_the_cautious_bound_is_never_easier_than_on_the_value(ordered, threshold):
    low, value, high = ordered
    metric = results({"value": value, "low": low, "high": high})
    for direction, bound in (("higher", "low"), ("lower", "high")):
        cautious = judge(gate(direction=direction, threshold=threshold, use=bound), metric).passed
        plain = judge(gate(direction=direction, threshold=threshold), metric).passed
        assert plain or not cautious


@given(anything, st.sampled_from(["value", "low", "high"]), st.sampled_from(["higher", "lower"]))
def test_whatever_is_not_a_finite_number_fails_with_a_reason(content, use, direction):
    verdict = judge(gate(direction=direction, threshold=0.0, use=use), results(content))
    number = content.get(use) if isinstance(content, dict) else (content if use == "value" else None)
    is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    if is_number:
        assert verdict.passed == (number > 0 if direction == "higher" else number < 0)
    else:
        assert not verdict.passed and verdict.reason and verdict.observed is None


@given(anything, st.booleans())
def test_a_truth_gate_passes_only_on_that_very_truth_value(content, wanted):
    verdict = judge(gate(equals=wanted), results(content))
    value = content.get("value") if isinstance(content, dict) else content
    assert verdict.passed == (value is wanted)


def test_true_is_not_one():
    assert not judge(gate(threshold=0.5), results(True)).passed
    assert not judge(gate(threshold=0.5), results({"value": True})).passed
    assert not judge(gate(equals=True), results(1)).passed
    assert not judge(gate(equals=True), results({"value": 1.0})).passed


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("dpo.task.accuracy", r"no 'dpo' in models; it has: sft"),
        ("sft.tsak.accuracy", r"no 'tsak' in models\.sft; did you mean 'task'\?"),
        ("sft.task.acuracy", r"did you mean 'accuracy'"),
        ("sft.task.accuracy.value.deeper", "nothing below it"),
        ("comparisons.dpo-vs-sft.task.accuracy", "no 'dpo-vs-sft' in comparisons"),
        ("training.05_pretrain.loss", "no '05_pretrain' in training"),
        ("sft.task", "the metric has no 'value'; it has: accuracy"),
    ],
)
def test_a_metric_nobody_computed_fails_and_says_where_the_path_ends(metric, reason):
    verdict = judge(gate(metric), results({"value": 1.0}))
    assert not verdict.passed
    assert re.search(reason, verdict.reason)


def test_comparisons_and_training_numbers_are_reached_by_path():
    everything = {
        "models": {},
        "comparisons": {"dpo-vs-sft": {"preference": {"accuracy": {"difference": 0.1, "low": 0.02, "high": 0.2}}}},
        "training": {"05_pretrain": {"loss": 2.5, "converged": True}},
        "contamination": {"python_choice": {"compared": True, "in_training": 1}, "domain": {"compared": False}},
    }
    none = {"direction": "lower", "threshold": 0, "or_equal": True}
    assert judge(gate("comparisons.dpo-vs-sft.preference.accuracy", use="low"), everything).observed == 0.02
    assert judge(gate("comparisons.dpo-vs-sft.preference.accuracy"), everything).observed == 0.1
    assert judge(gate("training.05_pretrain.loss", direction="lower", threshold=3.0), everything).passed
    assert judge(gate("training.05_pretrain.converged", equals=True), everything).passed
    assert "confidence bound" in judge(gate("training.05_pretrain.loss", use="low"), everything).reason
    trained_on = judge(gate("contamination.python_choice.in_training", **none), everything)
    unknown = judge(gate("contamination.domain.in_training", **none), everything)
    assert (trained_on.passed, trained_on.observed) == (False, 1) and not unknown.passed, "what nobody compared fails"


def verdicts_of(*outcomes, group="sft"):
    metrics = results({"value": 1.0, "low": 0.5, "high": math.nan})
    gates = [
        Gate(
            name=f"gate {i} | <&> \x07 λ",
            group=group,
            metric="sft.task.accuracy",
            direction="higher",
            threshold=0.0 if outcome else 2.0,
        )
        for i, outcome in enumerate(outcomes)
    ]
    return GateFile(gates=gates, promotes_to={group: "dpo"}), [judge(one, metrics) for one in gates]


@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_the_three_files_tell_the_same_story(outcomes):
    file, verdicts = verdicts_of(*outcomes)
    content = json.loads(verdict_files.as_json_text(verdict_files.as_json(file, verdicts)))
    assert content["passed"] == all(outcomes)
    assert [one["passed"] for one in content["gates"]] == outcomes
    assert len(content["failed"]) == outcomes.count(False)
    assert content["groups"]["sft"]["promotes_to"] == ("dpo" if all(outcomes) else None)
    assert content["gates"][0]["high"] is None
    markdown = verdict_files.as_markdown(file, verdicts)
    assert markdown.count("**FAIL**") == outcomes.count(False)
    assert ("PASSED" in markdown) == all(outcomes)
    rows = [line for line in markdown.splitlines() if line.startswith(("| pass", "| **"))]
    assert len(rows) == len(outcomes) and all(row.replace("\\|", "").count("|") == 7 for row in rows)
    suite = ElementTree.fromstring(verdict_files.as_junit(verdicts)).find("testsuite")
    assert int(suite.get("tests")) == len(outcomes) and int(suite.get("failures")) == outcomes.count(False)
    assert [case.find("failure") is None for case in suite.findall("testcase")] == outcomes
    assert suite.find("testcase").get("classname") == "gates.sft"
