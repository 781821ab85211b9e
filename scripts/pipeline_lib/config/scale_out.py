"""Settings of those who do the units of stages 01 and 02. They decide how long it takes and nothing else."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import Section
from .patterns import SLURM_TIME


class ScaleOutSettings(Section):
    """Who does the work of stages 01 and 02; nothing here changes a bit of the outputs or makes a stage run again."""

    engine: Literal["local", "slurm", "ray"] = "local"
    """Who does the units: local = processes of this machine; slurm = array jobs; ray = a Ray cluster."""
    tasks: int = Field(default=16, ge=1, le=1000)
    """slurm and ray: tasks among which the units of a step are dealt out, at most; a task does its units in turn."""
    workers: int | None = Field(default=None, ge=1)
    """slurm and ray: tasks of a step that run at the same time, at most; none = all of them."""
    cpus_per_task: int = Field(default=1, ge=1)
    """slurm and ray: CPUs that a task reserves; it uses one, more of them reserve it more memory."""
    memory_per_cpu_gb: int = Field(default=2, ge=1)
    """slurm and ray: memory that a task reserves per CPU, in GB (2^30 bytes); its sorting stays below that."""
    partition: str | None = None
    """slurm: the partition whose nodes do the work; they must see the run folder and this project at the same paths."""
    time: str = Field(default="24:00:00", pattern=SLURM_TIME)
    """slurm: time limit of a task, as sbatch reads it: hours:minutes:seconds or days-hours."""
    qos: str = ""
    """slurm: quality of service; the cluster's default when empty."""
    sbatch_options: dict[str, str | int] = {}
    """slurm: further options of sbatch by their long names, such as {account: corpora, exclude: node07}."""
    setup: list[str] = []
    """slurm: shell lines that a node needs before the work, such as `module load gcc`."""
    ray_address: str | None = None
    """ray: address of the cluster, auto = that of which this machine is a node; none starts Ray on this machine."""
    poll_seconds: float = Field(default=5.0, gt=0)
    """slurm and ray: seconds between two looks at what is finished."""
    patience_seconds: float = Field(default=60.0, ge=0)
    """slurm and ray: seconds that a result may take to become visible on the shared disk after its task has ended."""

    @property
    def task_memory(self) -> int:
        """The memory that a task reserves, in bytes."""
        return self.cpus_per_task * self.memory_per_cpu_gb << 30

    @field_validator("time", mode="before")
    @classmethod
    def _not_a_number(cls, value: Any) -> Any:
        if isinstance(value, int):
            raise ValueError("YAML reads 4:00:00 as a number; put the time limit in quotation marks")
        return value

    @model_validator(mode="after")
    def _slurm_needs_a_partition(self) -> "ScaleOutSettings":
        if self.engine == "slurm" and not self.partition:
            raise ValueError("engine slurm needs a `partition`; `sinfo` lists those of the cluster")
        return self
