"""What is said of a run of a stage once it is over: its card, and the facts in its manifest that enter no digest."""

import importlib.metadata
import platform
import sys
import time
from typing import Any

from .catalog import StageSpec, later_stages
from .code_version import code_digest
from .digests import json_digest
from .freshness import next_to_make
from .inputs import repairing_command
from .manifest import MANIFEST, Manifest
from .parallel import available_cores
from .stage import Stage

_VERSIONED = ("numpy", "pyarrow", "torch", "transformers", "trl", "peft", "lm_eval", "gigatoken", "numba", "tokenizers")


def print_card(stage: Stage, spec: StageSpec) -> None:
    """Print the card of the stage that has just been published, as its manifest on disk tells it, and what is next."""
    from .card import card_rows
    from .card import print_card as print_rows

    manifest = Manifest.read(stage.folder / MANIFEST)
    print_rows(manifest, spec.does, _what_is_next(stage))
    for label, text in card_rows(manifest):
        stage.log(f"  {label:<12} {text}")


def _what_is_next(stage: Stage) -> str | None:
    if not later_stages(stage.spec.name):
        return None
    following = next_to_make(stage)
    return repairing_command(following.name, stage.arguments) if following else "nothing: all stages are up to date"


def describe_engine(stage: Stage) -> dict[str, Any]:
    """Return who did the units, of a stage that others can do."""
    return {"engine": stage.config.scale_out.engine} if stage.spec.scales_out else {}


def describe_request(fingerprint: dict[str, Any], asked_for: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that this start asked for, where earlier ones had begun the work with others."""
    if asked_for["settings"] == fingerprint["settings"]:
        return {}
    return {"settings_asked_for": asked_for["settings"]}


def describe_run(started: float, peak: int, resumed: bool, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Return facts about this run of the stage, none of which enters a digest."""
    versions = {name: importlib.metadata.version(name) for name in _VERSIONED if name in sys.modules}
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "seconds": round(time.time() - started, 3),
        "peak_memory_bytes": peak,
        "resumed": resumed,
        "fingerprint_digest": json_digest(fingerprint),
        "code_digest": code_digest(fingerprint["code"]),
        "machine": f"{platform.machine()} {platform.system()}, {available_cores()} cores",
        "python": platform.python_version(),
        "packages": versions,
    }
