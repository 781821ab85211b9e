"""From scores per item to results.json: values with intervals, and models compared on the items both were asked.

    {"models":      {model: {task: {metric: {value, low, high, n, higher_is_better}}}},
     "comparisons": {"a-vs-b": {task: {metric: {difference, low, high, p_value, n, higher_is_better}}}},
     "training":    {stage: numbers the stage reported},
     "prompts":     {model: "plain text" | "chat template"},
     "tasks":       {task: {metrics, chance, items, available, ...}},
     "contamination": {task: {compared, items, dirty, in_training, too_short, dirty_items, scores}},
     "confidence":  level of all intervals}

Paths into the first three and into contamination are what gates name.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_lib.stage import TIMING, StageFailure

from . import statistics

if TYPE_CHECKING:
    import pyarrow

    from .harness import Sample

LOWER_IS_BETTER = ("bits_per_byte",)


def samples_table(model: str, task: str, samples: Sequence["Sample"]) -> "pyarrow.Table":
    """Return one row per metric and item: model, task, metric, item, score, weight, response, target."""
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    schema = pyarrow.schema(
        [
            ("model", text),
            ("task", text),
            ("metric", text),
            ("item", text),
            ("score", number),
            ("weight", number),
            ("response", text),
            ("target", text),
        ]
    )
    rows = [{"model": model, "task": task, **asdict(sample)} for sample in samples]
    return pyarrow.Table.from_pylist(rows, schema=schema)


class Scores:
    """All scores of a run, by (model, task, metric): parallel arrays of items, scores and weights."""

    def __init__(self, tables: Iterable["pyarrow.Table"]):
        self._scores: dict[tuple[str, str, str], tuple[list[str], np.ndarray, np.ndarray]] = {}
        for table in tables:
            rows = table.to_pydict()
            keys = list(zip(rows["model"], rows["task"], rows["metric"], strict=True))
            for key in dict.fromkeys(keys):
                chosen = [position for position, other in enumerate(keys) if other == key]
                self._scores[key] = (
                    [rows["item"][position] for position in chosen],
                    np.array([rows["score"][position] for position in chosen]),
                    np.array([rows["weight"][position] for position in chosen]),
                )

    @classmethod
    def read(cls, paths: Iterable[Path]) -> "Scores":
        """Read the parquet files that `samples_table` rows were written to."""
        import pyarrow.parquet

        return cls(pyarrow.parquet.read_table(path) for path in paths)

    def summaries(self, metrics: Mapping[str, Mapping[str, str]], confidence: float) -> dict[str, Any]:
        """Return {model: {task: {metric: value with interval}}}; metrics: {task: {name: lm-eval metric}}."""
        result: dict[str, Any] = {}
        for (model, task, metric), (_, scores, weights) in self._scores.items():
            entry = _summary(metrics[task][metric], scores, weights, confidence)
            result.setdefault(model, {}).setdefault(task, {})[metric] = entry
        return result

    def clean_and_dirty(
        self, task: str, dirty: Collection[str], metrics: Mapping[str, str], confidence: float
    ) -> dict[str, Any]:
        """Return {model: {metric: {"clean": value with interval, "dirty": the same}}} of the two groups of items.

        A group without items is null.
        """
        result: dict[str, Any] = {}
        for (model, name, metric), (items, scores, weights) in self._scores.items():
            if name != task:
                continue
            is_dirty = np.array([item in dirty for item in items], np.bool_)
            result.setdefault(model, {})[metric] = {
                group: _summary(metrics[metric], scores[chosen], weights[chosen], confidence) if chosen.any() else None
                for group, chosen in (("clean", ~is_dirty), ("dirty", is_dirty))
            }
        return result

    def comparisons(
        self, pairs: Sequence[str], metrics: Mapping[str, Mapping[str, str]], confidence: float
    ) -> dict[str, Any]:
        """Return {"first-vs-second": {task: {metric: paired difference}}} for what both models were asked."""
        result: dict[str, Any] = {}
        for pair in pairs:
            first, _, second = pair.partition("-vs-")
            for task, metric in dict.fromkeys((task, metric) for _, task, metric in self._scores):
                if (first, task, metric) in self._scores and (second, task, metric) in self._scores:
                    kind = metrics[task][metric]
                    difference = self._compare((first, task, metric), (second, task, metric), kind, confidence)
                    entry = {**_json_numbers(asdict(difference)), "higher_is_better": kind not in LOWER_IS_BETTER}
                    result.setdefault(pair, {}).setdefault(task, {})[metric] = entry
        return result

    def _compare(self, first, second, kind: str, confidence: float) -> statistics.Difference:
        items, scores, weights = self._scores[first]
        other_items, other_scores, other_weights = self._scores[second]
        if items != other_items or not np.array_equal(weights, other_weights):
            raise StageFailure(f"{'.'.join(first)} and {'.'.join(second)} were not scored on the same items")
        if kind == "bits_per_byte":
            return statistics.paired_ratios(scores * weights, other_scores * weights, weights, confidence)
        return statistics.paired_proportions(scores, other_scores, confidence)


def _summary(kind: str, scores: np.ndarray, weights: np.ndarray, confidence: float) -> dict[str, Any]:
    if kind == "bits_per_byte":
        interval = statistics.ratio(scores * weights, weights, confidence)
    else:
        interval = statistics.proportion(scores, confidence)
    return {**_json_numbers(asdict(interval)), "higher_is_better": kind not in LOWER_IS_BETTER}


def _json_numbers(fields: dict[str, Any]) -> dict[str, Any]:
    """An uncertainty that does not exist (a single item) is null in JSON, which fails a gate that asks for it."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in fields.items()}


def reproducible_numbers(value: Any) -> Any:
    """Return the numbers, truth values and texts of a stage's result, nested as they are.

    Left out are lists (curves), and what a stage reports under "timing", which differs from run to run: results.json
    must not.
    """
    if isinstance(value, dict):
        kept = {
            key: reproducible_numbers(item)
            for key, item in value.items()
            if not isinstance(item, list) and key != TIMING
        }
        return {key: item for key, item in kept.items() if item != {}}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def comparison_lines(results: dict[str, Any]) -> list[str]:
    """Return one line per comparison: the difference, its interval, and whether it is proved."""
    lines = []
    for pair, tasks in results["comparisons"].items():
        for task, metrics in tasks.items():
            for metric, entry in metrics.items():
                if entry["low"] is None:
                    continue
                signed = [entry[key] if entry["higher_is_better"] else -entry[key] for key in ("low", "high")]
                low, high = sorted(signed)
                verdict = "better" if low > 0 else "worse" if high < 0 else "not told apart"
                lines.append(
                    f"{pair} {task} {metric}: {entry['difference']:+.4f} [{entry['low']:+.4f}, {entry['high']:+.4f}]"
                    f" p={entry['p_value']:.2g} {verdict}"
                )
    return lines
