"""What a run will cost, predicted from a probe of seconds: `--plan` prints it, and the card holds it against the truth.

The probe takes the real model, real sequences and the real optimizer: a few micro-batches forward and backward, one
update with a learning rate of zero (it allocates the moments and moves nothing), a few batches from the loader.

    time     micro-batches and loader by tokens, updates by steps, and validations, whose forward passes cost a third
    memory   the peak of the probe, and on a CPU the copy of weights and moments that is written in the background
    disk     the kept checkpoints, the best and every n-th among them, and the final model

Where a micro-batch takes seconds, a part of its sequences is probed, and timed once: time goes with their number, and
so does the memory that the forward pass keeps for the backward pass.

What other programs do on the machine meanwhile is not in the time, and neither is compiling.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pipeline_lib.checkpoints import newest_step_at_a_glance
from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.oom_handler import is_out_of_memory
from pipeline_lib.stage import Estimate, Stage, StageFailure, write_json_atomic
from pipeline_lib.stage.memory import own_peak_bytes
from pipeline_lib.stage.progress import duration, size
from pipeline_lib.stage.workspace import read_json

from .batches import Batch
from .choosing import choose, fitting_probe, matmul_parameters, measure_micro_batch, timing_piece
from .distribution import alone
from .horizon import Horizon
from .inputs import TrainingInputs
from .machine import timed
from .optimizers import set_learning_rates
from .run_state import TrainingRun
from .setup import equip, prepare_machine
from .step_lines import lines_of

PREDICTION = "prediction.json"
FORWARD_SHARE = 1 / 3
LOADER_BATCHES = 3
_DECIDE_THE_COST = {
    "micro_batch",
    "loss_chunk",
    "validation_steps",
    "validation_tokens",
    "background_saving",
    "keep_checkpoints",
    "keep_every",
    "keep_best",
}


@dataclass(frozen=True)
class Prediction:
    """What a run is expected to need: seconds of training, peak memory and disk in bytes, tokens per second."""

    seconds: float
    memory_bytes: int
    disk_bytes: int
    tokens_per_second: float
    basis: str

    def to_json(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return asdict(self)

    def against(self, seconds: float, memory_bytes: int, disk_bytes: int, resumed: bool) -> str:
        """Spell the prediction beside the truth; seconds: of training, in all starts together where it was resumed."""
        starts = " in all starts together" if resumed else ""
        return (
            f"predicted {duration(self.seconds)}, {size(self.memory_bytes)} of memory, {size(self.disk_bytes)} of disk;"
            f" training took {duration(seconds)}{starts} ({seconds / self.seconds - 1:+.0%}), {size(memory_bytes)}"
            f" ({memory_bytes / self.memory_bytes - 1:+.0%}), {size(disk_bytes)}"
            f" ({disk_bytes / self.disk_bytes - 1:+.0%})"
        )


def predict(run: TrainingRun, inputs: TrainingInputs, settings: PretrainSettings) -> Prediction:
    """Probe `run`, which stands at step 0 and is left as it was, and predict what it will need.

    Raises StageFailure when memory runs out, in the passes with one sequence or in the update.
    """
    horizon, whole = run.horizon, inputs.probe()
    probe, slow = timing_piece(whole, matmul_parameters(run.model), run.choices.peak_flops)
    probe, _ = fitting_probe(run.network, probe, settings.loss_chunk, run.device)  # the first pass may be compiling
    repeats = 1 if slow else 2
    micro = measure_micro_batch(run.network, probe, settings.loss_chunk, run.device, warm=0, repeats=repeats)
    missing = (len(whole.inputs) - len(probe.inputs)) * saved_bytes(run, probe, settings.loss_chunk) if slow else 0
    micro_batches = horizon.sequences / len(probe.inputs)
    try:
        update = _update_seconds(run)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise StageFailure(
            "out of memory in the update: the moments do not fit beside weights and gradients; use a smaller model or"
            " an optimizer with smaller moments"
        ) from None
    batches = inputs.data.training_batches(None)
    loader = timed(lambda: list(islice(batches, LOADER_BATCHES)), run.device) / LOADER_BATCHES
    validations = 2 + (horizon.steps - 1) // settings.validation_steps if settings.validation_steps else 2
    validation = inputs.data.validation_sequences / len(probe.inputs) * micro * FORWARD_SHARE
    step = micro * micro_batches + update + loader
    equal_steps = horizon.tokens / horizon.step_tokens  # fewer than all where earlier phases have smaller batches
    seconds = equal_steps * (step - update) + horizon.steps * update + validations * validation
    held = _state_bytes(run)
    on_host = run.device.type == "cpu"  # where the copy that is written in the background takes from the same memory
    memory = peak_memory(run.device) + (held if on_host and settings.background_saving else 0)
    memory += missing // len(probe.inputs)
    periodic = horizon.steps // settings.keep_every if settings.keep_every else 0
    disk = (settings.keep_checkpoints + settings.keep_best + periodic) * held + 4 * inputs.parameters["total"]
    _forget_moments(run)
    basis = (
        f"{horizon.steps:,} steps of {'up to ' if horizon.phases else ''}{horizon.step_tokens:,} tokens:"
        f" {micro_batches:g} micro-batches of {micro:.3f} s,"
        f" update {update:.3f} s, loader {loader:.4f} s; {horizon.step_tokens / step:,.0f} tokens/s,"
        f" matmul {run.choices.peak_flops / 1e9:,.0f} GFLOP/s"
    )
    if missing:
        basis += f"; a pass is slow here: {len(probe.inputs)} of {len(whole.inputs)} sequences were timed, once"
    return Prediction(seconds, memory, disk, horizon.step_tokens / step, basis)


def predict_once(stage: Stage, run: TrainingRun, inputs: TrainingInputs) -> Prediction | None:
    """Return the prediction made for this run, making it now at its start and when it goes on as another one.

    Another one: with another horizon, or other settings or choices that decide what it needs. None with several
    processes, whose exchange of gradients the probe does not measure.
    """
    path = stage.work / PREDICTION
    if run.processes.size > 1:
        if run.processes.first:
            path.unlink(missing_ok=True)  # it does not hold for what several do
        return None
    made_for, remembered = _made_for(run, stage.settings), read_json(path)
    if remembered is not None and remembered.get("made_for") == made_for:
        return Prediction(**remembered["prediction"])
    prediction = _after_what_is_done(stage.work, run.horizon, predict(run, inputs, stage.settings))
    write_json_atomic(path, {"made_for": made_for, "prediction": prediction.to_json()})
    stage.say(f"  expected: {duration(prediction.seconds)}, {prediction.basis}")
    return prediction


def _made_for(run: TrainingRun, settings: PretrainSettings) -> dict[str, Any]:
    """Return, as it comes back from JSON, everything that a prediction depends on and a later start may change."""
    choices, horizon = asdict(run.choices), run.horizon.to_json()
    for measured in ("notes", "peak_flops"):
        choices.pop(measured)
    horizon.pop("rates")
    wanted = settings.model_dump(mode="json", include=_DECIDE_THE_COST)
    return json.loads(json.dumps({"horizon": horizon, "settings": wanted, "choices": choices}))


def _after_what_is_done(work: Path, horizon: Horizon, prediction: Prediction) -> Prediction:
    """Return the prediction of a run that goes on from a checkpoint: the time it took so far, and that of the rest.

    prediction: of the whole run. What was waited for stage 03 is not part of the time, as in the card.
    """
    # Before a start goes on from a checkpoint it reads every byte of it, minutes for a large one: not here once more.
    step = newest_step_at_a_glance(work / "checkpoints")
    if step is None:
        return prediction
    past = [line for line in lines_of(work / "timings.jsonl") if line["step"] <= step]
    spent = sum(line["seconds"] - line.get("text", 0.0) for line in past)
    rest = max(0.0, 1 - horizon.tokens_until(step) / horizon.tokens)
    basis = f"{prediction.basis}; the first {step:,} steps took {duration(spent)}"
    return replace(prediction, seconds=spent + rest * prediction.seconds, basis=basis)


def expected_cost(stage: Stage, inputs: TrainingInputs) -> Estimate:
    """Choose formats and kernels as a first start would, probe, and return the expected cost of the whole stage."""
    settings, processes = stage.settings, alone()
    torch.set_num_threads(stage.threads)
    kernels = prepare_machine(settings, inputs.architecture, processes.device)
    model = inputs.load_model().to(processes.device)
    choices = choose(settings, model, kernels, inputs.probe(), inputs.horizon, processes)
    run = equip(model, choices, settings, inputs.horizon, processes)
    cost = predict(run, inputs, settings)
    return Estimate(cost.seconds, cost.memory_bytes, cost.disk_bytes, cost.basis)


def saved_bytes(run: TrainingRun, batch: Batch, chunk: int) -> int:
    """Return the bytes that a forward pass of `batch` keeps for its backward pass, which grow with its sequences.

    Weights, and their copies in the format of the products, do not: they are left out by their shapes.
    """
    batch, tokens = batch.to(run.device), batch.inputs.numel()
    shapes = {tuple(weight.shape) for weight in run.model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tokens in tensor.shape or tuple(tensor.shape) not in shapes:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run.network(batch.inputs, batch.targets, batch.positions, batch.documents, chunk)
    return sum(kept.values())


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process so far, in bytes: of the GPU, or of the host on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return own_peak_bytes()


def _update_seconds(run: TrainingRun) -> float:
    """Return the seconds of an optimizer update that moves nothing; its moments stay."""
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rates(run.optimizers.values(), 0.0)

    def once() -> None:
        for optimizer in run.optimizers.values():
            optimizer.step()

    once()
    seconds = timed(once, run.device)
    set_learning_rates(run.optimizers.values(), 1.0)
    run.model.zero_grad(set_to_none=True)
    return seconds


def _state_bytes(run: TrainingRun) -> int:
    """Return the bytes of weights and moments."""
    tensors = list(run.model.parameters())
    for optimizer in run.optimizers.values():
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _forget_moments(run: TrainingRun) -> None:
    for optimizer in run.optimizers.values():
        optimizer.state.clear()
