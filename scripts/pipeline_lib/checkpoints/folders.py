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
3. Older checkpoints are removed only after a newer one has been published (`prune`).

Nothing is pickled, so loading a checkpoint cannot run code. Cost: the digest (xxh3, 128 bits) runs at several
GB/s, well under the time the disk needs.

Trap: tied weights are one tensor under two names. safetensors refuses to write them twice, so the second name is
recorded as an alias and both names share one tensor again after loading.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage.atomic import TEMPORARY_PREFIX, atomic_path, remove
from pipeline_lib.stage.digests import file_digest, json_digest
from pipeline_lib.stage.errors import StageFailure

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


def checkpoint_name(step: int) -> str:
    """Return the usual folder name of the checkpoint taken after `step` optimizer steps."""
    return f"step-{step:08d}"


def save_checkpoint(folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write a checkpoint to `folder` and return it; `state` is JSON with an integer "step".

    `tensors` maps a group ("model", "optimizer", ...) to named tensors on any device. An existing folder of that
    name is replaced once the new one is complete on disk. Raises ValueError when `state` has no step or holds NaN,
    and OSError when the disk is full, in which case nothing is left behind.
    """
    if not isinstance(state.get("step"), int):
        raise ValueError('a checkpoint state needs an integer "step"')
    with atomic_path(folder) as staging:
        staging.mkdir()
        aliases = {group: _write_tensors(staging / f"{group}.safetensors", named) for group, named in tensors.items()}
        (staging / STATE).write_bytes(_to_json(state))
        body = {
            "format": FORMAT,
            "step": state["step"],
            "groups": list(tensors),
            "aliases": {group: names for group, names in aliases.items() if names},
            "files": {path.name: _fingerprint(path) for path in sorted(staging.iterdir())},
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


def newest_valid_checkpoint(folder: Path, say: Callable[[str], None] | None = None) -> Path | None:
    """Return the checkpoint under `folder` with the highest step whose every byte verifies, or None.

    `say` gets one line for each damaged checkpoint that was passed over. Folders without `complete.json`, and temporary
    ones that a kill left with half of it, are saves that never finished, not damage: they are passed over silently.
    """
    for _, path, body, problem in _candidates(folder):
        if problem is None:
            try:
                _check_files(path, body, deep=True)
                return path
            except CheckpointError as error:
                problem = str(error)
        if say is not None and not path.name.startswith(TEMPORARY_PREFIX):
            say(f"skipping a damaged checkpoint: {problem}")
    return None


def prune(folder: Path, keep: int) -> list[Path]:
    """Delete all but the `keep` newest intact checkpoints, and every unfinished or damaged one; return the deleted.

    "Intact" is judged by `complete.json` and the file sizes, so pruning reads no tensor. Raises ValueError for
    keep < 1: removing the last checkpoint is never what a training run wants.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    kept, deleted = 0, []
    for _, path, body, problem in _candidates(folder, unfinished=True):
        if problem is None and kept < keep and _has_its_files(path, body):
            kept += 1
            continue
        remove(path)
        deleted.append(path)
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


def _write_tensors(path: Path, named: dict[str, Tensor]) -> dict[str, str]:
    """Write one group and return {alias: name} for the tensors that are another one under a second name."""
    from safetensors.torch import save_file

    from .disk_errors import as_os_errors

    aliases: dict[str, str] = {}
    owned: dict[str, Tensor] = {}
    seen: dict[tuple, str] = {}
    for name, tensor in named.items():
        tensor = tensor.detach()
        key = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        # A view of a larger storage would be written with, or refused because of, its neighbours.
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        owned[name] = tensor if whole else tensor.clone().contiguous()
    with as_os_errors(path):
        save_file(owned, path)
    return aliases


def _to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "digest": file_digest(path)}
