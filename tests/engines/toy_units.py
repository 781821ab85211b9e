"""What the tasks of the toy stage do; knobs come by environment, which sbatch passes on.

TOY_GATE: a file without which only the first two units are done; TOY_FAULT: `unit:what`, what = user (a mistake of the
user), defect, or die (no word).
"""

import os
import time
from pathlib import Path
from typing import Any

from pipeline_lib.stage import UserError, atomic_path

_offset = 0


def start(offset: int) -> None:
    global _offset
    _offset = offset


def square(job: tuple[int, Path]) -> dict[str, Any]:
    """Write the square of a number, and how often anybody did."""
    number, path = job
    gate = os.environ.get("TOY_GATE")
    while gate and number > 1 and not Path(gate).exists():
        time.sleep(0.02)
    unit, _, what = os.environ.get("TOY_FAULT", "").partition(":")
    if unit == str(number):
        if what == "user":
            raise UserError(f"numbers.txt:{number} is not a number; put a number there")
        if what == "defect":
            raise RuntimeError("a defect")
        os._exit(9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".done"), "a") as log:
        log.write("done\n")
    with atomic_path(path) as temporary:
        temporary.write_text(f"{number * number + _offset}\n")
    return {"square": number * number + _offset}


def is_whole(job: tuple[int, Path], result: dict[str, Any]) -> bool:
    return job[1].is_file()
