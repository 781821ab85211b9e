"""The verdict on one gate: does this number prove what the gate demands?

A path leads to a metric in results.json:

    sft.python_choice.accuracy                       an entry of "models": value, low and high
    comparisons.dpo-vs-sft.preference.accuracy       a paired difference: value (the difference), low and high
    training.05_pretrain.val_bits_per_byte_after      a plain number or truth value an earlier stage reported
    contamination.python_choice.in_training          items of a task whose text was trained on, a plain number

Fail-closed: whatever is not a finite number on the right side of the threshold fails, with the reason. That covers a
metric nobody computed, null, NaN, a missing confidence bound, and a truth value where a number belongs (in Python
`True > 0.25`, so an unchecked boolean would pass most gates).
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .gate_file import Gate

_POINT_KEYS = ("value", "difference")


class MetricMissing(Exception):
    """The path of a gate leads to nothing that can be compared; the message says where it ends."""


@dataclass(frozen=True)
class Verdict:
    """Whether a gate passed, the number (or truth value) it was decided on, and one sentence why."""

    gate: Gate
    passed: bool
    observed: float | bool | None
    reason: str
    metric: Mapping[str, Any] | float | bool | None = None


def find_metric(results: Mapping[str, Any], path: str) -> Any:
    """Return the entry of results.json at `path`. Raises MetricMissing naming the part that does not exist."""
    parts = path.split(".")
    if parts[0] not in ("models", "comparisons", "training", "contamination"):
        parts.insert(0, "models")
    place: Any = results
    for position, part in enumerate(parts):
        if not isinstance(place, Mapping) or part not in place:
            raise MetricMissing(_explain_missing(place, parts[:position], part))
        place = place[part]
    return place


def _explain_missing(place: Any, walked: list[str], part: str) -> str:
    where = ".".join(walked) or "the results"
    if not isinstance(place, Mapping) or not place:
        return f"no {part!r} in {where}: there is nothing below it"
    known = sorted(str(key) for key in place)
    nearest = difflib.get_close_matches(part, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has: {', '.join(known[:8])}"
    return f"no {part!r} in {where}; {hint}"


def judge(gate: Gate, results: Mapping[str, Any]) -> Verdict:
    """Decide one gate. Never raises for anything the results contain: what cannot be compared fails."""
    try:
        metric = find_metric(results, gate.metric)
    except MetricMissing as missing:
        return Verdict(gate, False, None, f"metric missing: {missing}")
    if gate.equals is not None:
        return _judge_truth(gate, metric)
    observed, problem = _number(metric, gate.use)
    if problem:
        return Verdict(gate, False, None, problem, metric)
    passed = _is_beyond(observed, gate)
    return Verdict(gate, passed, observed, f"{observed:.6g}, demanded {gate.demand()}", metric)


def _judge_truth(gate: Gate, metric: Any) -> Verdict:
    value = metric.get("value") if isinstance(metric, Mapping) else metric
    if not isinstance(value, bool):
        return Verdict(gate, False, None, f"not a truth value: {_spell(value)}", metric)
    return Verdict(gate, value is gate.equals, value, f"is {str(value).lower()}, demanded {gate.demand()}", metric)


def _is_beyond(observed: float, gate: Gate) -> bool:
    if gate.or_equal and observed == gate.threshold:
        return True
    return observed > gate.threshold if gate.direction == "higher" else observed < gate.threshold


def _number(metric: Any, use: str) -> tuple[float, str]:
    """Return (number, "") or (nan, why there is none)."""
    if isinstance(metric, Mapping):
        key = use if use != "value" else next((key for key in _POINT_KEYS if key in metric), "value")
        if key not in metric:
            return math.nan, f"the metric has no {use!r}; it has: {', '.join(sorted(map(str, metric))) or 'nothing'}"
        number = metric[key]
    elif use != "value":
        return math.nan, f"a plain value has no {use!r} confidence bound"
    else:
        number = metric
    if isinstance(number, bool) or not isinstance(number, int | float):
        return math.nan, f"not a number: {_spell(number)}"
    if not math.isfinite(number):
        return math.nan, f"not a finite number: {number}"
    return float(number), ""


def _spell(value: Any) -> str:
    return "null" if value is None else repr(value)[:60]
