"""An earlier stage, seen from the stage that reads it: every file is verified before it is handed out.

It is finished, or, for the few stages that can make use of that (catalog.py), still at work and has published files
that will not change any more: so_far.json in its work folder, a manifest of those.
"""

import time
from pathlib import Path
from typing import Any

from .catalog import BY_NAME
from .digests import bytes_digest, file_digest
from .errors import UserError
from .ledger import Ledger
from .lock import LOCK, is_locked
from .manifest import MANIFEST, Manifest
from .workspace import WORK

SO_FAR = "so_far.json"
_PUBLISHING_SECONDS = 60.0


def read_so_far(work: Path) -> Manifest | None:
    """Return the manifest of what the unfinished stage of a work folder has published, None when there is none."""
    return Manifest.read(work / SO_FAR)


def repairing_command(stage_name: str, arguments: str, elsewhere: Path | str | None = None) -> str:
    """Return the command that makes (or makes again) the output of a stage of this run.

    For a folder outside the run, `elsewhere`, these are words: what made it is not known.
    """
    if elsewhere is not None:
        return "the script that made that folder"
    return f"python scripts/{BY_NAME[stage_name].script}{arguments}"


class StageInput:
    """Read access to a finished stage's outputs."""

    def __init__(self, run_folder: Path, name: str, arguments: str, elsewhere: Path | None = None):
        """Open the stage `name` of a run, or the folder `elsewhere` that stands for it.

        Raises UserError, with the command to type, when it is not finished.
        """
        self.name = name
        self.elsewhere = elsewhere
        self.path = elsewhere or run_folder / name
        self.command = repairing_command(name, arguments, elsewhere)
        manifest = Manifest.read(self.path / MANIFEST)
        if manifest is None:
            state = "is damaged" if (self.path / MANIFEST).exists() else "is missing"
            raise UserError(f"{self.path / MANIFEST} {state}; make it with: {self.command}")
        self.manifest = manifest
        self._verified: set[str] = set()

    @property
    def finished(self) -> bool:
        """Whether the stage has finished."""
        return True

    @property
    def digest(self) -> str:
        """What this input is, for the fingerprint of the stage that reads it."""
        return self.manifest.outputs_digest

    @property
    def result(self) -> dict[str, Any]:
        """The summary numbers the stage stored."""
        return self.manifest.result

    @property
    def ledger(self) -> Ledger:
        """What the stage kept and dropped."""
        return Ledger.from_json(self.manifest.ledger)

    def _verify(self, name: str) -> Path:
        path = self.path / name
        entry = self.manifest.files[name]
        if name not in self._verified:
            if not path.is_file():
                raise UserError(f"{path} is missing; make it again with: {self.command} --force")
            if path.stat().st_size != entry.bytes or file_digest(path) != entry.digest:
                raise UserError(f"{path} is damaged (its checksum differs); make it again with: {self.command} --force")
            self._verified.add(name)
        return path

    def check(self) -> None:
        """Raise UserError when an output is missing or damaged; one that looks untouched since is not read again."""
        for name in self.manifest.damaged_files(self.path):
            self._verify(name)

    def files(self, pattern: str) -> list[Path]:
        """Return the outputs whose path inside the stage folder matches the glob `pattern`, sorted and verified.

        A pattern without a slash matches the top level only. Raises UserError on a missing or damaged file.
        """
        depth = pattern.count("/")
        names = [name for name in self.manifest.files if name.count("/") == depth and Path(name).match(pattern)]
        return [self._verify(name) for name in sorted(names)]

    def contents(self, pattern: str) -> dict[str, bytes]:
        """Return {name of a file: its bytes} of small outputs as `files` returns them, all of one publication.

        For what is used later than it is read: the stage may move its files or make them anew meanwhile. Raises
        UserError when that happens while they are read.
        """
        found: dict[str, bytes] = {}
        for path in self.files(pattern):
            try:
                found[path.name] = path.read_bytes()
            except FileNotFoundError:
                raise self._changing(path) from None
            if bytes_digest(found[path.name]) != self.manifest.files[path.relative_to(self.path).as_posix()].digest:
                raise self._changing(path)
        return found

    def _changing(self, path: Path) -> UserError:
        return UserError(f"{path} was moved or made anew while it was read; wait for {self.command}, then start again")

    def file(self, name: str) -> Path:
        """Return one verified output. Raises UserError when the stage did not make it."""
        if name not in self.manifest.files:
            raise UserError(
                f"{self.path / name} was not made by this stage; make it again with: {self.command} --force"
            )
        return self._verify(name)

    def folder(self, name: str) -> Path:
        """Return a folder of outputs after verifying every file below it. Raises UserError when there is none."""
        names = [file for file in self.manifest.files if file.startswith(name.rstrip("/") + "/")]
        if not names:
            raise UserError(f"{self.path / name} is empty or missing; make it again with: {self.command} --force")
        for file in names:
            self._verify(file)
        return self.path / name


class RunningInput(StageInput):
    """A stage that has not finished, as far as it has published. Its ledger is not known yet and is empty."""

    def __init__(self, run_folder: Path, name: str, arguments: str):
        """Open what the stage has published. Raises UserError, with the command to type, when that is nothing."""
        self.name = name
        self.elsewhere = None
        self.stage_folder = run_folder / name
        self.path = self.stage_folder / WORK
        self.command = repairing_command(name, arguments)
        manifest = read_so_far(self.path)
        if manifest is None:
            raise UserError(f"{self.stage_folder / MANIFEST} is missing; make it with: {self.command}")
        self.manifest = manifest
        self._verified = set()

    @property
    def finished(self) -> bool:
        """Whether the stage has finished: no."""
        return False

    @property
    def digest(self) -> str:
        """What this input is: the outputs are not known yet, but they follow from what the stage is made from."""
        return self.manifest.attempt

    @property
    def at_work(self) -> bool:
        """Whether a process is working at the stage now."""
        return is_locked(self.stage_folder / LOCK)


def open_input(run_folder: Path, name: str, arguments: str) -> StageInput:
    """Return the stage `name` of a run, finished or not; one that is just moving its outputs into place is awaited.

    Raises UserError, with the command to type, when it is neither finished nor has published anything.
    """
    folder = run_folder / name
    until = time.monotonic() + _PUBLISHING_SECONDS
    while Manifest.read(folder / MANIFEST) is None:
        publishing = (folder / WORK / MANIFEST).exists()
        if not publishing and read_so_far(folder / WORK) is not None:
            return RunningInput(run_folder, name, arguments)
        if not (publishing and is_locked(folder / LOCK)) or time.monotonic() > until:
            break
        time.sleep(0.02)
    return StageInput(run_folder, name, arguments)
