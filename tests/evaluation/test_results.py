"""results.json from scores per item: values, intervals, and comparisons only on common items."""

import math

import numpy as np
import pytest

from pipeline_lib.evaluation import statistics
from pipeline_lib.evaluation.batching import token_batches
from pipeline_lib.evaluation.harness import Sample
from pipeline_lib.evaluation.results import Scores, comparison_lines, reproducible_numbers, samples_table
from pipeline_lib.stage import StageFailure

METRICS = {"quiz": {"accuracy": "acc_bytes"}, "docs": {"bits_per_byte": "bits_per_byte"}}


def table(model, task, metric, scores, weights=None, items=None):
    weights = weights if weights is not None else [1.0] * len(scores)
    items = items or [f"i{n}" for n in range(len(scores))]
    samples = [
        Sample(metric, i, float(s), float(w), "said", "right") for i, s, w in zip(items, scores, weights, strict=True)
    ]
    return samples_table(model, task, samples)


def quiz(model, scores, **extra):
    return table(model, "quiz", "accuracy", scores, **extra)


def test_values_and_intervals_are_those_of_the_statistics_module():
    rng = np.random.default_rng(0)
    right, rates, sizes = rng.integers(0, 2, 50), rng.normal(2, 0.3, 40), rng.integers(10, 900, 40)
    scores = Scores([quiz("sft", right), table("sft", "docs", "bits_per_byte", rates, sizes)])
    made = scores.summaries(METRICS, 0.9)["sft"]
    interval = statistics.proportion(right, 0.9)
    assert made["quiz"]["accuracy"] == {
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": 50,
        "higher_is_better": True,
    }
    assert made["docs"]["bits_per_byte"]["value"] == pytest.approx((rates * sizes).sum() / sizes.sum())
    assert made["docs"]["bits_per_byte"]["higher_is_better"] is False


def test_comparisons_cover_exactly_what_both_models_were_asked():
    scores = Scores(
        [quiz("a", [1, 1, 0, 1]), quiz("b", [0, 1, 0, 0]), table("a", "docs", "bits_per_byte", [1, 2], [3, 4])]
    )
    pairs = ["sft-vs-pretrained"]
    assert scores.comparisons(pairs, METRICS, 0.95) == {}
    both = Scores(
        [
            quiz("sft", [1, 1, 0, 1]),
            quiz("pretrained", [0, 1, 0, 0]),
            table("sft", "docs", "bits_per_byte", [1, 2], [3, 4]),
        ]
    )
    made = both.comparisons(pairs, METRICS, 0.95)["sft-vs-pretrained"]
    assert list(made) == ["quiz"] and made["quiz"]["accuracy"]["difference"] == 0.5
    assert made["quiz"]["accuracy"]["n"] == 4 and made["quiz"]["accuracy"]["p_value"] == 0.5


def test_models_scored_on_different_items_are_never_compared():
    for other in (quiz("dpo", [1, 0], items=["i0", "other"]), quiz("dpo", [1, 0, 1])):
        with pytest.raises(StageFailure, match="not scored on the same items"):
            Scores([quiz("sft", [1, 0]), other]).comparisons(["dpo-vs-sft"], METRICS, 0.95)
    longer = Scores(
        [
            table("sft", "docs", "bits_per_byte", [1, 2], [3, 4]),
            table("dpo", "docs", "bits_per_byte", [1, 2], [3, 5]),
        ]
    )
    with pytest.raises(StageFailure):
        longer.comparisons(["dpo-vs-sft"], METRICS, 0.95)


def test_an_uncertainty_that_does_not_exist_is_null():
    single = Scores([table("sft", "docs", "bits_per_byte", [2.0], [10])])
    entry = single.summaries(METRICS, 0.95)["sft"]["docs"]["bits_per_byte"]
    assert (entry["value"], entry["low"], entry["high"]) == (2.0, None, None)


def test_rows_survive_parquet(tmp_path):
    import pyarrow.parquet

    path = tmp_path / "sft.quiz.parquet"
    pyarrow.parquet.write_table(quiz("sft", [1, 0, 1]), path)
    again = Scores.read([path]).summaries(METRICS, 0.95)
    assert again == Scores([quiz("sft", [1, 0, 1])]).summaries(METRICS, 0.95)
    assert pyarrow.parquet.read_table(path).column_names == [
        "model",
        "task",
        "metric",
        "item",
        "score",
        "weight",
        "response",
        "target",
    ]


def test_the_spoken_verdict_follows_the_interval_and_the_direction():
    rng = np.random.default_rng(1)
    sizes = np.full(60, 100.0)
    base = rng.normal(2, 0.2, 60)

    def lines(change):
        scores = Scores(
            [
                table("lora", "docs", "bits_per_byte", base + change, sizes),
                table("dpo", "docs", "bits_per_byte", base, sizes),
            ]
        )
        return comparison_lines({"comparisons": scores.comparisons(["lora-vs-dpo"], METRICS, 0.95)})

    noise = rng.normal(0, 0.05, 60)
    assert lines(noise - 0.2)[0].endswith("better")
    assert lines(noise + 0.2)[0].endswith("worse")
    assert lines(noise - noise.mean())[0].endswith("not told apart")


def test_numbers_of_other_stages_are_copied_without_lists_nan_and_what_differs_from_run_to_run():
    result = {
        "loss": 2.5,
        "converged": True,
        "curve": [1, 2],
        "best": {"loss": math.nan, "curve": [3]},
        "only_lists": {"curve": [1]},
        "timing": {"seconds": 3.2, "checkpoints_saved": 6},
        "memory_segments": 4,
        "after": {"loss": 2.0, "timing": {"tokens_per_second": 9.0}},
    }
    assert reproducible_numbers(result) == {
        "loss": 2.5,
        "converged": True,
        "best": {"loss": None},
        "memory_segments": 4,
        "after": {"loss": 2.0},
    }


def test_batches_hold_everything_once_within_the_budget_longest_first():
    rng = np.random.default_rng(2)
    for budget in (1, 50, 300, 10_000):
        lengths = rng.integers(1, 120, 200).tolist()
        batches = token_batches(lengths, budget)
        assert sorted(index for batch in batches for index in batch) == list(range(200))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        longest = [max(lengths[i] for i in batch) for batch in batches]
        assert longest == sorted(longest, reverse=True)
    assert token_batches([], 10) == []
