"""A contest of hours that was stopped measures the rest, and nothing of other code or another machine counts."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from pretraining_peers.contest import Result
    from pretraining_peers.journal import Journal

    yield Journal, Result
    for name in [name for name in sys.modules if name.partition(".")[0] == "pretraining_peers"]:
        del sys.modules[name]


def test_what_was_measured_is_not_measured_again(parts, tmp_path):
    Journal, Result = parts
    measured = []

    def measure(seconds: float):
        measured.append(seconds)
        return [Result(seconds, 2.5, 4096, [(1.0, 3.0), (seconds, 2.5)])]

    path = tmp_path / "contest.jsonl"
    first = Journal(path, machine="here")
    assert first.once({"seed": 1, "lr": 1e-3}, lambda: measure(7.0))[0].seconds == 7.0
    again = Journal(path, machine="here")
    (found,) = again.once({"lr": 1e-3, "seed": 1}, lambda: measure(8.0))
    assert (found.seconds, found.bits_per_byte, found.tokens) == (7.0, 2.5, 4096)
    assert [tuple(point) for point in found.curve] == [(1.0, 3.0), (7.0, 2.5)]
    assert again.once({"seed": 2, "lr": 1e-3}, lambda: measure(9.0))[0].seconds == 9.0
    assert Journal(path, machine="there").once({"seed": 1, "lr": 1e-3}, lambda: measure(10.0))[0].seconds == 10.0
    assert measured == [7.0, 9.0, 10.0]


def test_a_run_that_fails_leaves_no_result(parts, tmp_path):
    Journal, _ = parts
    journal = Journal(tmp_path / "contest.jsonl")
    with pytest.raises(ZeroDivisionError):
        journal.once({}, lambda: 1 / 0)
    assert not (tmp_path / "contest.jsonl").exists()
