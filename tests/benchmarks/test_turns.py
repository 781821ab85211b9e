"""Contenders take turns: never two at once, and what each measured is freed of the others' turns."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CalledProcessError

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
COUNTING = """
import time
for _ in range(100):
    print(time.time(), flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
def turns_module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from pretraining_peers import turns

    yield turns
    for name in [name for name in sys.modules if name.partition(".")[0] == "pretraining_peers"]:
        del sys.modules[name]


def test_they_run_in_turn_and_their_times_are_their_own(turns_module):
    turns = turns_module.Turns(slice_seconds=0.2)
    command = [sys.executable, "-c", COUNTING]
    with ThreadPoolExecutor(2) as pool:
        started = [pool.submit(turns.run, command, dict(os.environ)) for _ in range(2)]
        first, second = (each.result() for each in started)
    spans = sorted((*span, name) for name, ran in enumerate((first, second)) for span in ran.running)
    assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False))
    assert len({name for *_, name in spans[:3]}) == 2, "one waited for the other's end"
    for ran in (first, second):
        moments = [float(line) for line in ran.output.split()]
        assert len(moments) == 100
        assert 0 < ran.seconds(moments[0], moments[-1]) < moments[-1] - moments[0], "it was never stopped"
        assert all(any(began <= moment <= ended for began, ended in ran.running) for moment in moments)


def test_one_that_fails_lets_the_others_finish(turns_module):
    turns = turns_module.Turns(slice_seconds=0.1)
    with ThreadPoolExecutor(2) as pool:
        fails = pool.submit(turns.run, [sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ))
        other = pool.submit(turns.run, [sys.executable, "-c", COUNTING], dict(os.environ))
        with pytest.raises(CalledProcessError):
            fails.result()
        assert len(other.result().output.split()) == 100


def test_seconds_between_two_moments_are_those_of_its_turns(turns_module):
    ran = turns_module.Ran("", [(10.0, 12.0), (20.0, 25.0)])
    assert ran.seconds(11.0, 21.0) == 2.0
    assert ran.seconds(12.5, 19.0) == 0.0
    assert ran.seconds(0.0, time.time()) == 7.0
