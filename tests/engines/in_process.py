"""An engine whose tasks are calls in the process of the test: pickled like any other, one after another, last first."""

import pickle
import runpy
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline_lib.engines import on_ray
from pipeline_lib.engines.batch import Batch, UnitsOfStep
from pipeline_lib.stage import Stage

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FLAGS = ["--engine", "ray"]


class DoneCrew:
    """Tasks that have all come to their end."""

    name = "tasks of this process"

    def __init__(self, missing: list[str]):
        self.missing = missing

    def task_of(self, key: str) -> int:
        return 0

    def may_work(self, task: int) -> bool:
        return False

    def log_of(self, task: int) -> Path:
        return Path("nowhere.log")

    def fate_of(self, task: int) -> str:
        return ""

    def passed_over(self, task: int) -> bool:
        return False

    def cancel(self) -> str:
        return "were cancelled"


def take_the_place_of_ray(monkeypatch: Any, tasks: int) -> list[Batch]:
    """Let `--engine ray` do its units here; return the batches that will be done."""
    batches: list[Batch] = []

    def start(stage: Stage, batch: Batch, missing: list[str]) -> DoneCrew:
        batches.append(batch.only(missing))
        wire = pickle.dumps(batches[-1])
        for task in reversed(range(tasks)):
            with suppress(Exception):  # the task has reported it
                UnitsOfStep(pickle.loads(wire)).run(rank=task, world_size=tasks)  # noqa: S301 made above
        return DoneCrew(missing)

    monkeypatch.setattr(on_ray, "start", start)
    monkeypatch.setattr(on_ray, "require", lambda: None)
    return batches


def run_script(monkeypatch: Any, script: str, *flags: str) -> int:
    """Run a numbered script in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", [script, *flags])
    return exit_code_of(lambda: runpy.run_path(str(SCRIPTS / script), run_name="__main__"))


def exit_code_of(call: Callable[[], object]) -> int:
    try:
        call()
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("a numbered script leaves with an exit code")
