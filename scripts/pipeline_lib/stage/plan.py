"""`--plan`: what a stage would do, with which settings and inputs, for how long and how large; nothing is written."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import StageFailure, UserError
from .progress import duration, size

if TYPE_CHECKING:
    from .stage import Stage


@dataclass(frozen=True)
class Estimate:
    """What a short probe expects of a whole stage; None where the probe cannot tell.

    seconds: wall time; memory_bytes: peak of the process tree; disk_bytes: new files; basis: what was measured; parts:
    a line for each part of the whole, where there are several.
    """

    seconds: float | None
    memory_bytes: int | None
    disk_bytes: int | None
    basis: str
    parts: tuple[str, ...] = ()


def print_plan(
    stage: "Stage",
    origins: dict[str, str],
    status: str,
    estimate: Callable[["Stage"], Estimate] | None,
) -> bool:
    """Print settings with where each came from, inputs, whether the stage would run, and the expected cost.

    Returns whether the probe behind the cost came to its end, where there was one.
    """
    print(f"{stage.name} {stage.spec.does}\n  folder  {stage.folder}\n  status  {status}\n  settings")
    for key, value in _leaves(_spell_settings(stage.settings)):
        print(f"    {key} = {value!r}  ({origins.get(f'{stage.spec.section}.{key}', 'default')})")
    if stage.spec.scales_out:
        for key, value in _leaves(_spell_settings(stage.config.scale_out)):
            print(f"    scale_out.{key} = {value!r}  ({origins.get(f'scale_out.{key}', 'default')})")
    missing = False
    print("  inputs" if stage.needs else "  inputs  none")
    for name in stage.needs:
        try:
            files = stage.input(name).manifest.files
            print(f"    {name}: {len(files)} files, {size(sum(entry.bytes for entry in files.values()))}")
        except UserError as error:
            missing = True
            print(f"    {name}: {error}")
    if estimate is None:
        print("  cost    not estimated: this stage takes seconds")
    elif missing:
        print("  cost    cannot be estimated before the inputs exist")
    else:
        return _print_cost(stage, estimate)
    return True


def _print_cost(stage: "Stage", estimate: Callable[["Stage"], Estimate]) -> bool:
    try:
        cost = estimate(stage)
    except StageFailure as error:
        print(f"  cost    the probe failed: {error}")
        return False
    time = duration(cost.seconds) if cost.seconds is not None else "unknown"
    memory = size(cost.memory_bytes) if cost.memory_bytes is not None else "unknown"
    disk = size(cost.disk_bytes) if cost.disk_bytes is not None else "unknown"
    home = next(folder for folder in (stage.folder, *stage.folder.parents) if folder.exists())
    free = shutil.disk_usage(home).free
    here = "" if stage.config.scale_out.engine == "local" or not stage.spec.scales_out else "on this machine alone "
    print(f"  cost    {here}about {time}, {memory} of memory, {disk} of disk ({size(free)} free); {cost.basis}")
    for part in cost.parts:
        print(f"    {part}")
    if cost.disk_bytes is not None and cost.disk_bytes > free:
        print("  WARNING the outputs would not fit on this disk")
    return True


def _spell_settings(settings: Any) -> Any:
    """Return settings as plain values; entries of a list (data sources) show only what differs from the defaults."""
    if hasattr(settings, "model_dump"):
        return {name: _spell_settings(getattr(settings, name)) for name in type(settings).model_fields}
    if isinstance(settings, list | tuple):
        return [
            item.model_dump(mode="json", exclude_defaults=True) if hasattr(item, "model_dump") else item
            for item in settings
        ]
    return settings


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and (value or not prefix):
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), value)]
