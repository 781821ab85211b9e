"""The folder of an unfinished stage, its journal, and the move that turns it into the finished stage.

    runs/<run>/<stage>/work/state.json      fingerprint of the attempt, and whether --force began it
    runs/<run>/<stage>/work/journal.jsonl   finished units
    runs/<run>/<stage>/work/notes.json      lines for the card, of every start that has been at this work
    runs/<run>/<stage>/work/.../beginning.json    what the stage decided before its first unit
    runs/<run>/<stage>/work/...             files of finished units, training checkpoints
    runs/<run>/<stage>/work/manifest.json   written when all is done: from here on only renames remain

Publication is idempotent: whatever instant it is killed at, the next start sees `work/manifest.json` and goes on
renaming. The outputs of the previous attempt stay valid until then.
Trap: another process may share the work and look into it at any time. So `work` is renamed to `.removed-<number>`
before it is deleted: it is there whole or not at all. What a kill leaves of that goes with the next start.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from .atomic import fsync_folder, remove, write_json_atomic
from .digests import json_digest
from .journal import Journal
from .manifest import MANIFEST, Manifest

WORK = "work"
SUPERSEDED = "superseded"
REMOVED = ".removed"
BEGINNING = "beginning.json"
"""Name for what a stage decides when its work begins, anywhere in the work folder: worth nothing without a unit."""
_STATE = "state.json"
_JOURNAL = "journal.jsonl"
_NOTES = "notes.json"
_CHECKPOINTS = "checkpoints/*/complete.json"
_REFERENCE = "reference-*/*"  # log-probabilities that stage 09 computes before it trains


class Workspace:
    """The unfinished part of a stage folder."""

    def __init__(self, stage_folder: Path, fingerprint: dict[str, Any]):
        self.stage_folder = stage_folder
        self.folder = stage_folder / WORK
        self.fingerprint = json_digest(fingerprint)
        self.made_from_now = fingerprint
        self.resuming = False
        self.journal: Journal

    def open(self, fresh: bool, keep_superseded: bool, say: Callable[[str], None]) -> None:
        """Find the unfinished work of this very fingerprint, or start anew and say what became of other work.

        With `keep_superseded` work of another fingerprint (hours of training) is moved to `superseded/`, or to
        `superseded-2/` and so on where an earlier one lies; what holds nothing finished is discarded all the same.
        """
        state = read_json(self.folder / _STATE)
        mine = state is not None and state.get("fingerprint") == self.fingerprint and not fresh
        whose = "that --force does not continue" if fresh else "of other settings, inputs or code"
        if self.folder.exists() and not mine:
            if keep_superseded and self._took_time():
                aside = self._unused_name()
                os.replace(self.folder, aside)
                say(f"unfinished work {whose} was moved to {aside}; delete it when you do not need it any more")
            else:
                _remove_at_once(self.folder)
                nothing = ", nothing in it was finished" if keep_superseded else ""
                say(f"unfinished work {whose} was discarded{nothing}")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not mine:
            self._write_state(fresh)
        self.journal = Journal(self.folder / _JOURNAL)
        self.resuming = mine

    def _took_time(self) -> bool:
        """Say whether the work holds a finished unit, a step of training in a checkpoint, or a part of a long pass."""
        journal = self.folder / _JOURNAL
        if journal.is_file() and journal.stat().st_size:
            return True
        checkpoints = (read_json(path) or {} for path in self.folder.glob(_CHECKPOINTS))
        return any(body.get("step") != 0 for body in checkpoints) or any(self.folder.glob(_REFERENCE))

    def _unused_name(self) -> Path:
        """Return where superseded work can lie without taking the place of earlier superseded work."""
        names = (SUPERSEDED if number == 1 else f"{SUPERSEDED}-{number}" for number in count(1))
        return next(path for path in (self.stage_folder / name for name in names) if not path.exists())

    def _write_state(self, forced: bool) -> None:
        state = {"fingerprint": self.fingerprint, "made_from": self.made_from_now, "forced": forced}
        write_json_atomic(self.folder / _STATE, state)

    def take_over(self) -> None:
        """Make the unfinished work that lies here, of another fingerprint, the work of this one."""
        state = read_json(self.folder / _STATE) or {}
        self._write_state(state.get("forced", False))

    def give_up_force(self) -> None:
        """Forget that --force began this work: it failed, so what was published before stays the finished stage."""
        state = read_json(self.folder / _STATE)
        if state is not None and state.get("forced", False):
            self._write_state(False)

    def begun_by_force(self) -> bool:
        """Say whether unfinished work of this very fingerprint lies here that a start with --force began."""
        state = read_json(self.folder / _STATE) or {}
        return state.get("fingerprint") == self.fingerprint and state.get("forced", False)

    @staticmethod
    def mark(folder: Path) -> str | None:
        """Return the digest of the fingerprint whose unfinished work lies in a work folder, None without any."""
        return (read_json(folder / _STATE) or {}).get("fingerprint")

    @staticmethod
    def made_from(stage_folder: Path) -> dict[str, Any] | None:
        """Return the whole fingerprint of the unfinished work below `stage_folder`, None when there is none."""
        return (read_json(stage_folder / WORK / _STATE) or {}).get("made_from")

    def begun(self) -> bool | None:
        """Say whether unfinished work of this very fingerprint lies here; None while there is none at all."""
        state = read_json(self.folder / _STATE)
        return None if state is None else state.get("fingerprint") == self.fingerprint

    def finished_units(self) -> dict[str, dict[str, Any]]:
        """Return {unit key: journal record} for units whose files are still there with the recorded sizes."""
        units = {}
        for record in self.journal.records:
            whole = all(
                (self.folder / name).is_file() and (self.folder / name).stat().st_size == entry["bytes"]
                for name, entry in record["files"].items()
            )
            if whole:
                units[record["unit"]] = record
        return units

    def notes(self) -> list[str]:
        """Return the lines for the card that the starts of this work have made so far."""
        return (read_json(self.folder / _NOTES) or {}).get("notes", [])

    def keep_notes(self, lines: list[str]) -> None:
        """Keep lines for the card with the work, each once, so that the start that finishes it tells them."""
        known = self.notes()
        if new := [line for line in lines if line not in known]:
            write_json_atomic(self.folder / _NOTES, {"notes": [*known, *new]})

    def discard_if_empty(self) -> None:
        """Remove the work folder when nothing was finished in it, as after an input that was refused at once."""
        files = {path.name for path in self.folder.rglob("*") if not path.is_dir()}
        if files <= {_STATE, _JOURNAL, _NOTES, BEGINNING} and not self.journal.records:
            self.journal.close()
            _remove_at_once(self.folder)

    def publish(self, manifest: Manifest) -> None:
        """Commit the manifest inside the work folder, then move everything into place."""
        self.journal.close()
        manifest.write(self.folder / MANIFEST)
        finish_publication(self.stage_folder)


def finish_publication(stage_folder: Path) -> bool:
    """Complete a publication whose manifest was committed; return whether there was one to complete."""
    for leftover in stage_folder.glob(f"{REMOVED}-*"):
        with suppress(OSError):
            remove(leftover)
    work = stage_folder / WORK
    manifest = Manifest.read(work / MANIFEST)
    if manifest is None:
        return False
    previous = Manifest.read(stage_folder / MANIFEST)
    for name in sorted(set(previous.files) - set(manifest.files)) if previous else ():
        _remove_with_empty_parents(stage_folder / name, stage_folder)
    remove(stage_folder / MANIFEST)  # from here until the last line but one the stage counts as unfinished
    fsync_folder(stage_folder)
    touched = {stage_folder}
    for name in sorted(manifest.files):
        source, target = work / name, stage_folder / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
        touched.add(target.parent)
    for folder in sorted(touched):
        fsync_folder(folder)
    manifest.run["seen"] = {name: manifest.stat_of(stage_folder / name) for name in sorted(manifest.files)}
    manifest.write(stage_folder / MANIFEST)
    _remove_at_once(work)
    return True


def _remove_at_once(work: Path) -> None:
    """Delete a work folder that other processes look into, which see it whole or gone.

    One of them may be writing a file there this very moment, so a folder that cannot be emptied is no error: the next
    start tries again.
    """
    if not work.exists():
        return
    names = (work.with_name(f"{REMOVED}-{number}") for number in count(1))
    removed = next(path for path in names if not path.exists())
    os.replace(work, removed)
    fsync_folder(work.parent)  # or a power cut could bring the name back with half of what it holds
    with suppress(OSError):
        remove(removed)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object at `path`, or None when it is absent or not whole."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _remove_with_empty_parents(path: Path, top: Path) -> None:
    remove(path)
    folder = path.parent
    while folder != top and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
