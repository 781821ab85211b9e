"""A stage as small as a stage can be: squares of numbers, one unit each; knobs come by environment.

TOY_UNITS: number of units; TOY_SLEEP: seconds inside a unit between writing its file and finishing it; TOY_BROKEN:
which fault to make (unbalanced, empty, crash, user, exit1, probe, lost worker, memory, GPU memory). TOY_WORKERS:
processes that square; TOY_WORK: seconds that one takes for a square. TOY_NOTE and TOY_PASSING_NOTE: lines for the card,
one that lasts and one that does not.
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, os.environ["TOY_SCRIPTS"])

from pipeline_lib.stage import Estimate, Stage, StageFailure, UserError, ordered_map, run_stage  # noqa: E402
from pipeline_lib.stage.catalog import StageSpec  # noqa: E402


class OutOfMemoryError(RuntimeError):
    """As torch has it, which is no MemoryError."""


def square(key: str) -> int:
    number = int(key.removeprefix("number-"))
    time.sleep(float(os.environ.get("TOY_WORK", "0")))
    if os.environ.get("TOY_BROKEN") == "lost worker" and number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def run(stage: Stage) -> None:
    fault = os.environ.get("TOY_BROKEN", "")
    if "TOY_NOTE" in os.environ:
        stage.note(os.environ["TOY_NOTE"])
    if "TOY_PASSING_NOTE" in os.environ:
        stage.note(os.environ["TOY_PASSING_NOTE"], lasting=False)
    if fault == "user":
        raise UserError("numbers.txt:3 is not a number; put a number there")
    units = [f"number-{index:03d}" for index in range(int(os.environ.get("TOY_UNITS", "6")))]
    waiting = [key for key in units if not stage.finished(key)]
    squares = ordered_map(square, waiting, int(os.environ.get("TOY_WORKERS", "1")))
    for key in stage.todo(units, "squaring", "numbers"):
        with stage.unit(key) as unit:
            number, squared = int(key.removeprefix("number-")), next(squares)
            path = unit.path(f"squares/{key}.txt")
            with open(path, "w") as stream:
                for _ in range(2000):
                    stream.write(f"{squared}\n")
                    stream.flush()
                time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
            unit.ledger.enter("text", "numbers", documents=2, bytes=10)
            unit.ledger.keep("text", "numbers", documents=1, bytes=6)
            if fault != "unbalanced":
                unit.ledger.drop("text", "numbers", "odd one out", documents=1, bytes=4)
            unit.result = {"square": squared, "number": number}
            if fault == "crash" and number == 2:
                raise RuntimeError("a defect")
            if fault == "memory" and number == 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
            if fault == "GPU memory" and number == 2:
                raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if fault == "failure" and number == 2:
                raise StageFailure("cleaning removed everything; loosen the rules")
    log = stage.work / "timings.txt"
    log.write_text(f"{time.time()}\n")
    stage.adopt("timings.txt", record=True)
    stage.result = {
        "total": sum(stage.unit_result(key)["square"] for key in units),
        "keys": {key: list(stage.unit_result(key)) for key in units},
    }
    if fault == "exit1":
        stage.exit_code = 1


def estimate(stage: Stage) -> Estimate:
    if os.environ.get("TOY_BROKEN") == "probe":
        raise StageFailure("no number could be squared")
    if "memory" in os.environ.get("TOY_BROKEN", ""):
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return Estimate(1.0, 1 << 20, 1 << 10, "one number was squared")


def outside_data(config: object) -> dict:
    listing = os.environ.get("TOY_DATA")
    return {"data": Path(listing).read_text()} if listing else {}


if __name__ == "__main__":
    run_stage(
        StageSpec("01_download", "no_such_script.py", "download", (), "squares numbers"),
        run,
        estimate,
        inputs=outside_data,
    )
