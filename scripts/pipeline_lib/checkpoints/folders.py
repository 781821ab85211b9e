"""Checkpoint folders: written whole or not at all, verified by content, found again whatever they are called.

A checkpoint is a folder of `<group>.safetensors` files (tensors), `state.json` (everything else) and, written
last, `complete.json`:

    step-00000100/
      model.safetensors  optimizer.safetensors   one file per group of tensors
      state.json                                 step, schedule, random states, data position, meters
      complete.json                              size and digest of every file, and a digest of itself

Three rules make it survive a kill at any instant:

1. The folder is filled under a temporary name beside its place, every file is fsynced, one rename publishes it.
2. A folder counts as a checkpoint only if `complete.json` is intact and every file has the size and digest it
   lists. The name is for people: a checkpoint that was renamed, or that a kill left under its temporary name
   after `complete.json` was written, is as good as any other.
3. Older checkpoints are removed only after a newer one has been published (`prune`); the best and every n-th can stay.

Nothing is pickled, so loading a checkpoint cannot run code. Cost: the digest (xxh3, 128 bits) runs at several
GB/s, well under the time the disk needs.

Trap: tied weights are one tensor under two names. safetensors refuses to write them twice, so the second name is
recorded as an alias and both names share one tensor again after loading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage.atomic import TEMPORARY_PREFIX, atomic_path, remove
from pipeline_lib.stage.digests import file_digest, json_digest
from pipeline_lib.stage.errors import StageFailure

from .tensor_files import write_tensor_file

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
COMPLETE = "complete.json"
STATE = "state.json"


class CheckpointError(StageFailure):
    """A checkpoint is damaged, incomplete or does not fit the model it is loaded into."""


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What `load_checkpoint` returns: tensors by group and name (on the CPU), the JSON state, and the step."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the `newest` ones, those whose step is a multiple of `every`, and the `best` one.

    The best is the one with the lowest score, among those that were saved with one. Raises ValueError for newest < 1:
    removing the last checkpoint is never what a training run wants.
    """

    newest: int
    every: int | None = None
    best: bool = False

    def __post_init__(self) -> None:
        if self.newest < 1:
            raise ValueError(f"at least 1 checkpoint must be kept, not {self.newest}")


def checkpoint_name(step: int) -> str:
    """Return the usual folder name of the checkpoint taken after `step` optimizer steps."""
    return f"step-{step:08d}"


def save_checkpoint(
    folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], score: float | None = None
) -> Path:
    """Write a checkpoint to `folder` and return it; `state` is JSON with an integer "step".

    `tensors` maps a group ("model", "optimizer", ...) to named tensors on any device; `score` is the validation of this
    very step, lower is better, by which `prune` finds the best. An existing folder of that name is replaced once the
    new one is complete on disk. Raises ValueError when `state` has no step or holds NaN, and OSError when the disk is
    full, in which case nothing is left behind.
    """
    if not isinstance(state.get("step"), int):
        raise ValueError('a checkpoint state needs an integer "step"')
    with atomic_path(folder) as staging:
        staging.mkdir()
        aliases, files = {}, {}
        for group, named in tensors.items():
            owned, again = _without_ties(named)
            name = f"{group}.safetensors"
            files[name] = write_tensor_file(staging / name, owned)
            if again:
                aliases[group] = again
        (staging / STATE).write_bytes(_to_json(state))
        files[STATE] = _fingerprint(staging / STATE)
        body = {
            "format": FORMAT,
            "step": state["step"],
            "score": score,
            "groups": list(tensors),
            "aliases": aliases,
            "files": files,
        }
        (staging / COMPLETE).write_bytes(_to_json({**body, "digest": json_digest(body)}))
    return folder


def load_checkpoint(folder: Path, *, verify: bool = True) -> LoadedCheckpoint:
    """Read a checkpoint onto the CPU; raise CheckpointError naming the file that is missing or damaged.

    `verify=False` skips reading every byte for its digest: for a folder `newest_valid_checkpoint` just returned.
    """
    from safetensors.torch import load_file

    body = _read_complete(folder)
    if verify:
        _check_files(folder, body, deep=True)
    tensors = {}
    for group in body["groups"]:
        named = load_file(folder / f"{group}.safetensors")
        for alias, name in body["aliases"].get(group, {}).items():
            named[alias] = named[name]
        tensors[group] = named
    state = json.loads((folder / STATE).read_bytes())
    return LoadedCheckpoint(folder, body["step"], tensors, state)


def load_state(folder: Path) -> dict[str, Any]:
    """Return the JSON state of a checkpoint without its tensors. Raises CheckpointError when it is damaged."""
    body = _read_complete(folder)
    _check_files(folder, {**body, "files": {STATE: body["files"][STATE]}}, deep=True)
    return json.loads((folder / STATE).read_bytes())


def valid_checkpoints(folder: Path, say: Callable[[str], None] | None = None) -> Iterator[tuple[int, Path]]:
    """Yield (step, checkpoint) for those under `folder` whose every byte verifies, the highest step first.

    `say` gets one line for each damaged checkpoint that was passed over. Folders without `complete.json`, and temporary
    ones that a kill left with half of it, are saves that never finished, not damage: they are passed over silently.
    """
    for _, path, body, problem in _candidates(folder):
        if problem is None:
            try:
                _check_files(path, body, deep=True)
            except CheckpointError as error:
                problem = str(error)
        if problem is None:
            yield body["step"], path
        elif say is not None and not path.name.startswith(TEMPORARY_PREFIX):
            say(f"skipping a damaged checkpoint: {problem}")


def newest_valid_checkpoint(folder: Path, say: Callable[[str], None] | None = None) -> Path | None:
    """Return the checkpoint under `folder` with the highest step whose every byte verifies, or None.

    `say` is told of damaged ones as by `valid_checkpoints`.
    """
    return next((path for _, path in valid_checkpoints(folder, say)), None)


@dataclass(frozen=True)
class Surveyed:
    """A checkpoint folder as it was found; problem: what is damaged (then step and score may be unknown)."""

    path: Path
    step: int | None
    score: float | None
    bytes: int
    problem: str | None


def survey(folder: Path) -> list[Surveyed]:
    """Return all checkpoints under `folder`, every byte verified; saves that never finished are none.

    Nor are those that a run at work removes in the meantime.
    """
    found = []
    for _, path, body, problem in _candidates(folder):
        try:
            if problem is None:
                _check_files(path, body, deep=True)
        except (CheckpointError, FileNotFoundError) as error:
            problem = str(error)
        if problem is None or path.exists():
            size = sum(file["bytes"] for file in body.get("files", {}).values())
            found.append(Surveyed(path, body.get("step"), body.get("score"), size, problem))
    return found


def newest_step_at_a_glance(folder: Path) -> int | None:
    """Return the highest step of the checkpoints under `folder` that look whole, or None; reads no tensor.

    That is by `complete.json` and the file sizes, in no time. To go on from, take `newest_valid_checkpoint`.
    """
    readable = ((path, body) for _, path, body, problem in _candidates(folder) if problem is None)
    return next((body["step"] for path, body in readable if _has_its_files(path, body)), None)


def prune(folder: Path, retention: Retention, last_step: int | None = None) -> list[Path]:
    """Delete the checkpoints that `retention` does not keep, and every unfinished or damaged one; return the deleted.

    "Intact" is judged by `complete.json` and the file sizes, so pruning reads no tensor. last_step: of the run, which
    continues from the newest valid checkpoint; one of a later step was passed over because its content is damaged.
    """
    intact, deleted = [], []
    for _, path, body, problem in _candidates(folder, unfinished=True):
        later = last_step is not None and problem is None and body["step"] > last_step
        if problem is None and not later and _has_its_files(path, body):
            intact.append((path, body))
        else:
            deleted.append(path)
    scores = [body["score"] for _, body in intact if body.get("score") is not None]
    for place, (path, body) in enumerate(intact):
        newest = place < retention.newest
        periodic = retention.every is not None and body["step"] and body["step"] % retention.every == 0
        best = retention.best and body.get("score") is not None and body["score"] == min(scores)
        if not (newest or periodic or best):
            deleted.append(path)
    for path in deleted:
        remove(path)
    return deleted


def _has_its_files(path: Path, body: dict) -> bool:
    try:
        _check_files(path, body, deep=False)
    except CheckpointError:
        return False
    return True


def _candidates(folder: Path, unfinished: bool = False) -> list[tuple[int, Path, dict, str | None]]:
    """List (step, path, body of complete.json, problem) of the sub-folders: damaged ones, then the newest first."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.is_dir():
            continue
        if not (path / COMPLETE).is_file():
            if unfinished and (path.name.startswith(TEMPORARY_PREFIX) or (path / STATE).is_file()):
                found.append((-1, path, {}, f"{path} was never finished"))
            continue
        try:
            body = _read_complete(path)
            found.append((body["step"], path, body, None))
        except CheckpointError as error:
            found.append((-1, path, {}, str(error)))
    return sorted(found, key=lambda item: (item[3] is None, -item[0], item[1].name.startswith("."), item[1].name))


def _read_complete(folder: Path) -> dict[str, Any]:
    path = folder / COMPLETE
    try:
        body = json.loads(path.read_bytes())
        digest = body.pop("digest")
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a finished checkpoint: it has no {COMPLETE}") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__})") from None
    if digest != json_digest(body):
        raise CheckpointError(f"{path} does not match its own digest")
    if body["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {body['format']}; this version reads format {FORMAT}")
    return body


def _check_files(folder: Path, body: dict[str, Any], deep: bool) -> None:
    for name, expected in body["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes instead of {expected['bytes']}")
        if deep and _fingerprint(path) != expected:
            raise CheckpointError(f"{path} does not match its digest")


def _without_ties(named: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of one group, each once, and {alias: name} for those that are another one's second name."""
    aliases: dict[str, str] = {}
    owned: dict[str, Tensor] = {}
    seen: dict[tuple, str] = {}
    for name, tensor in named.items():
        key = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            owned[name] = tensor
    return owned, aliases


def _to_json(value: Any) -> bytes:
    # Keys keep their order: a metrics line that waits in a checkpoint must be spelled like one that did not.
    return json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "digest": file_digest(path)}
