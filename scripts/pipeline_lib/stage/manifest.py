"""What a finished stage says about itself: `manifest.json`, written last, with a digest of its own.

The part that decides (fingerprint, files, ledger) is reproducible; `result` and `notes` are for the card and may hold
speeds. What describes one run (times, memory, machine, the modification times seen) stands apart under "run" and enters
no digest. Later stages depend on `outputs_digest` alone.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .atomic import write_json_atomic
from .digests import file_digest, json_digest

MANIFEST = "manifest.json"
TIMING = "timing"
"""The key of `result` under which a stage puts what differs between two runs of the same work: times, speeds, how
often it was saved. What later stages pass on leaves it out."""


@dataclass
class FileEntry:
    """One file of a stage: size, digest, and whether it is a record (timings inside, so it may differ between runs)."""

    bytes: int
    digest: str
    record: bool = False


@dataclass
class Manifest:
    """A finished stage. `fingerprint` is what it was made from, `files` what it made (paths inside its folder)."""

    stage: str
    fingerprint: dict[str, Any]
    files: dict[str, FileEntry]
    ledger: dict[str, Any]
    result: dict[str, Any]
    notes: list[str]
    exit_code: int
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def outputs_digest(self) -> str:
        """Digest of all outputs, records excluded: what a later stage depends on."""
        return json_digest({path: entry.digest for path, entry in self.files.items() if not entry.record})

    @property
    def attempt(self) -> str:
        """Digest of all that the stage is made from, which is known before its outputs are, and decides them."""
        return "attempt " + json_digest(self.fingerprint)

    def made_from(self, fingerprint: dict[str, Any]) -> dict[str, Any]:
        """Return the fingerprint that one of now is compared with.

        Unfinished work may have been continued with settings that the start which finished it did not ask for (a flag
        of an earlier start). Asking for the same again makes nothing anew: those settings count as the ones of now.
        """
        asked = self.run.get("settings_asked_for")
        return {**self.fingerprint, "settings": asked} if asked == fingerprint["settings"] else self.fingerprint

    def _decisive(self) -> dict[str, Any]:
        files = {path: vars(self.files[path]) for path in sorted(self.files)}
        return {
            "stage": self.stage,
            "outputs_digest": self.outputs_digest,
            "fingerprint": self.fingerprint,
            "files": files,
            "ledger": self.ledger,
            "result": self.result,
            "notes": self.notes,
            "exit_code": self.exit_code,
        }

    def write(self, path: Path) -> None:
        """Write the manifest atomically."""
        decisive = self._decisive()
        write_json_atomic(path, {**decisive, "self_digest": json_digest(decisive), "run": self.run})

    @classmethod
    def read(cls, path: Path) -> "Manifest | None":
        """Return the manifest at `path`, or None when there is none that is whole and undamaged."""
        try:
            value = json.loads(path.read_bytes())
            run, claimed = value.pop("run"), value.pop("self_digest")
            value.pop("outputs_digest")
            value["files"] = {name: FileEntry(**entry) for name, entry in value["files"].items()}
            manifest = cls(**value, run=run)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # damaged: the stage is treated as never finished, and is made again
        return manifest if json_digest(manifest._decisive()) == claimed else None

    def stat_of(self, path: Path) -> list[int]:
        """Return the size and modification time that stand for a content already verified."""
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]

    def looks_untouched(self, folder: Path) -> bool:
        """Whether every output has the size and modification time recorded at publication; nothing is read."""
        seen = self.run.get("seen", {})
        paths = {name: folder / name for name in self.files}
        return all(path.is_file() and seen.get(name) == self.stat_of(path) for name, path in paths.items())

    def damaged_files(self, folder: Path) -> list[str]:
        """Return the outputs that are missing or whose content is not what was written.

        A file whose size and modification time are those recorded at publication is not read again; any other is
        read and its digest compared.
        """
        seen = self.run.get("seen", {})
        damaged = []
        for name, entry in sorted(self.files.items()):
            path = folder / name
            whole = path.is_file() and path.stat().st_size == entry.bytes
            if not whole or (seen.get(name) != self.stat_of(path) and file_digest(path) != entry.digest):
                damaged.append(name)
        return damaged


def inputs_made_anew(manifest: Manifest, run_folder: Path, left_out: Collection[str] = ()) -> list[str]:
    """Return the stages of the run that have been made anew, with other outputs, since this one read them.

    left_out: stages that the run does without; what was read lies elsewhere, whatever lies in their folders here.
    """
    changed = []
    for name, digest in manifest.fingerprint.get("inputs", {}).items():
        if name in left_out:
            continue
        present = Manifest.read(run_folder / name / MANIFEST)
        if present is not None and digest not in (present.outputs_digest, present.attempt):
            changed.append(name)
    return changed


def describe_change(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Say in one line why two fingerprints differ: which inputs, settings or files of code."""
    reasons = []
    for part, label in (("inputs", "input"), ("settings", "setting"), ("data", "data"), ("code", "code")):
        before, after = _flatten(old.get(part) or {}), _flatten(new.get(part) or {})
        changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        if changed:
            shown = ", ".join(_spell(part, key, before, after) for key in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            reasons.append(f"{label} changed: {shown}{more}")
    if old.get("seed") != new.get("seed"):
        reasons.append(f"seed changed: {old.get('seed')} -> {new.get('seed')}")
    return "; ".join(reasons) or "the record of the last run has another layout"


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for name, item in value.items() for key, leaf in _flatten(item, f"{prefix}{name}\0").items()}
    return {prefix.rstrip("\0").replace("\0", "."): value}


def _spell(part: str, key: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    if part != "settings":
        return key
    return f"{key} {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}"[:120]
