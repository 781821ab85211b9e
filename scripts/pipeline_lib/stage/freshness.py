"""Is a stage up to date, and if not why: what its outputs would be made from now, against what they were made from.

What decides is the fingerprint: digests of the inputs, deciding settings, seed, code, and data outside the run. An
input that has grown since the stage began counts as the one it began with, because it holds what that one held.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .catalog import BEFORE_PACKED, BY_NAME, StageSpec, later_stages
from .code_version import SCRIPTS, code_version
from .errors import UserError
from .inputs import repairing_command
from .manifest import MANIFEST, Manifest, describe_change, inputs_made_anew
from .stage import Stage
from .workspace import WORK, Workspace


def fingerprint_of(stage: Stage, spec: StageSpec, inputs: Callable[[Any], dict[str, Any]] | None) -> dict[str, Any]:
    """Return all that decides the outputs: upstream digests, settings, seed, code, and data outside the run."""
    upstream = {name: stage.input(name).digest for name in stage.needs}
    return {
        "inputs": upstream,
        "settings": stage.settings.deciding(),
        "seed": stage.seed,
        "data": inputs(stage.config) if inputs else {},
        "code": code_version(_script(spec)),
    }


def as_begun(stage: Stage, begun: dict[str, Any] | None, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Return `fingerprint` with the inputs as `begun` has them where those are what they have grown into since."""
    known = (begun or {}).get("inputs", {})
    grown = {name: digest for name, digest in known.items()
             if name in stage.inputs and digest == stage.inputs[name].manifest.attempt}  # fmt: skip
    return {**fingerprint, "inputs": {**fingerprint["inputs"], **grown}}


def as_finished(stage: Stage, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Return `fingerprint` with the outputs of inputs that finished while this stage was reading them."""
    return {**fingerprint, "inputs": {**fingerprint["inputs"], **{
        name: source.digest for name, source in stage.inputs.items()
        if fingerprint["inputs"].get(name) == source.manifest.attempt}}}  # fmt: skip


def _script(spec: StageSpec) -> Path:
    own = SCRIPTS / spec.script
    return own if own.is_file() else Path(sys.modules["__main__"].__file__).resolve()


def try_fingerprint(stage: Stage, spec: StageSpec, inputs) -> tuple[dict[str, Any] | None, str]:
    """Return (fingerprint, ""), or (None, what keeps the stage from starting)."""
    try:
        return fingerprint_of(stage, spec, inputs), ""
    except UserError as error:
        return None, f"cannot start: {error}"


def status_of(stage: Stage, fingerprint: dict[str, Any], force: bool, may_continue_other_work: bool) -> str:
    """Return what a start would do, for `--plan`."""
    manifest = Manifest.read(stage.folder / MANIFEST)
    if (stage.folder / WORK / MANIFEST).exists():
        return "would finish moving its outputs into place"
    reason = "forced" if force else why_not_up_to_date(stage, manifest, fingerprint)
    if reason is None:
        return "up to date"
    begun = None if force else unfinished(stage, fingerprint).begun()
    if begun is False and may_continue_other_work:
        return f"what other settings began lies there, --resume_plan says if it would be continued: {reason}"
    return f"would {'continue unfinished work' if begun else 'run'}: {reason}"


def why_not_up_to_date(stage: Stage, manifest: Manifest | None, fingerprint: dict[str, Any]) -> str | None:
    """Return why the outputs of `manifest` (None: there is none that can be read) are not those wanted, or None."""
    if manifest is None:
        return "it has not finished before" if not (stage.folder / MANIFEST).exists() else "its manifest is damaged"
    now = as_begun(stage, manifest.fingerprint, fingerprint)
    then = manifest.made_from(now)
    if then != now:
        return describe_change(then, now)
    if damaged := manifest.damaged_files(stage.folder):
        return f"{len(damaged)} outputs are missing or damaged, first {damaged[0]}"
    if unfinished(stage, fingerprint).begun_by_force():
        return "a start with --force has not finished"
    return None


def next_to_make(stage: Stage) -> StageSpec | None:
    """Return the first stage after this one that is not known to be up to date, None when all of them are.

    Told from manifests, settings and code, in milliseconds. A stage that depends on data outside of the run, which only
    its own script can describe, is never known to be.
    """
    left_out = BEFORE_PACKED if stage.config.packed else ()
    for spec in later_stages(stage.spec.name):
        later = Stage(spec, stage.config, stage.run_folder, stage.threads, stage.arguments)
        if spec.name not in left_out and not _known_up_to_date(later):
            return spec
    return None


def _known_up_to_date(stage: Stage) -> bool:
    manifest = Manifest.read(stage.folder / MANIFEST)
    if manifest is None or manifest.fingerprint.get("data") or not manifest.looks_untouched(stage.folder):
        return False
    try:
        fingerprint = fingerprint_of(stage, stage.spec, None)
    except UserError:  # an input is missing
        return False
    return why_not_up_to_date(stage, manifest, fingerprint) is None


def unfinished(stage: Stage, fingerprint: dict[str, Any]) -> Workspace:
    """Return the work folder as it counts for a start from that fingerprint."""
    return Workspace(stage.folder, as_begun(stage, Workspace.made_from(stage.folder), fingerprint))


def superseded_inputs(stage: Stage) -> list[str]:
    """Return a line per input that was made from outputs which no longer lie in this run."""
    lines = []
    left_out = BEFORE_PACKED if stage.config.packed else ()
    for name, source in sorted(stage.inputs.items()):
        changed = [] if source.elsewhere else inputs_made_anew(source.manifest, stage.run_folder, left_out)
        if changed:
            lines.append(
                f"{name} was made from an earlier {', '.join(changed)}; make it again with:"
                f" {repairing_command(name, stage.arguments)}"
            )
    return lines


def warn_of_other_settings(stage: Stage) -> None:
    """An input made with other settings than this config has now is used, but never without a word."""
    for name, source in sorted(stage.inputs.items()):
        if source.elsewhere:
            continue
        current = getattr(stage.config, BY_NAME[name].section).deciding()
        made_with = source.manifest.fingerprint["settings"]
        if made_with != current:
            change = describe_change({"settings": made_with}, {"settings": current})
            stage.note(f"{name} was made with other settings than the config has now ({change})", lasting=False)
