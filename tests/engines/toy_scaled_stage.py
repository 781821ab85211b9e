"""A stage whose units an engine can do: squares of the numbers below TOY_UNITS.

TOY_KILL: the unit whose files the stage has taken, and not yet entered in its journal, when it is killed.
"""

import os
import signal
import sys
from contextlib import closing
from pathlib import Path

sys.path[:0] = [os.environ["TOY_SCRIPTS"], str(Path(__file__).parent)]

from toy_units import is_whole, square, start  # noqa: E402

from pipeline_lib import engines  # noqa: E402
from pipeline_lib.stage import Stage, link_or_copy, ordered_map, run_stage  # noqa: E402
from pipeline_lib.stage.catalog import StageSpec  # noqa: E402


def run(stage: Stage) -> None:
    engines.prepare(stage)
    jobs = {f"square/{n}": (n, stage.work / "scratch" / f"{n}.txt") for n in range(int(os.environ["TOY_UNITS"]))}
    waiting = {key: job for key, job in jobs.items() if not stage.finished(key)}
    if engines.works_elsewhere(stage):
        results = engines.results_of(stage, "square", square, waiting, is_whole, start, (1,))
    else:
        results = ordered_map(square, waiting.values(), 1, start, (1,))
    with closing(results):
        for key, result in zip(stage.todo(jobs, "squaring", "numbers"), results, strict=True):
            with stage.unit(key) as unit:
                link_or_copy(jobs[key][1], unit.path(f"{key}.txt"))
                if os.environ.get("TOY_KILL") == key:
                    os.killpg(0, signal.SIGKILL)
                unit.result = result
    stage.result = {"total": sum(stage.unit_result(key)["square"] for key in jobs)}


if __name__ == "__main__":
    run_stage(StageSpec("01_download", "no_such_script.py", "download", (), "squares", scales_out=True), run)
