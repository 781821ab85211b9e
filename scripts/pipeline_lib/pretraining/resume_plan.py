"""What happens to unfinished training when settings, inputs or code have changed since it began.

Only what the user says *now*, in the YAML or by a flag, overrides; a setting that merely has another default, or was
given by a flag then and is not given now, stays as the checkpoint has it. So a changed learning rate takes effect, and
a forgotten flag changes nothing; what decides nothing in the outputs (a time limit, how often to say something) is said
of one start and ends with it. What cannot be continued
(another order of the data, other text, a model or optimizer that the saved tensors do not fit) is refused with both
values; `--force` begins anew and moves the old work aside.

`--resume_plan` prints the whole decision, with the learning rate before and after, and does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipeline_lib.checkpoints import load_state, newest_valid_checkpoint
from pipeline_lib.config import resolve_path
from pipeline_lib.config.pretrain import CurriculumStage, PretrainSettings, ScheduleSettings
from pipeline_lib.packing.open_cache import open_cache
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.stage import ActionContext, Stage, StageInput, UserError
from pipeline_lib.stage.inputs import open_input, repairing_command
from pipeline_lib.stage.manifest import MANIFEST, Manifest, describe_change
from pipeline_lib.stage.workspace import WORK, Workspace

from .curriculum import Phase, stages_after
from .horizon import Horizon, LearningRates, resolve_horizon, wanted_tokens
from .inputs import known_tokens
from .meters import TokenCounts
from .schedule import schedule_factor

# The saved moments, or the place in the data, belong to these values.
_FIXED = {
    "optimizer.name": "the saved moments are another optimizer's",
    "context": "the place in the data counts sequences of that length",
}
# Choices that are made by measuring and written down; when one of these is changed they are made again.
_MEASURED = {"dtype", "compile", "attention", "fp8", "fp8_recipe", "use_liger_kernel", "use_cce"}
CHOICES = "choices.json"
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 64


@dataclass(frozen=True)
class Change:
    """One setting that differs; overrides: whether the user's present value is taken."""

    key: str
    saved: Any
    present: Any
    overrides: bool


@dataclass(frozen=True)
class ResumePlan:
    """The decision: effective settings, what differs, what is refused (reasons), and what else to know."""

    settings: PretrainSettings
    changes: list[Change]
    refusals: list[str]
    notes: list[str]

    @property
    def measures_again(self) -> bool:
        """Whether a setting that was decided by measuring is overridden."""
        return any(change.overrides and change.key in _MEASURED for change in self.changes)

    def table(self) -> list[str]:
        """Return the lines of the table of what differs."""
        if not self.changes:
            return ["  settings are those of the checkpoint"]
        rows = [("setting", "checkpoint", "now", "effect")]
        for change in self.changes:
            effect = "overrides" if change.overrides else "not set now: stays as in the checkpoint"
            rows.append((change.key, _spell(change.saved), _spell(change.present), effect))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d}" for a, b, c, d in rows]


def plan_resume(
    saved: dict[str, Any],
    present: dict[str, Any],
    set_now: set[str],
    grown: str | None,
    means: dict[str, Any],
) -> ResumePlan:
    """Compare two fingerprints of stage 05; `set_now`: dotted names of the settings the user gives now.

    grown: the sentence to say when the packed cache is the one of then with text added, None when it is another;
    means: settings of now that no fingerprint holds. Raises UserError when the mixture of saved and present settings
    contradicts itself.
    """
    before, now = _flatten(saved["settings"]), _flatten(present["settings"])
    of_now = {key for key in now if _is_set(key, set_now)}
    effective = {**now, **{key: value for key, value in before.items() if key in now and key not in of_now}}
    changes = [
        Change(key, before.get(key), now[key], key in of_now) for key in sorted(now) if before.get(key) != now[key]
    ]
    refusals = [
        f"pretrain.{change.key} {_spell(change.saved)} -> {_spell(change.present)}: {_FIXED[change.key]}"
        for change in changes
        if change.overrides and change.key in _FIXED
    ]
    if saved["seed"] != present["seed"]:
        refusals.append(f"seed {saved['seed']} -> {present['seed']}: the data would come in another order")
    made_by = {"03_packed": "the packed cache", "04_init": "the initial model"}
    notes = []
    for name, digest in present["inputs"].items():
        if saved["inputs"].get(name) != digest:
            if name == "03_packed" and grown is not None:
                notes.append(grown)
                continue
            refusals.append(f"{made_by.get(name, name)} ({name}) is another one than this training began with")
    code = {path for path in saved["code"].keys() | present["code"].keys()
            if saved["code"].get(path) != present["code"].get(path)}  # fmt: skip
    if code:
        notes.append(
            f"{len(code)} files of code changed since this training began (first {sorted(code)[0]}): it continues, but"
            " not necessarily bit for bit as it would have"
        )
    return ResumePlan(_validated({**means, **effective}), changes, refusals, notes)


def _validated(flat: dict[str, Any]) -> PretrainSettings:
    try:
        return PretrainSettings.model_validate(_nest(flat))
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(
            f"the settings that the unfinished training began with and those of now contradict each other: {problem}."
            " Give null for the one of then that is not to count, or start anew with --force"
        ) from None


def continue_with(stage: Stage, saved: dict[str, Any], present: dict[str, Any]) -> PretrainSettings | None:
    """Return the settings with which the unfinished work of `saved` continues; None when nothing is worth continuing.

    Says what differs. Raises UserError, with both values, when it cannot be continued.
    """
    work = stage.folder / WORK
    newest = newest_valid_checkpoint(work / "checkpoints")
    if newest is None:
        return None
    state = load_state(newest)
    step = state["step"]
    if state["data"] is None:  # not a single step was done
        return None
    plan = plan_resume(saved, present, section_keys(stage.origins), _growth(stage, state), _means(stage.settings))
    plan.refusals.extend(_other_length(stage, plan.settings, state))
    plan.refusals.extend(_other_batch(stage, plan.settings, state))
    plan.refusals.extend(_passed(horizon_of(stage, plan.settings), step))
    if plan.refusals:
        raise UserError(
            f"unfinished training ({newest}, step {step:,}) cannot continue: {'; '.join(plan.refusals)}. Put that back,"
            " or start anew with --force (the old work is moved to superseded/)"
        )
    for line in plan.table() if plan.changes else []:
        stage.say(line)
    for note in plan.notes:
        stage.note(note)
    overriding = [f"{change.key} {_spell(change.saved)} -> {_spell(change.present)}" for change in plan.changes
                  if change.overrides]  # fmt: skip
    if overriding:
        stage.note(f"settings changed after step {step:,}: {', '.join(overriding)}")
    if plan.measures_again:
        (work / CHOICES).unlink(missing_ok=True)
    return plan.settings


def print_resume_plan(context: ActionContext) -> int:
    """Print what a start would do with the unfinished training: the table and the learning rates. Returns 0, or 2."""
    work = context.stage_folder / WORK
    saved = Workspace.made_from(context.stage_folder)
    newest = newest_valid_checkpoint(work / "checkpoints", print)
    state = None if newest is None else load_state(newest)
    if saved is None or state is None or state["data"] is None:
        manifest = Manifest.read(context.stage_folder / MANIFEST)
        what = "a start would begin"
        if manifest is not None:
            present = context.fingerprint()
            made_from = manifest.made_from(present)
            what = "the training is finished; --force would begin"
            if made_from != present:
                change = describe_change(made_from, present)
                what = f"the training is finished; as it would be another now ({change}), a start would begin anew"
        print(f"{context.stage_folder}: no unfinished training with a checkpoint; {what} at step 0")
        return 0
    plan = plan_resume(
        saved,
        context.fingerprint(),
        section_keys(context.origins),
        _growth(context, state),
        _means(context.settings),
    )
    print(f"continue from {newest}, step {state['step']:,} of {state['horizon']['steps']:,}")
    for line in [*plan.table(), *(f"  note: {note}" for note in plan.notes)]:
        print(line)
    before = _saved_horizon(state)
    after = horizon_of(context, plan.settings)
    saved_schedule = ScheduleSettings.model_validate(saved["settings"]["schedule"])
    for line in learning_rate_lines(state["step"], (before, saved_schedule), (after, plan.settings.schedule)):
        print(line)
    plan.refusals.extend(_other_length(context, plan.settings, state))
    plan.refusals.extend(_other_batch(context, plan.settings, state))
    plan.refusals.extend(_passed(after, state["step"]))
    for refusal in plan.refusals:
        print(f"  REFUSED {refusal}; --force would begin anew")
    position = (state["data"] or {}).get("position", 0)
    print(f"  data: goes on after {position:,} sequences; none is repeated, none is skipped")
    return 2 if plan.refusals else 0


def _means(settings: PretrainSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.MEANS}


def _passed(horizon: Horizon, step: int) -> list[str]:
    if horizon.steps >= step:
        return []
    return [f"step {step:,} is already beyond the horizon of {horizon.steps:,} steps that the settings ask for"]


def _other_length(place: ActionContext | Stage, settings: PretrainSettings, state: dict[str, Any]) -> list[str]:
    """Refuse a length of sequences that changed because the packed cache has now another one first."""
    first, saved = _cache(place).contexts[0], state["horizon"]["context"]
    if settings.context is not None or settings.curriculum or first == saved:
        return []
    return [
        f"pretrain.context is not set, and the first of pack.contexts was {saved}, now {first}: sequences of another"
        f" length are another training; let {saved} be the first again"
    ]


def _other_batch(place: ActionContext | Stage, settings: PretrainSettings, state: dict[str, Any]) -> list[str]:
    """Refuse batches with which the steps done would have read other tokens: the horizon counts steps of that size."""
    saved, now, step = _saved_horizon(state), horizon_of(place, settings), state["step"]
    read, counted = TokenCounts(**state["tokens"]).total, now.tokens_until(step)
    # A run that an older version continued with other batches goes on as it counted, unless they change once more.
    if counted in (read, saved.tokens_until(step)):
        return []
    refusal = f"the {step:,} steps so far read {read:,} tokens, with these settings they would have read {counted:,}"
    wanted = wanted_tokens(settings, _model(place)["parameters"]["matmul"], _text_tokens(place, settings))
    later = settings.curriculum or [CurriculumStage(until=1.0, batch_tokens=now.step_tokens)]
    context = settings.context or _cache(place).contexts[0]
    stages = stages_after(saved.phases_until(step), later, wanted, context)
    if not stages:
        return [refusal]
    one_size = not (settings.curriculum or saved.phases)
    put_back = f"set pretrain.batch_tokens to {saved.step_tokens}, or " if one_size else ""
    return [f"{refusal}: {put_back}give what was read its own stages, pretrain.curriculum: [{_spell_stages(stages)}]"]


def _spell_stages(stages: list[CurriculumStage]) -> str:
    given = [stage.model_dump(exclude_none=True) for stage in stages]
    return ", ".join("{" + ", ".join(f"{key}: {_spell_number(stage[key])}" for key in stage) + "}" for stage in given)


def _spell_number(value: int | float) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def horizon_of(place: ActionContext | Stage, settings: PretrainSettings) -> Horizon:
    """Return the horizon that `settings` mean for the model and the packed cache of this run."""
    length = settings.context or _cache(place).contexts[0]
    model, tokens = _model(place), _text_tokens(place, settings)
    shape = model["shape"]
    return resolve_horizon(settings, length, shape["width"], model["parameters"]["matmul"], tokens, shape["tied"])


def _model(place: ActionContext | Stage) -> dict[str, Any]:
    return StageInput(place.run_folder, "04_init", place.arguments).result


def _text_tokens(place: ActionContext | Stage, settings: PretrainSettings) -> int | None:
    return known_tokens(_cache(place), settings) if settings.epochs is not None else None


def _cache(place: ActionContext | Stage) -> PackedCache:
    elsewhere = place.config.packed
    if elsewhere is None:
        return open_cache(open_input(place.run_folder, "03_packed", place.arguments))
    return PackedCache(resolve_path(elsewhere), command=repairing_command("03_packed", place.arguments, elsewhere))


def _growth(place: ActionContext | Stage, state: dict[str, Any]) -> str | None:
    """Return a sentence when the place in the data is one in the present packed cache too, None otherwise."""
    position = state["data"]
    try:
        cache = _cache(place)
        cache.carry_over(position, position["context"])  # refused when the text read so far is not the same
        sequences = cache.sequences(position["context"])
    except UserError:
        return None
    return (
        f"the packed cache has now {sequences:,} training sequences of {position['context']:,} tokens; the order so far"
        " stays, what was added comes after it"
    )


def learning_rate_lines(
    step: int, before: tuple[Horizon, ScheduleSettings], after: tuple[Horizon, ScheduleSettings]
) -> list[str]:
    """Return the learning rate of the matrices as two curves on one scale, and its values around `step`.

    A curve ends where its horizon does; the mark below stands at `step`.
    """
    longest = max(before[0].steps, after[0].steps)
    places = [max(1, round((column + 0.5) * longest / _WIDTH)) for column in range(_WIDTH)]
    curves = [[_rate(place, *side) for place in places] for side in (before, after)]
    top = max(rate for curve in curves for rate in curve if rate is not None) or 1.0
    lines = []
    for label, curve in zip(("before", "after"), curves, strict=True):
        drawn = "".join(" " if rate is None else _BARS[max(1, round(8 * rate / top))] for rate in curve)
        lines.append(f"  {label:<6} {drawn.rstrip()}")
    lines.append(f"         {' ' * min(_WIDTH - 1, step * _WIDTH // longest)}^ step {step:,}")
    lines.append(f"  learning rate of the matrices, {top:.3g} at the top, {longest:,} steps wide")
    for place in dict.fromkeys((step + 1, (step + after[0].steps) // 2, after[0].steps)):
        left, right = _rate(place, *before), _rate(place, *after)
        lines.append(f"  step {place:>9,}: {_spell_rate(left)} -> {_spell_rate(right)}")
    return lines


def _rate(step: int, horizon: Horizon, schedule: ScheduleSettings) -> float | None:
    if not 1 <= step <= horizon.steps:
        return None
    return horizon.rates.matrices * schedule_factor(step, horizon.steps, schedule)


def _spell_rate(rate: float | None) -> str:
    return "ended" if rate is None else f"{rate:.3g}"


def _saved_horizon(state: dict[str, Any]) -> Horizon:
    saved = state["horizon"]
    phases = tuple(Phase(**phase) for phase in saved["phases"])
    return Horizon(saved["steps"], saved["sequences"], saved["context"], LearningRates(**saved["rates"]), phases)


def section_keys(origins: dict[str, str]) -> set[str]:
    """Return the settings of this stage that the user gives now, by dotted name inside the section."""
    return {name.removeprefix("pretrain.") for name in origins if name.startswith("pretrain.")}


def _is_set(key: str, set_now: set[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in set_now)


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat.update(_flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        place = nested
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


def _spell(value: Any) -> str:
    return "null" if value is None else str(value)
