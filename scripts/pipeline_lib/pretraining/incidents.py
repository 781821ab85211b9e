"""A step that stood out, kept so that it can be done again: its batch, its documents, and the state before it.

When the loss or the gradient is not finite, or is the first spike of an episode (spikes.py), the step's bundle is
written before the weights are touched:

    incidents/step-00000770/   a checkpoint of the state after step 769 (weights, moments, random states, data position)
      batch.safetensors        the sequences of step 770
      state.json               with "incident": what happened, norms by block, and the documents of each sequence

`--replay 770` builds that state again, reads the batch from the packed cache, does the forward and backward pass, says
whether loss and norm are the recorded ones, and lists the sequences with the highest loss and the documents in them. A
step of one process is compared to the last bit; several add up their parts in another order than the one that replays,
so theirs is compared within a tolerance, which is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline_lib.checkpoints import checkpoint_name, load_checkpoint, save_checkpoint
from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.stage import ActionContext, Stage, UserError
from pipeline_lib.stage.atomic import remove
from pipeline_lib.stage.catalog import BY_NAME
from pipeline_lib.stage.workspace import WORK

from .accumulation import accumulate_gradient, drop_gradients
from .batches import Batch, PackedData
from .forward import summed_loss
from .gradients import norms_by_block, parameter_norms
from .run_state import TrainingRun, checkpoint_content, restore_state

FOLDER = "incidents"
SHOWN = 5
TOLERANCE = 1e-5
"""Relative difference up to which a step of several processes counts as done again; 3e-7 was measured for the loss."""


def record(
    run: TrainingRun, data: PackedData, batch: Batch, settings: PretrainSettings, folder: Path, what: dict[str, Any]
) -> Path | None:
    """Write the bundle of the step after `run.step` and return its folder; None when none are kept.

    what: JSON, the kind of incident and its numbers. The weights must still be those before the step. With several
    processes all must call it, and the first one writes.
    """
    if not settings.keep_incidents:
        return None
    step = run.step + 1
    tensors, state = checkpoint_content(run)
    bundle = folder / checkpoint_name(step)
    if run.processes.first:
        tensors["batch"] = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
        incident = {**what, "step": step, "documents": data.documents_of_next(run.data, run.step)}
        incident["processes"] = run.processes.size
        incident["settings"] = settings.model_dump(mode="json")
        save_checkpoint(bundle, tensors, {**state, "incident": incident})
        # By age, not by step: a run that went back and took another way leaves bundles of later steps behind.
        others = sorted((path for path in folder.iterdir() if path != bundle), key=_written)
        for older in others[: max(0, len(others) + 1 - settings.keep_incidents)]:
            remove(older)
    return bundle


def _written(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name


@dataclass(frozen=True)
class Replay:
    """A step done again: loss (nats per token) and gradient norm, norms by block, loss of each sequence."""

    same_batch: bool
    loss: float
    grad_norm: float
    block_norms: dict[str, float]
    sequence_losses: list[float]


def replay(context: ActionContext, step: int) -> int:
    """Do the step of a bundle again and print what it finds. Returns 0 when it is the recorded one, see `describe`."""
    from .choices import Choices
    from .distribution import alone
    from .inputs import open_training_inputs
    from .setup import equip, prepare_machine

    loaded = load_checkpoint(_find(context.stage_folder, step))
    incident = loaded.state["incident"]
    settings = PretrainSettings.model_validate(incident["settings"])
    choices = Choices(**loaded.state["choices"])
    stage = Stage(BY_NAME["05_pretrain"], context.config, context.run_folder, choices.threads, context.arguments)
    stage.settings = settings
    inputs = open_training_inputs(stage)
    torch.set_num_threads(choices.threads)
    prepare_machine(settings, inputs.architecture, alone().device)
    run = equip(inputs.load_model().to(alone().device), choices, settings, inputs.horizon, alone())
    restore_state(run, loaded)
    result = do_again(run, inputs.data, settings, Batch(**loaded.tensors["batch"]))
    for line in describe(incident, result):
        print(line)
    same = all(_same(incident, name, getattr(result, name)) for name in ("loss", "grad_norm"))
    return 0 if same and result.same_batch else 1


def do_again(run: TrainingRun, data: PackedData, settings: PretrainSettings, recorded: Batch) -> Replay:
    """Do the forward and backward pass of the step after `run.step`, without an update."""
    batch, _ = next(data.training_batches(run.data, run.step))
    same = all(getattr(batch, name).equal(getattr(recorded, name)) for name in Batch.__dataclass_fields__)
    loss = float(accumulate_gradient(run, batch, settings))
    named = [(name, weight.grad) for name, weight in run.model.named_parameters() if weight.grad is not None]
    norms = parameter_norms([gradient for _, gradient in named], run.processes)
    drop_gradients(run)
    with torch.no_grad():
        losses = [
            float(summed_loss(run, part.to(run.device), settings.loss_chunk)) / max(1, part.target_count)
            for part in batch.split(1)
        ]
    blocks = norms_by_block([name for name, _ in named], norms.tolist())
    return Replay(same, loss, float(torch.linalg.vector_norm(norms)), blocks, losses)


def describe(incident: dict[str, Any], result: Replay) -> list[str]:
    """Return the lines that tell what was recorded, what the replay found, and which documents stand out."""
    processes = _processes(incident)
    alike = "bit for bit the same" if processes == 1 else f"the same within {TOLERANCE:g}"
    lines = [
        f"step {incident['step']:,}: {incident['kind']}",
        f"  batch     {'the recorded one, read again from the packed cache' if result.same_batch else 'DIFFERENT'}",
    ]
    if processes > 1:
        lines.append(f"  recorded by {processes} processes, which add up in another order: not compared bit by bit")
    for name in ("loss", "grad_norm"):
        before, now = incident[name], getattr(result, name)
        verdict = alike if _same(incident, name, now) else "DIFFERENT"
        lines.append(f"  {name:<9} {before} recorded, {now} now: {verdict}")
    if incident.get("broken_weights"):
        lines.append(f"  not finite before the step already: {', '.join(incident['broken_weights'][:SHOWN])}")
    worst = sorted(result.block_norms, key=lambda name: _rank(result.block_norms[name]))[:SHOWN]
    lines.append("  gradient  " + ", ".join(f"{name} {result.block_norms[name]:.4g}" for name in worst))
    order = sorted(range(len(result.sequence_losses)), key=lambda row: _rank(result.sequence_losses[row]))
    lines.append("  sequences with the highest loss, and their documents")
    for row in order[:SHOWN]:
        entry = incident["documents"][row]
        lines.append(f"    sequence {entry['sequence']:,}: loss {result.sequence_losses[row]:.4f}")
        for piece in entry["pieces"][:SHOWN]:
            lines.append(f"      {piece['length']:>6,} tokens of {piece['id']} ({piece['source']})")
        if len(entry["pieces"]) > SHOWN:
            lines.append(f"      and {len(entry['pieces']) - SHOWN} more documents")
    return lines


def spell(value: float) -> float | str:
    """Return a number as JSON can hold it: NaN and infinities by name."""
    return value if math.isfinite(value) else str(value)


def _processes(incident: dict[str, Any]) -> int:
    return incident.get("processes", 1)  # bundles of older versions do not say


def _same(incident: dict[str, Any], name: str, now: float) -> bool:
    recorded = incident[name]
    if _processes(incident) == 1:
        return spell(now) == recorded
    if isinstance(recorded, str):  # another order of a sum may make NaN of what was infinite
        return not math.isfinite(now)
    return math.isclose(now, recorded, rel_tol=TOLERANCE)


def _rank(value: float) -> float:
    return -value if math.isfinite(value) else -math.inf


def _find(stage_folder: Path, step: int) -> Path:
    places = [stage_folder / WORK / FOLDER, stage_folder / FOLDER]
    for place in places:
        if (place / checkpoint_name(step)).is_dir():
            return place / checkpoint_name(step)
    kept = sorted({int(path.name.removeprefix("step-")) for place in places if place.is_dir()
                   for path in place.glob("step-*")})  # fmt: skip
    raise UserError(
        f"no bundle of step {step:,} below {stage_folder}; there is one of {', '.join(map(str, kept)) or 'no step'}"
        " (a step leaves one when its loss or gradient is a spike or not finite)"
    )
