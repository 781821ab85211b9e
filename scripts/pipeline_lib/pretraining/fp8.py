"""FP8 training of linear layers through torchao, layer by layer where this machine is faster with it.

What: a float8 layer keeps its weight in float32 and rounds both operands of its three products (output, input
gradient, weight gradient) to 8 bits on the way into the tensor cores: E4M3 (4 bits of exponent, 3 of mantissa,
largest number 448) for activations and weights, E5M2 (largest 57,344, one bit less precision) for gradients. Each is
first scaled so that its largest magnitude just fits.

    tensorwise   one scale per tensor: the fastest; one large value costs all others their precision
    rowwise      one scale per row of each operand: as precise as bfloat16 training in practice, and slower

Cost: finding the largest magnitude and rounding read each operand once more. A product of n x n matrices does n^3 work
on n^2 numbers, so large layers win and small ones lose: public figures range from 17 to 25 % faster above a billion
parameters to slower at a hundred million. No table knows where the line runs on this machine, so each shape of layer is
timed both ways, forward and backward, compiled if the run will be, and converted only if it wins. (Uncompiled, scaling
and rounding are passes over memory of their own, and FP8 seldom does.)

Traps: the head stays out (its logits feed a softmax, and the chunked loss multiplies by the matrix itself), so does a
layer whose sides are not multiples of 16. State dictionaries are unchanged: a float8 layer's weight is an ordinary one,
and checkpoints, the final model and every other format load each other's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from pipeline_lib.gpu_fp8 import check_fp8_available
from pipeline_lib.stage import StageFailure

from .machine import timed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MULTIPLE = 16
MUST_GAIN = 1.02


@dataclass(frozen=True)
class Fp8Choice:
    """recipe: tensorwise or rowwise; layers: names of the linear layers to convert; notes: sentences for the card."""

    recipe: str = "tensorwise"
    layers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def choose_fp8(
    wanted: str,
    recipe: str,
    model: PreTrainedModel,
    rows: int,
    contexts: Sequence[int],
    device: torch.device,
    compiled: bool,
) -> Fp8Choice:
    """Return which layers of `model` to convert for micro-batches of `rows` tokens; compiled: whether the run will be.

    contexts: the lengths of sequences that the run reads, of which micro-batches of any number are made.

    wanted: "off"; "auto", where the timed probe says so and the GPU can; "on", the same but an error without such a
    GPU; "emulate", every eligible layer, rounded like FP8 and multiplied in float32, on any machine. Raises
    StageFailure when the wish cannot be honoured.
    """
    if wanted == "off" or (wanted == "auto" and device.type != "cuda"):
        return Fp8Choice(recipe)
    if wanted == "emulate":
        _require_torchao()
        layers = eligible_layers(model)
        return Fp8Choice(recipe, layers, [f"FP8 ({recipe}) emulated in {len(layers)} layers: slow, for tests"])
    reason = _why_not(contexts)
    if reason is not None:
        if wanted == "on":
            raise StageFailure(f"pretrain.fp8 is on, but {reason}; set it to auto or off")
        return Fp8Choice(recipe, [], [f"no FP8: {reason}"])
    gains = {
        shape: layer_gain(*shape, rows, recipe, device, compiled)
        for shape in sorted({_sides(model.get_submodule(name)) for name in eligible_layers(model)})
    }
    return choose_layers(model, recipe, gains)


def _why_not(contexts: Sequence[int]) -> str | None:
    if not _has_torchao() or not check_fp8_available():
        return "FP8 needs a GPU of compute capability 8.9 or later and torchao"
    odd = [length for length in contexts if length % MULTIPLE]
    if odd:  # the gradient of a weight multiplies over the tokens of a micro-batch
        return f"its products need a multiple of {MULTIPLE} tokens, and sequences have {odd[0]:,}"
    return None


def choose_layers(model: PreTrainedModel, recipe: str, gains: dict[tuple[int, int], float]) -> Fp8Choice:
    """Return the layers whose shape (inputs, outputs) gains enough; gains: how many times as fast FP8 is."""
    layers = [name for name in eligible_layers(model) if gains[_sides(model.get_submodule(name))] >= MUST_GAIN]
    measured = ", ".join(f"{inputs} x {outputs} {gain:.2f}" for (inputs, outputs), gain in gains.items())
    return Fp8Choice(recipe, layers, [f"FP8 ({recipe}) in {len(layers)} layers; times as fast as bfloat16: {measured}"])


def eligible_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear layers of the blocks whose sides tensor cores can take."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and ".layers." in name
        and all(side % MULTIPLE == 0 for side in _sides(module))
    ]


def layer_gain(inputs: int, outputs: int, rows: int, recipe: str, device: torch.device, compiled: bool) -> float:
    """Return how many times as fast FP8 is as bfloat16 for a layer of this shape on [rows, inputs], both passes."""
    emulate = device.type != "cuda"
    with torch.device(device):
        plain = torch.nn.Linear(inputs, outputs, bias=False)
        eight = torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=False))
        states = torch.randn(rows, inputs, requires_grad=True)
    _convert(eight, recipe, lambda module, name: True, emulate)
    plain, eight = (torch.compile(layer) if compiled else layer for layer in (plain, eight))
    seconds = [_pass_seconds(layer, states, device) for layer in (plain, eight)]
    return seconds[0] / seconds[1]


def _pass_seconds(layer: torch.nn.Module, states: torch.Tensor, device: torch.device) -> float:
    def once() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            output = layer(states)
        output.backward(torch.ones_like(output))

    return min([timed(once, device) for _ in range(8)][3:])


def use_fp8(model: PreTrainedModel, recipe: str, layers: list[str], emulate: bool) -> None:
    """Convert the named linear layers of `model` in place; emulate: round as FP8 does and multiply in float32."""
    if not layers:
        return
    _require_torchao()
    chosen = set(layers)
    _convert(model, recipe, lambda module, name: name in chosen, emulate)


def _convert(model: torch.nn.Module, recipe: str, keep: Callable[[torch.nn.Module, str], bool], emulate: bool) -> None:
    from dataclasses import replace

    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = replace(Float8LinearConfig.from_recipe_name(recipe), emulate=emulate)
    convert_to_float8_training(model, config=config, module_filter_fn=keep)


def _sides(module: torch.nn.Module) -> tuple[int, int]:
    return module.in_features, module.out_features


def _has_torchao() -> bool:
    return importlib.util.find_spec("torchao") is not None


def _require_torchao() -> None:
    if not _has_torchao():
        raise StageFailure("FP8 training needs torchao: pip install torchao (see requirements-gpu.txt)")
