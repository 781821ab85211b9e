"""The lock of a folder that its owner removes at the end: never two owners, whoever comes when."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_lib.stage.lock import LOCK, StageIsLocked, StageLock

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

WORKER = """
import os, sys, time
from pathlib import Path
from pipeline_lib.stage.lock import LOCK, StageIsLocked, StageLock
folder, alone, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
while rounds:
    try:
        lock = StageLock(folder / LOCK, print)
    except StageIsLocked:
        continue
    os.close(os.open(alone, os.O_CREAT | os.O_EXCL))  # fails when somebody else is here
    alone.unlink()
    lock.release(remove=True)
    try:
        folder.rmdir()
    except OSError:
        pass
    rounds -= 1
"""


def python(program: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", program, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env={**os.environ, "PYTHONPATH": str(SCRIPTS)}
    )


def test_processes_that_remove_the_lock_with_its_folder_are_never_there_together(tmp_path: Path):
    workers = [python(WORKER, str(tmp_path / "work"), str(tmp_path / "alone"), "300") for _ in range(3)]
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0 and out == "", err + out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("then", ["gone", "another"])
def test_a_file_that_was_removed_between_opening_and_locking_is_opened_anew(tmp_path: Path, monkeypatch, then):
    path, lock_file = tmp_path / "work" / LOCK, fcntl.lockf
    removed = []

    def lock_late(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(path.unlink())
            path.parent.rmdir() if then == "gone" else path.touch()
        lock_file(descriptor, how)

    monkeypatch.setattr(fcntl, "lockf", lock_late)
    lock = StageLock(path, print)
    asked = python(
        f"from pathlib import Path; from pipeline_lib.stage.lock import *; print(is_locked(Path({str(path)!r})))"
    )
    assert asked.communicate()[0] == "True\n"
    assert path.read_text() == str(os.getpid())  # last: closing the file gives the lock back
    lock.release()


def test_another_process_is_named(tmp_path: Path):
    holds = "import sys; from pathlib import Path; from pipeline_lib.stage.lock import *"
    holder = python(f"{holds}; lock = StageLock(Path({str(tmp_path / LOCK)!r}), print); print(1, flush=True); input()")
    assert holder.stdout.readline() == "1\n"
    with pytest.raises(StageIsLocked, match=f"is being written by process {holder.pid}; wait for it or stop it"):
        StageLock(tmp_path / LOCK, print)
    holder.communicate("\n")
    StageLock(tmp_path / LOCK, print).release(remove=True)
    assert list(tmp_path.iterdir()) == []
