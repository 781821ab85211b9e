"""What torchrun tells a process about its own restarts (`--max-restarts`), for a stage that it starts again.

Traps: it repeats the whole command line, `--force` included. And every exit code but 0 is a failure to it: a stage that
has saved and left, at its time limit or on a signal, would be started again with a fresh limit until the scheduler
kills the job. So it leaves word in its work folder when it leaves (`leave_word`), by which a restart knows
(`left_before`). The word holds for the torchrun that it names and for the restarts after it, each of which has a higher
number: when a node joins, torchrun stops the others by a signal and starts all again without counting, and that is a
start which goes on. The name holds the process of torchrun, because a job that is queued again repeats torchrun's id.
"""

import os
import platform
from pathlib import Path

from .atomic import write_json_atomic
from .workspace import read_json

_WORD = "left.json"


def restart() -> int:
    """Return how often torchrun has started this again after a failure: 0 at the first start, and without torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def starts_again() -> bool:
    """Say whether torchrun will start this again when it fails."""
    return restart() < int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def leave_word(work: Path, signal_number: int, restarts: int) -> None:
    """Write into `work` that this start leaves with all saved, as on `signal_number`; without torchrun, nothing.

    restarts: as in `left_before`.
    """
    if (name := _torchrun()) is not None:
        write_json_atomic(work / _WORD, {"torchrun": name, "signal": signal_number, "restarts": restarts})


def left_before(work: Path, restarts: int) -> int | None:
    """Return the signal number that a start before of this very torchrun left with, None to go on.

    restarts: how often it has started this again, by the most that any process was told, because a node that only
    joins the others anew does not count. A word that does not hold is removed.
    """
    word = read_json(work / _WORD)
    if word is None:
        return None
    # A word of an older version, which has no count, was left by a torchrun that has ended.
    if word["torchrun"] == _torchrun() and restarts > word["restarts"]:
        return word["signal"]
    (work / _WORD).unlink()
    return None


def _torchrun() -> str | None:
    """Return the name of the torchrun that started this, told apart from others of the same id; None without it.

    Its process is the parent of this one. In a container it may have the same number after the job was queued again.
    """
    run_id, queued_again = os.environ.get("TORCHELASTIC_RUN_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    return None if run_id is None else f"{run_id}, process {os.getppid()} on {platform.node()}, queue {queued_again}"
