"""What torchrun tells a process about its own restarts (`--max-restarts`), for a stage that it starts again.

Traps: it repeats the whole command line, `--force` included. And every exit code but 0 is a failure to it: a stage that
has saved and left, at its time limit or on a signal, would be started again with a fresh limit until the scheduler
kills the job. So it leaves word in its work folder when it leaves (`leave_word`), by which a restart knows
(`left_before`). The word holds for the torchrun that it names and for its restarts: a job that is queued again has the
same name and starts at restart 0, where the word is removed.
"""

import os
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


def leave_word(work: Path, signal_number: int) -> None:
    """Write into `work` that this start leaves with all saved, as on `signal_number`; without torchrun, nothing."""
    if (name := _run_id()) is not None:
        write_json_atomic(work / _WORD, {"torchrun": name, "signal": signal_number})


def left_before(work: Path, restarts: int) -> int | None:
    """Return the signal number that a start before of this very torchrun left with, None to go on.

    restarts: how often it has started this again, by the most that any process was told, because a node that only
    joins the others anew does not count. A word of another torchrun is removed.
    """
    word = read_json(work / _WORD)
    if word is None:
        return None
    if restarts and word["torchrun"] == _run_id():
        return word["signal"]
    (work / _WORD).unlink()
    return None


def _run_id() -> str | None:
    return os.environ.get("TORCHELASTIC_RUN_ID")
