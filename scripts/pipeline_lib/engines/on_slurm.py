"""Slurm: one array job per step, whose tasks are the ranks of datatrove's executor.

sbatch returns at once, so the job's id is kept beside its results (job.json), and a later start finds it. Who is at
work is asked of squeue, how a task ended of sacct. datatrove pickles its executor, with the batch in it, into
executor.pik; the tasks unpickle that file, which only this process wrote.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datatrove.executor.slurm import SlurmPipelineExecutor
from loguru import logger

from pipeline_lib.config.scale_out import ScaleOutSettings
from pipeline_lib.stage import Stage, StageFailure, UserError, write_json_atomic
from pipeline_lib.stage.atomic import remove
from pipeline_lib.stage.node_environment import search_paths
from pipeline_lib.stage.workspace import read_json

from .batch import Batch, UnitsOfStep

RECORD = "job.json"
ASKING_SECONDS = 60.0


def require() -> None:
    """Raise UserError when this machine cannot submit jobs."""
    for program in ("sbatch", "squeue", "scancel"):
        if shutil.which(program) is None:
            raise UserError(
                f"scale_out.engine is slurm, and there is no {program} on this machine's PATH; start the script on a"
                " node that submits to Slurm, or set scale_out.engine to local"
            )


@dataclass(frozen=True)
class SlurmJob:
    """An array job; task n does every tasks-th unit of `units`, from number n on.

    found: it was submitted by an earlier start.
    """

    id: str
    tasks: int
    units: tuple[str, ...]
    logs: Path
    found: bool = False

    @property
    def name(self) -> str:
        """For messages."""
        return f"Slurm job {self.id}"

    @classmethod
    def read(cls, record: Path) -> "SlurmJob":
        """Return the job that an earlier start recorded."""
        value = read_json(record)
        return cls(value["id"], value["tasks"], tuple(value["units"]), Path(value["logs"]), found=True)

    def write(self, record: Path) -> None:
        """Record the job for later starts."""
        write_json_atomic(record, {"id": self.id, "tasks": self.tasks, "units": self.units, "logs": str(self.logs)})

    @cached_property
    def _places(self) -> dict[str, int]:
        return {unit: place for place, unit in enumerate(self.units)}

    def task_of(self, key: str) -> int:
        """Return the task that does a unit."""
        return self._places[key] % self.tasks

    def at_work(self) -> set[int] | None:
        """Return the tasks that wait or run, None when squeue does not answer."""
        asked = _ask("squeue", "--noheader", "--array", "--format=%K", f"--jobs={self.id}")
        if asked is None:
            return None
        if asked.returncode:  # a job that ended minutes ago is not known any more
            return set() if "Invalid job id" in asked.stderr else None
        return {int(line) for line in asked.stdout.split() if line.isdigit()}

    def may_work(self, task: int) -> bool | None:
        """Whether the task waits or runs, None when squeue does not answer."""
        tasks = self.at_work()
        return None if tasks is None else task in tasks

    def log_of(self, task: int) -> Path:
        """Return what Slurm keeps of a task's words."""
        return self.logs / f"{self.id}_{task}.out"

    def fate_of(self, task: int) -> str:
        """Return the state in which sacct saw the task end; nothing where accounting is off."""
        asked = _ask(
            "sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={self.id}_{task}"
        )
        return asked.stdout.strip().split("\n")[0] if asked and not asked.returncode else ""

    def passed_over(self, task: int) -> bool:
        """Whether a task that is gone was at work before this start, and did not fail as far as Slurm tells."""
        return self.found and self.fate_of(task) in ("COMPLETED", "")

    def has_ended(self) -> bool:
        """Whether squeue knows of no task any more."""
        return self.at_work() == set()

    def cancel(self) -> str:
        """End all tasks; return what became of them, as the rest of a sentence."""
        asked = _ask("scancel", self.id)
        if asked is None or asked.returncode:
            return f"could not be cancelled from here; if it is still at work, end it with: scancel {self.id}"
        return "was cancelled"


def _ask(*command: str) -> subprocess.CompletedProcess | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ASKING_SECONDS)
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return None


def find_or_submit(stage: Stage, batch: Batch, missing: list[str]) -> SlurmJob:
    """Return the job of an earlier start that is still at work on what is missing, or a new one."""
    record = batch.folder / RECORD
    if record.exists():
        job = SlurmJob.read(record)
        at_work = job.at_work()
        if at_work != set() and set(missing) <= set(job.units):
            stage.say(f"  {job.name} of an earlier start is {'still' if at_work else 'perhaps'} at work")
            return job
        job.cancel()
    remove(batch.reports)
    job = _submit(stage, batch, missing)
    job.write(record)
    return job


def _submit(stage: Stage, batch: Batch, missing: list[str]) -> SlurmJob:
    logger.disable("datatrove")  # what it says on the terminal is said by the stage, in one line
    executor = executor_of(stage.config.scale_out, batch.only(missing), f"{stage.name}-{batch.step}")
    try:
        executor.launch_job()
    except subprocess.CalledProcessError as error:
        script = batch.folder / "executor" / "launch_script.slurm"
        raise UserError(
            f"sbatch refused {script} (exit {error.returncode}, its words stand above); correct the section scale_out"
        ) from None
    return SlurmJob(executor.job_id, executor.tasks, tuple(missing), Path(executor.slurm_logs_folder))


class OneJob(SlurmPipelineExecutor):
    """Without the second job that would add up datatrove's statistics, which nobody reads here."""

    def launch_merge_stats(self) -> None:
        """Do nothing."""


def executor_of(settings: ScaleOutSettings, batch: Batch, name: str) -> OneJob:
    """Return datatrove's Slurm executor for a batch, with as many tasks as there are units, at most `tasks`."""
    return OneJob(
        pipeline=[UnitsOfStep(batch)],
        tasks=min(settings.tasks, len(batch.jobs)),
        workers=settings.workers or -1,
        time=settings.time,
        partition=settings.partition,
        qos=settings.qos,
        cpus_per_task=settings.cpus_per_task,
        mem_per_cpu_gb=settings.memory_per_cpu_gb,
        sbatch_args=settings.sbatch_options,
        env_command="\n".join(environment(settings)),
        job_name=name,
        job_id_retriever=job_id,
        logging_dir=str(batch.folder / "executor"),
        skip_completed=False,  # a unit with a result is passed over, whatever became of its task
    )


def environment(settings: ScaleOutSettings) -> list[str]:
    """Return the shell lines after which a node finds datatrove's launcher and the modules below scripts/."""
    return [*settings.setup, *search_paths()]


def job_id(words: str) -> str:
    """Return the id of the job from sbatch's words."""
    found = re.search(r"Submitted batch job (\d+)", words)
    if not found:
        raise StageFailure(f"sbatch named no job, it said {words.strip()!r}; look with squeue whether one runs")
    return found[1]
