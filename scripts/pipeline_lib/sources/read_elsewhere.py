"""The units of a source, read by the tasks of an engine: each into a folder of its own, with files numbered from zero.

The script takes the files into the stage when their turn comes, under the numbers that follow from the units before, so
the shards are those of a local run. It gives them a second name and leaves the first: a script that is killed before
the unit is in its journal finds them again, and no task has to read the unit twice. Tasks do not know how much of
`max_documents` the units before have used up: the script reads the unit in which the limit falls itself, and ends the
tasks there. A task opens the source anew, sees that it has the same units there, and keeps what it downloads apart from
what other tasks download.
"""

import platform
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import engines
from ..stage import Ledger, Stage, Unit, UserError, json_digest, link_or_copy
from ..stage.atomic import process_name, remove
from .base import Source, Workbench
from .registry import open_source
from .sinks import shard_name
from .unit_files import Fill, parts_of, sink_of, write_unit

if TYPE_CHECKING:
    from ..config.download import DownloadSettings


@dataclass(frozen=True)
class ReadJob:
    """A unit, its number in the source unless it is the only one, and the folder that its files are written to."""

    unit: str
    part: int | None
    folder: Path


def fills_of_tasks(stage: Stage, source: Source, waiting: Sequence[str], shard_bytes: int) -> Iterator[Fill]:
    """Yield, for each of the waiting units in order, what takes its files into the stage."""
    name = f"{source.kind}-{source.name}"
    folder = stage.work / "scratch" / "units" / name
    units = source.units()
    parts = parts_of(units)
    jobs = {unit: ReadJob(unit, parts[unit], folder / unit) for unit in waiting}
    known = (stage.settings, stage.work / "scratch", source.kind, source.name, json_digest(units), shard_bytes)
    results = engines.results_of(stage, f"read-{name}", read_unit, jobs, wrote_everything, start_reading, known)
    with closing(results):
        for unit, result in zip(waiting, results, strict=True):
            yield _Taking(stage, source, jobs[unit], result, shard_bytes).fill


@dataclass(frozen=True)
class _Taking:
    """The files of a unit on their way into the stage."""

    stage: Stage
    source: Source
    job: ReadJob
    made: dict[str, Any]
    shard_bytes: int

    def fill(self, unit: Unit, first_shard: int, room: int | None) -> dict[str, Any]:
        """Give the shards their numbers, or read the unit again when it has more records than there is room for."""
        if room is not None and self.made["result"]["documents"] > room:
            sink = sink_of(unit, self.source, first_shard, self.shard_bytes, self.job.part)
            return write_unit(unit, sink, self.source, self.source.read(self.job.unit), room, self.stage.say)
        names = self.made["result"]["files"]
        numbered = [shard_name(first_shard + place) for place in range(len(names))]
        final = numbered if self.source.kind == "text" else names
        for name, target in zip(names, final, strict=True):
            link_or_copy(self.job.folder / name, unit.path(target))
        unit.ledger.merge(Ledger.from_json(self.made["ledger"]))
        for line in self.made["said"]:
            self.stage.say(line)
        return self.made["result"] | {"files": final}


@dataclass(frozen=True)
class _Reader:
    source: Source
    shard_bytes: int


_reader: _Reader


def start_reading(
    settings: "DownloadSettings", scratch: Path, kind: str, name: str, units_digest: str, shard_bytes: int
) -> None:
    """Open the source in this process. Raises UserError when it has other units here than where the script runs."""
    global _reader
    source = open_source(settings, Workbench(scratch, reader=process_name()), kind, name)
    if json_digest(source.units()) != units_digest:
        raise UserError(
            f"download.sources '{name}': the machine {platform.node()} sees other files than the one where the script"
            " runs; make the same files and packages visible there under the same paths"
        )
    _reader = _Reader(source, shard_bytes)


def read_unit(job: ReadJob) -> dict[str, Any]:
    """Read one unit into its folder; return its result, its part of the ledger and what is to be said."""
    source, said = _reader.source, []
    remove(job.folder)  # of a task that was killed
    unit = Unit(job.unit, job.folder)
    sink = sink_of(unit, source, 0, _reader.shard_bytes, job.part)
    result = write_unit(unit, sink, source, source.read(job.unit), None, said.append)
    unit.commit()
    return {"result": result, "ledger": unit.ledger.to_json(), "said": said}


def wrote_everything(job: ReadJob, result: dict[str, Any]) -> bool:
    """Whether the files of a unit are where the task wrote them."""
    return all((job.folder / name).is_file() for name in result["result"]["files"])
