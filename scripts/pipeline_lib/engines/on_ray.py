"""Ray: datatrove's executor runs the tasks of a step and returns when all have ended; a process of its own waits.

That process is Ray's driver. When it ends, by a signal to this one or with it, Ray ends its tasks; so no job outlives
the script, and nothing needs to be found again.
"""

import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from pipeline_lib.config.scale_out import ScaleOutSettings
from pipeline_lib.stage import Stage, UserError
from pipeline_lib.stage.atomic import remove

from .batch import Batch, UnitsOfStep

SCRIPTS = Path(__file__).resolve().parents[2]
ENDING_SECONDS = 10.0


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

    def cancel(self) -> None:
        """End the driver, and with it the tasks."""
        self.driver.terminate()
        self.driver.join(ENDING_SECONDS)
        self.driver.kill()


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
    driver = context.Process(target=_drive, args=(settings, batch.only(missing), folder, stage.threads), daemon=True)
    driver.start()
    tasks = min(settings.tasks, len(missing))
    return RayRun(driver, tasks, {key: place for place, key in enumerate(missing)}, folder)


def _drive(settings: ScaleOutSettings, batch: Batch, folder: Path, cores: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the script decides what a keystroke ends
    threading.Thread(target=_die_with_parent, name="parent-watch", daemon=True).start()
    words = os.open(driver_log(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(words, 1)
    os.dup2(words, 2)
    from datatrove.executor.ray import RayPipelineExecutor

    try:
        _join_cluster(settings, cores)
        executor = RayPipelineExecutor(
            pipeline=[UnitsOfStep(batch)],
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


def _die_with_parent() -> None:
    multiprocessing.parent_process().join()
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
