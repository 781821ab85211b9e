"""Ray: datatrove's executor runs the tasks of a step and returns when all have ended; a process of its own waits.

That process is Ray's driver. When it ends, by a signal to this one or with it, Ray ends its tasks; so no job outlives
the script, and nothing needs to be found again.
"""

import ctypes
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

from pipeline_lib.config.scale_out import ScaleOutSettings
from pipeline_lib.stage import Stage, UserError
from pipeline_lib.stage.atomic import remove

from .batch import Batch, UnitsOfStep

SCRIPTS = Path(__file__).resolve().parents[2]
ENDING_SECONDS = 30.0
WATCHING_SECONDS = 0.2
REPORTED = 3  # exit code of a child that has reported its error itself
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def require() -> None:
    """Raise UserError when Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "scale_out.engine is ray, and the package ray is not installed; install it with: pip install 'ray>=2.60,<3'"
            ", or set scale_out.engine to local"
        )


@dataclass(frozen=True)
class RayRun:
    """The tasks of a step; task n does every tasks-th unit of `units`, from number n on."""

    driver: BaseProcess
    line: Connection
    tasks: int
    units: dict[str, int]
    folder: Path

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.tasks} tasks on Ray"

    def task_of(self, key: str) -> int:
        """Return the task that does a unit."""
        return self.units[key] % self.tasks

    def may_work(self, task: int) -> bool:
        """Whether the driver is alive: it starts a task again whose worker was lost."""
        return self.driver.is_alive()

    def log_of(self, task: int) -> Path:
        """Return what the task wrote, or the driver's words when the task could not hand its own over."""
        own = self.folder / "logs" / f"task_{task:05d}.log"
        return own if own.exists() else driver_log(self.folder)

    def fate_of(self, task: int) -> str:
        """Return nothing: how Ray saw the task end stands in the driver's log."""
        return ""

    def passed_over(self, task: int) -> bool:
        """Return False: all tasks were started after the last result was withdrawn."""
        return False

    def has_ended(self) -> bool:
        """Whether the driver is gone, and with it every task."""
        return not self.driver.is_alive()

    def cancel(self) -> str:
        """Tell the driver to leave, Ray's processes and the tasks end with it; return the rest of a sentence."""
        self.line.close()
        self.driver.join(ENDING_SECONDS)
        self.driver.kill()
        return "were cancelled"


class WatchedUnits(UnitsOfStep):
    """Does a task's share in a child process, and reports a child that is killed, mostly for want of memory.

    The pool in which datatrove's Ray worker runs a task would wait for a dead process for ever. Child and watcher end
    when the process above them does, so a cancelled task leaves nobody behind.
    """

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do this task's units. Raises RuntimeError when the child did not do them all."""
        above = os.getppid()
        child = os.fork()
        if child == 0:
            self._run_as_child(rank, world_size)
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if os.getppid() != above:
                os.kill(child, signal.SIGKILL)
                os._exit(1)
            time.sleep(WATCHING_SECONDS)
        code = os.waitstatus_to_exitcode(ended[1])
        if code == 0:
            return
        how = f"signal {-code}, is there too little memory?" if code < 0 else f"exit code {code}"
        error = RuntimeError(f"its process ended by {how}")
        if code != REPORTED:
            left = [key for key, _ in self.batch.share(rank, world_size) if self.batch.result(key) is None]
            self.batch.report(rank, left[0] if left else None, error)
        raise error

    def _run_as_child(self, rank: int, world_size: int) -> NoReturn:
        die_with_parent_process()
        try:
            super().run(rank=rank, world_size=world_size)
        except BaseException:
            traceback.print_exc()
            os._exit(REPORTED)
        os._exit(0)


def die_with_parent_process() -> None:
    """Have the kernel kill this process when its parent ends (Linux; elsewhere it goes on to the end of its units)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def driver_log(folder: Path) -> Path:
    """Return where the driver's words go."""
    return folder / "driver.log"


def start(stage: Stage, batch: Batch, missing: list[str]) -> RayRun:
    """Start the driver of the tasks that do what is missing."""
    settings = stage.config.scale_out
    remove(batch.reports)
    folder = batch.folder / "executor"
    remove(folder)
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")  # a fork would copy threads that Ray does not expect
    line, end = context.Pipe()
    arguments = (settings, batch.only(missing), folder, stage.threads, end)
    driver = context.Process(target=_drive, args=arguments, daemon=True)
    driver.start()
    end.close()
    tasks = min(settings.tasks, len(missing))
    return RayRun(driver, line, tasks, {key: place for place, key in enumerate(missing)}, folder)


def _drive(settings: ScaleOutSettings, batch: Batch, folder: Path, cores: int, line: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the script decides what a keystroke ends
    threading.Thread(target=_leave_when_told, args=(line,), name="parent-watch", daemon=True).start()
    words = os.open(driver_log(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(words, 1)
    os.dup2(words, 2)
    from datatrove.executor.ray import RayPipelineExecutor

    try:
        _join_cluster(settings, cores)
        executor = RayPipelineExecutor(
            pipeline=[WatchedUnits(batch)],
            tasks=min(settings.tasks, len(batch.jobs)),
            workers=settings.workers or -1,
            cpus_per_task=settings.cpus_per_task,
            mem_per_cpu_gb=settings.memory_per_cpu_gb,
            logging_dir=str(folder),
            skip_completed=False,  # a unit with a result is passed over, whatever became of its task
        )
        executor.run()
    except UserError as error:
        batch.report(0, None, error)
        sys.exit(2)


def _leave_when_told(line: Connection) -> None:
    """Wait until the script closes the line, or is gone, which does the same.

    Killing this process instead would leave agents of Ray behind.
    """
    with suppress(EOFError):
        line.recv()
    import ray

    ray.shutdown()
    os._exit(1)


def _join_cluster(settings: ScaleOutSettings, cores: int) -> None:
    """Join or start the cluster. Raises UserError when there is none, or no node of it has room for a task."""
    import ray

    python_path = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH")]))
    options = {"runtime_env": {"env_vars": {"PYTHONPATH": python_path}}, "log_to_driver": False}
    if settings.ray_address is None:
        options |= {"num_cpus": max(cores, settings.cpus_per_task), "include_dashboard": False}
    try:
        ray.init(settings.ray_address or "local", **options)
    except ConnectionError as error:
        raise UserError(f"scale_out.ray_address {settings.ray_address}: no Ray cluster answers ({error})") from None
    _check_room([node["Resources"] for node in ray.nodes() if node["Alive"]], settings)


def _check_room(nodes: list[dict[str, float]], settings: ScaleOutSettings) -> None:
    needed = {"CPU": settings.cpus_per_task, "memory": settings.task_memory}
    if not any(all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes):
        largest = max((node.get("memory", 0) for node in nodes), default=0) / (1 << 30)
        raise UserError(
            f"no node of the Ray cluster has {settings.cpus_per_task} CPUs and {settings.task_memory >> 30} GB for one"
            f" task (the largest offers {largest:.1f} GB); lower scale_out.cpus_per_task or scale_out.memory_per_cpu_gb"
        )
