"""Curves while the run goes: TensorBoard, and any tracker that Accelerate knows (Weights & Biases, MLflow ...).

metrics.jsonl is the record of a run; these are views of it that people like to watch. Nothing is read back from them,
and none can end a run: one that fails or cannot start (a network that is gone) is noted and told nothing more by this
start.
A continued run overwrites TensorBoard's points after its checkpoint; other trackers get the repeated steps again, with
the same values.
"""

from __future__ import annotations

import importlib
import json
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import UserError, write_json_atomic
from pipeline_lib.stage.workspace import read_json

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker


_IDENTITY = "tracker_identity.json"


class Curves:
    """The open views of a run; with no TensorBoard folder and no trackers it does nothing."""

    def __init__(
        self,
        tensorboard: Path | None,
        last_step: int,
        trackers: Iterable[GeneralTracker] = (),
        note: Callable[[str], object] = print,
    ):
        """Open for a run that stands at `last_step`; TensorBoard hides older points of later steps.

        note: told, once, of a view that fails, TensorBoard's at its start too.
        """
        self._views: list[_TensorBoard | GeneralTracker] = list(trackers)
        self._note = note
        if tensorboard is not None:
            try:
                self._views.insert(0, _TensorBoard(tensorboard, last_step + 1))
            except Exception as error:
                note(_failed("tensorboard", "at its start", error))

    def add(self, line: dict[str, Any], speeds: dict[str, float]) -> None:
        """Add the numbers of a metrics line and, for optimizer steps, the `speeds` of this machine."""
        step = line["step"]
        values = _flatten({key: value for key, value in line.items() if key != "step"})
        if step:
            values.update({f"speed/{name}": value for name, value in speeds.items()})
        for view in list(self._views):
            self._ask(view, f"at step {step:,}", lambda view=view: view.log(values, step=step))

    def close(self) -> None:
        """Write what is buffered."""
        for view in list(self._views):
            self._ask(view, "at the end", view.finish)

    def _ask(self, view: _TensorBoard | GeneralTracker, when: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            self._views.remove(view)
            self._note(_failed(view.name, when, error))


def _failed(name: str, when: str, error: Exception) -> str:
    return (
        f"the tracker {name} failed {when} ({type(error).__name__}: {error}) and shows no more of this start;"
        " metrics.jsonl has every step"
    )


class _TensorBoard:
    """TensorBoard's event files, asked like a tracker."""

    name = "tensorboard"

    def __init__(self, folder: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step, flush_secs=30)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


def _flatten(line: dict[str, Any]) -> dict[str, float]:
    values = {}
    for key, value in line.items():
        if isinstance(value, dict):
            values.update({f"{key}/{name}": number for name, number in value.items()})
        else:
            values[f"{'validation' if key.startswith('val_') else 'training'}/{key.removeprefix('val_')}"] = value
    return values


def _plain(settings: dict[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Return settings by dotted name, as every tracker takes them: TensorBoard refuses what is no number or text."""
    values = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            values.update(_plain(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = value if isinstance(value, (int, float, str)) else json.dumps(value)
    return values


def lasting_identity(work: Path) -> str:
    """Return the name of the run whose unfinished work lies in `work`: 16 random hexadecimal digits, written once.

    It lasts as long as that work can be continued. A run begun anew from the same settings, after --force or elsewhere,
    has another one: Weights & Biases would add its points to the old curve, and drop all those of steps it has.
    """
    path = work / _IDENTITY
    known = read_json(path)
    if known is None:
        known = {"identity": secrets.token_hex(8)}
        write_json_atomic(path, known)
    return known["identity"]


def open_trackers(
    names: Iterable[str],
    run: str,
    folder: Path,
    identity: str,
    settings: dict,
    note: Callable[[str], object] = print,
) -> list[GeneralTracker]:
    """Start the trackers `names`: names that Accelerate knows, or "module:Class" for a GeneralTracker of your own.

    run: the project's name; folder: where trackers that write files put them; identity: a name that stays the same when
    the run continues, so that Weights & Biases continues its curve; settings: shown beside the curves; note: told of
    a tracker that cannot start, which is left out. Raises UserError for an unknown name or a package that is not
    installed.
    """
    started = []
    for name in names:
        try:
            tracker = _make(name, run, folder, identity)
            if hasattr(tracker, "start"):
                tracker.start()
            tracker.store_init_configuration(_plain(settings))
            started.append(tracker)
        except UserError:
            raise
        except Exception as error:
            note(_failed(name, "at its start", error))
    return started


def _make(name: str, run: str, folder: Path, identity: str) -> GeneralTracker:
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)()
        except (ImportError, AttributeError) as error:
            raise UserError(f"pretrain.trackers: {name} cannot be loaded ({error})") from None
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
        raise UserError(f"pretrain.trackers: unknown tracker {name!r}; known: {known}, or module:Class")
    if name not in [str(available.value) for available in get_available_trackers()]:
        raise UserError(f"pretrain.trackers: {name} is not installed: pip install {name.replace('_', '-')}")
    keywords: dict[str, Any] = {"id": identity, "resume": "allow"} if name == "wandb" else {}
    kind = LOGGER_TYPE_TO_CLASS[name]
    if kind.requires_logging_directory:
        folder.mkdir(parents=True, exist_ok=True)
        keywords["logging_dir"] = str(folder)
    return kind(run, **keywords)
