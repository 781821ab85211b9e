"""A scheduler of one machine that answers to Slurm's names: it runs the array jobs it is given, in the background.

`install(folder)` writes sbatch, squeue, sacct, scancel, srun and scontrol into a folder for PATH; what they know lies
beside them in `jobs/<id>/`: the script, and per task a file with its state. Only what datatrove and our code use of
each program is understood; anything else is an error.
"""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "sacct", "scancel", "srun", "scontrol")
CORES = 2
AT_WORK = ("PENDING", "RUNNING")


def install(folder: Path) -> Path:
    """Write the programs and return the folder of the jobs."""
    (folder / "jobs").mkdir(parents=True)
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {folder} {name} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder / "jobs"


class Job:
    """A job on disk."""

    def __init__(self, jobs: Path, identity: str):
        self.id, self.folder = identity, jobs / identity

    @property
    def script(self) -> str:
        return (self.folder / "script").read_text()

    def option(self, name: str) -> str:
        return re.search(rf"^#SBATCH --{name}=(.*)$", self.script, re.MULTILINE)[1]

    def state(self, task: int, new: str | None = None) -> str:
        file = self.folder / f"{task}.state"
        if new is not None:
            beside = file.with_suffix(f".{os.getpid()}-{task}")
            beside.write_text(new)
            beside.replace(file)
        return file.read_text()

    def tasks(self) -> list[int]:
        return sorted(int(file.stem) for file in self.folder.glob("*.state"))

    def run(self, task: int) -> None:
        if self.state(task) != "PENDING":
            return
        log = self.option("output").replace("%A", self.id).replace("%a", str(task))
        environment = os.environ | {
            "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": self.id, "SLURM_NODELIST": "localhost",
        }  # fmt: skip
        with open(log, "wb") as words:
            process = subprocess.Popen(
                ["bash", str(self.folder / "script")],
                stdout=words, stderr=words, stdin=subprocess.DEVNULL, start_new_session=True, env=environment,
            )  # fmt: skip
        (self.folder / f"{task}.pid").write_text(str(process.pid))
        self.state(task, "RUNNING")
        failed = process.wait() != 0
        if self.state(task) == "RUNNING":
            self.state(task, "FAILED" if failed else "COMPLETED")

    def cancel(self) -> None:
        for task in self.tasks():
            if self.state(task) in AT_WORK:
                self.state(task, "CANCELLED")
                with suppress(FileNotFoundError, ProcessLookupError):
                    os.killpg(int((self.folder / f"{task}.pid").read_text()), signal.SIGKILL)


def sbatch(jobs: Path, *arguments: str) -> int:
    *options, script = arguments
    assert all(option.startswith("--export=ALL") for option in options), options
    subprocess.run(["bash", "-n", script], check=True)
    job = Job(jobs, str(100 + len(list(jobs.iterdir()))))
    job.folder.mkdir()
    (job.folder / "script").write_text(Path(script).read_text())
    last = int(re.match(r"0-(\d+)", job.option("array"))[1])
    for task in range(last + 1):
        job.state(task, "PENDING")
    subprocess.Popen(
        [sys.executable, __file__, str(jobs.parent), "schedule", job.id],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    print("Submitted batch job", job.id)
    return 0


def schedule(jobs: Path, identity: str) -> int:
    job = Job(jobs, identity)
    at_once = re.search(r"%(\d+)", job.option("array"))
    with ThreadPoolExecutor(min(CORES, int(at_once[1])) if at_once else CORES) as pool:
        list(pool.map(job.run, job.tasks()))
    return 0


def squeue(jobs: Path, *arguments: str) -> int:
    assert arguments[:3] == ("--noheader", "--array", "--format=%K"), arguments
    job = Job(jobs, arguments[3].removeprefix("--jobs="))
    if not job.folder.exists():
        print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
        return 1
    print("\n".join(str(task) for task in job.tasks() if job.state(task) in AT_WORK))
    return 0


def sacct(jobs: Path, *arguments: str) -> int:
    assert arguments[:4] == ("--noheader", "--allocations", "--parsable2", "--format=State"), arguments
    identity, task = arguments[4].removeprefix("--jobs=").split("_")
    print(Job(jobs, identity).state(int(task)))
    return 0


def scancel(jobs: Path, identity: str) -> int:
    Job(jobs, identity).cancel()
    return 0


def srun(jobs: Path, *arguments: str) -> int:
    assert arguments[:3] == ("-l", "-n", "1"), arguments
    os.execvp(arguments[3], arguments[3:])


def scontrol(jobs: Path, *arguments: str) -> int:
    assert arguments[:2] == ("show", "hostnames"), arguments
    print(arguments[2])
    return 0


def wait_until(condition, seconds: float = 60.0) -> None:
    """Return when the condition holds; fail when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[2]](Path(sys.argv[1]) / "jobs", *sys.argv[3:]))
