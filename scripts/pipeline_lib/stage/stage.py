"""What a numbered script holds in its hand while it works: inputs, resumable units, ledger, notes.

A stage is a list of units. A unit's files are written to temporary names, made durable, renamed and then entered in
the journal, in that order; a unit is finished exactly when its journal line is. Whatever kills the process, the next
start finds the finished units and does the others, so the outputs cannot depend on the interruptions.
"""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import commit, fsync_tree, remove, temporary_beside
from .catalog import BEFORE_PACKED, StageSpec
from .digests import canonical_json, file_digest
from .errors import StageFailure, StageInterrupted, UserError
from .inputs import SO_FAR, StageInput, open_input, repairing_command
from .ledger import Ledger
from .manifest import MANIFEST, FileEntry, Manifest
from .output import print_line
from .progress import PlainProgress, RichProgress, progress
from .signals import SignalRequest
from .workspace import Workspace

if TYPE_CHECKING:
    from pipeline_lib.config.run import RunConfig

LOG = "log.txt"
"""What a stage said, with times, in its folder."""


class Unit:
    """One resumable piece of a stage: its files, its part of the ledger, and a small result."""

    def __init__(self, key: str, folder: Path):
        self.key = key
        self.ledger = Ledger()
        self.result: dict[str, Any] = {}
        self.files: dict[str, FileEntry] = {}
        self._folder = folder
        self._temporaries: dict[str, Path] = {}

    def path(self, name: str) -> Path:
        """Return where to write the file or folder that will be `name` inside the stage folder."""
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._temporaries[name] = temporary_beside(target)
        remove(self._temporaries[name])
        return self._temporaries[name]

    def commit(self) -> None:
        """Make every file durable under its final name. Raises StageFailure when a promised file was not written."""
        for name, temporary in sorted(self._temporaries.items()):
            if not temporary.exists():
                raise StageFailure(f"unit {self.key} promised {name} and did not write it")
            self.files.update(describe_files(temporary, name))
            commit(temporary, self._folder / name)

    def discard(self) -> None:
        """Remove what an interrupted or failed unit left behind."""
        for temporary in self._temporaries.values():
            remove(temporary)


class Stage:
    """A stage at work; see the functions' first lines for what a script may ask of it."""

    def __init__(self, spec: StageSpec, config: "RunConfig", run_folder: Path, threads: int, arguments: str):
        self.spec = spec
        self.name = spec.name
        self.started = time.monotonic()
        self.config = config
        self.settings = getattr(config, spec.section)
        self.seed: int = config.seed
        self.threads = threads
        self.run_folder = run_folder
        self.folder = run_folder / spec.name
        self.arguments = arguments
        self.typed_settings = ""
        self.own_arguments = ""
        self.result: dict[str, Any] = {}
        self.exit_code = 0
        self.ledger = Ledger()
        self.notes: list[str] = []
        self.lasting_notes: list[str] = []
        self.origins: dict[str, str] = {}
        self.inputs: dict[str, StageInput] = {}
        self.adopted: dict[str, bool] = {}
        self.flags: dict[str, Any] = {}
        self.forced = False
        self.signals = SignalRequest()
        self._units: dict[str, dict[str, Any]] = {}
        self._kept: dict[str, FileEntry] = {}
        self._workspace: Workspace | None = None
        self._began = False
        self._log_path: Path | None = None

    # -- inputs and words ------------------------------------------------------------------------------------------

    @property
    def command(self) -> str:
        """The command that makes the outputs of this stage, for messages."""
        return repairing_command(self.name, self.arguments + self.typed_settings, self.elsewhere(self.name))

    def input(self, name: str) -> StageInput:
        """Return a finished earlier stage. Raises UserError naming the command that makes it."""
        if name not in self.needs:
            raise ValueError(f"{self.name} does not declare {name} in catalog.py, so its digest would not be watched")
        if name not in self.inputs:
            self.inputs[name] = self._open_input(name)
        return self.inputs[name]

    def input_again(self, name: str) -> StageInput:
        """Return an earlier stage as it is now: it may have published more, or finished. Raises UserError."""
        self.inputs[name] = self._open_input(name)
        return self.inputs[name]

    def _open_input(self, name: str) -> StageInput:
        elsewhere, setting = self.elsewhere(name), dict(self.spec.reads_running).get(name)
        if elsewhere is None and setting is not None:
            found = open_input(self.run_folder, name, self.arguments)
            if found.finished or not setting or getattr(self.settings, setting):
                return found
            raise UserError(
                f"{name} has not finished; wait for {found.command}, or set {self.spec.section}.{setting} to begin with"
                " what it has published so far"
            )
        return StageInput(self.run_folder, name, self.arguments, elsewhere)

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that this one reads; a run that starts from a packed cache has no 02_clean."""
        absent = list(BEFORE_PACKED[:-1]) if self.config.packed else []
        for name, setting, entry in self.spec.needed_for:
            if entry not in getattr(self.settings, setting):
                absent.append(name)
        return tuple(name for name in self.spec.needs if name not in absent)

    def elsewhere(self, name: str) -> Path | None:
        """Return the folder that the run starts from instead of its own stages up to `name`, if it does."""
        given = self.config.packed if name == BEFORE_PACKED[-1] else None
        if given is None:
            return None
        from pipeline_lib.config import resolve_path

        return resolve_path(given)

    def open_log(self) -> None:
        """Keep what is said from here on in log.txt (called by the runner once the stage folder exists)."""
        self._log_path = self.folder / LOG

    def say(self, line: str) -> None:
        """Print one line and keep it in log.txt with the time."""
        print_line(line)
        self.log(line)

    def log(self, line: str) -> None:
        """Keep one line in log.txt with the time."""
        if self._log_path is not None:
            with open(self._log_path, "a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {line}\n")

    def note(self, line: str, lasting: bool = True) -> None:
        """Keep one line for the card and the manifest: a degraded mode, a choice made by measurement.

        It stays with the unfinished work, so a later start that finishes it tells it too. A line that is not `lasting`
        holds for this start alone: every start finds out again whether it is true, or makes one of its own.
        """
        if line in self.notes:
            return
        self.notes.append(line)
        self.say(f"  note: {line}")
        if lasting:
            self.lasting_notes.append(line)
            if self._began:
                self._workspace.keep_notes([line])

    def all_notes(self) -> list[str]:
        """Return the notes for the card: those kept with the work, whichever start made them, and those of this one."""
        return list(dict.fromkeys([*self._workspace.notes(), *self.notes]))

    @contextmanager
    def progress(self, total: int | None, label: str, unit: str = "units") -> Iterator[PlainProgress | RichProgress]:
        """Show progress for the length of the block: a bar on a terminal, a line every ten seconds elsewhere."""
        with progress(total, label, unit) as bar:
            yield bar

    # -- units -----------------------------------------------------------------------------------------------------

    def begin(self, workspace: Workspace) -> None:
        """Attach the work folder (called by the runner)."""
        self._workspace = workspace
        self._began = True
        workspace.keep_notes(self.lasting_notes)
        self._units = workspace.finished_units()

    def follow(self, workspace: Workspace) -> None:
        """Attach the work folder that another process opened and writes; this one says nothing and keeps no notes."""
        self._workspace = workspace
        self.say = self.note = lambda line, lasting=True: None

    def share(self, workspace: Workspace) -> None:
        """Look into the work folder of another process that runs this stage, without its journal (see runner.py)."""
        self._workspace = workspace

    @property
    def work(self) -> Path:
        """The folder of the unfinished stage, for state that is not a unit (training checkpoints)."""
        if self._workspace is None:
            raise RuntimeError("the work folder exists only while the stage runs, not under --plan")
        return self._workspace.folder

    @property
    def resuming(self) -> bool:
        """Whether unfinished work of the same inputs, settings and code was found."""
        return self._workspace is not None and self._workspace.resuming

    def finished(self, key: str) -> bool:
        """Say whether a unit is in the journal with its files in place."""
        return key in self._units

    def unit_result(self, key: str) -> dict[str, Any]:
        """Return the result a finished unit stored. Raises KeyError for one that is not finished."""
        return self._units[key]["result"]

    def todo(self, keys: Iterable[str], label: str, unit: str = "units") -> Iterator[str]:
        """Yield the keys whose units are not finished, in order, showing progress over all of them."""
        every = list(keys)
        waiting = [key for key in every if not self.finished(key)]
        if len(waiting) < len(every):
            self.say(f"  {label}: {len(every) - len(waiting)} of {len(every)} {unit} were finished before, continuing")
        if not waiting:
            return
        with self.progress(len(every), label, unit) as bar:
            bar.skip(len(every) - len(waiting))
            for key in waiting:
                yield key
                bar.advance(1)

    @contextmanager
    def unit(self, key: str) -> Iterator[Unit]:
        """Do one unit; when the block ends its files and counts are durable and it will not be done again.

        A pending SIGINT or SIGTERM takes effect here, after the commit. Raises StageInterrupted then.
        """
        if self.finished(key):
            raise ValueError(f"unit {key} is already finished")
        unit = Unit(key, self.work)
        try:
            yield unit
            unit.commit()
        except BaseException:
            unit.discard()
            raise
        record = {
            "unit": key,
            "files": {name: vars(entry) for name, entry in sorted(unit.files.items())},
            "ledger": unit.ledger.to_json(),
            "result": unit.result,
        }
        self._workspace.journal.append(record)
        self._units[key] = json.loads(canonical_json(record))  # as the next start would read it: keys in that order too
        self.stop_if_interrupted()

    def adopt(self, name: str, record: bool = False) -> None:
        """Make a file or folder written directly under `work` an output of the stage.

        `record=True` marks content that may differ between runs (timings); it is checksummed but enters no digest that
        a later stage depends on.
        """
        if not (self.work / name).exists():
            raise StageFailure(f"{self.name} promised {name} and did not write it")
        self.adopted[name] = record

    def publish_so_far(self, names: Iterable[str]) -> None:
        """Let later stages read files and folders of the work folder before this stage has finished.

        They must be durable and never be written again; each call replaces the list of the one before.
        """
        files: dict[str, FileEntry] = {}
        for name in names:
            files.update(describe_files(self.work / name, name))
        Manifest(self.name, self._workspace.made_from_now, files, {}, {}, [], 0).write(self.work / SO_FAR)

    def keep_published(self, name: str) -> None:
        """Make a file that the last publication left in the stage folder an output again, as it is.

        Raises StageFailure when the manifest of that publication does not list it.
        """
        if self._published is None or name not in self._published.files:
            raise StageFailure(f"{self.folder / name} is to stay, and the manifest that is there does not list it")
        self._kept[name] = self._published.files[name]

    def published_result(self) -> dict[str, Any]:
        """Return the numbers of the last publication, or nothing when there was none."""
        return self._published.result if self._published else {}

    @cached_property
    def _published(self) -> Manifest | None:
        return Manifest.read(self.folder / MANIFEST)

    # -- interruption and the end ----------------------------------------------------------------------------------

    @property
    def interrupted(self) -> bool:
        """Whether SIGINT or SIGTERM asked the stage to finish its unit, save and leave."""
        return self.signals.received is not None

    def stop_if_interrupted(self) -> None:
        """Raise StageInterrupted if a signal is pending; call it after saving."""
        if self.signals.received is not None:
            raise StageInterrupted(self.signals.received)

    def collect(self) -> tuple[dict[str, FileEntry], Ledger]:
        """Return every output with its digest, made durable, and the whole ledger (called by the runner)."""
        files: dict[str, FileEntry] = dict(self._kept)
        ledger = Ledger()
        ledger.merge(self.ledger)
        for record in self._units.values():
            files.update({name: FileEntry(**entry) for name, entry in record["files"].items()})
            ledger.merge(Ledger.from_json(record["ledger"]))
        for name, is_record in sorted(self.adopted.items()):
            fsync_tree(self.work / name)
            files.update(describe_files(self.work / name, name, is_record))
        return files, ledger


def describe_files(path: Path, name: str, record: bool = False) -> dict[str, FileEntry]:
    """Return {name inside the stage: size and digest} of a file, or of every file below a folder."""
    if path.is_dir():
        described: dict[str, FileEntry] = {}
        for child in sorted(path.iterdir()):
            described.update(describe_files(child, f"{name}/{child.name}", record))
        return described
    return {name: FileEntry(path.stat().st_size, file_digest(path), record)}
