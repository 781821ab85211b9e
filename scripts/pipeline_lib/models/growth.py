"""Make a larger model that begins as a smaller trained one. docs/models.md says when to use which way.

A block adds to the residual stream through two matrices only (attention output, feed-forward down), and a unit of the
feed-forward network through one column of the second. What is behind zeros there changes nothing yet, and still
learns: the zeros themselves have a gradient from the first step on, and what is behind them one from the second on.

    depth       identity  copies of blocks, their two writing matrices zero (LLaMA Pro, Wu et al. 2024)
                stack     trained blocks repeated (G_stack, Du et al. 2024); the function changes
    ffn         zero      random units whose columns in `down` are zero (Gesmundo and Maile 2023)
                copy      units repeated, each column of `down` shared among the copies (Net2Wider, Chen et al. 2016)
    vocabulary  the rows of new ids are the mean of all rows (Hewitt 2021), or those of a similar id, plus noise;
                rows behind the last id of the source's tokenizer are padding that nothing has trained, and are left out

`zero` is the default and not Net2Wider: without noise copies get the same gradients for ever (times their share, which
AdamW divides out), so they would never become two units, and noise that separates them changes the function. Random
units do neither (tests/models/test_growth.py).
Shares of a column are halves of halves (1/2, 1/4, 1/4 for three copies), because a third is no number of any binary
format: the shares add up to the column exactly, also in bfloat16.

What is drawn comes from the parameter's own generator (initialise.py): the rows that a fresh model would have there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline_lib.config.model import GrowSettings
from pipeline_lib.stage import UserError

from .initialise import RESIDUAL_WRITERS
from .shapes import ModelShape

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")
_UNIT_ROWS = ("gate_proj.weight", "up_proj.weight")
_UNIT_COLUMNS = "down_proj.weight"
_TABLES = ("embed_tokens.weight", "lm_head.weight")
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class GrowthPlan:
    """What comes from where.

    layers: blocks of the source; layer_of: the one that each block copies; inserted: blocks that change nothing at
    first; ffn: (of the source, of the grown model); vocabulary: (ids of the source's tokenizer, ids of the grown
    model); padding: rows of the source's tables behind those ids; exact: whether the source's function is preserved.
    """

    layers: int
    layer_of: tuple[int, ...]
    inserted: tuple[bool, ...]
    ffn: tuple[int, int]
    vocabulary: tuple[int, int]
    padding: int
    exact: bool

    def describe(self, settings: GrowSettings) -> str:
        """Return one line for the card: what grows, and how."""
        depth = f"{self.layers} -> {len(self.layer_of)} blocks ({settings.depth})"
        grown = {
            depth: self.layer_of != tuple(range(self.layers)),
            f"ffn {self.ffn[0]} -> {self.ffn[1]} ({settings.ffn})": self.ffn[0] < self.ffn[1],
            f"{self.vocabulary[0]} -> {self.vocabulary[1]} ids": self.vocabulary[0] < self.vocabulary[1],
        }
        told = ", ".join(text for text, true in grown.items() if true) or "nothing grows: the source as it is"
        return told + (f", without {self.padding} rows that belong to no token of it" if self.padding else "")


def plan_growth(settings: GrowSettings, source: dict[str, int], shape: ModelShape, known: int) -> GrowthPlan:
    """Return how a source of those numbers (`GrowthSource.numbers`) grows into `shape`, which is nowhere smaller.

    known: how many of its rows belong to ids of its tokenizer; the ids behind them are new, whatever rows there are.
    Raises UserError when layer_map or token_map do not fit the two.
    """
    layer_of = _layer_map(settings, source["layers"], shape.layers)
    same_depth = layer_of == tuple(range(source["layers"]))
    inserted = tuple(
        settings.depth == "identity" and place > 0 and layer == layer_of[place - 1]
        for place, layer in enumerate(layer_of)
    )
    ids, padding = (known, shape.vocabulary), source["vocabulary"] - known
    for new, old in settings.token_map.items():
        if not (ids[0] <= new < ids[1] and 0 <= old < ids[0]):
            raise UserError(
                f"model.grow.token_map {new}: {old} is not from an id of the source (0 to {ids[0] - 1}) to a new one"
                + (f" ({ids[0]} to {ids[1] - 1})" if ids[1] > ids[0] else " (there are none)")
            )
    noisy = settings.ffn == "copy" and settings.ffn_noise > 0 and shape.ffn > source["ffn"]
    exact = (settings.depth == "identity" or same_depth) and not noisy
    return GrowthPlan(source["layers"], layer_of, inserted, (source["ffn"], shape.ffn), ids, padding, exact)


def _layer_map(settings: GrowSettings, old: int, new: int) -> tuple[int, ...]:
    """Return the block of the source that each new block copies."""
    given = settings.layer_map
    if given is None:
        if settings.depth == "identity":
            return tuple(place * old // new for place in range(new))
        if new % old:
            raise UserError(
                f"model.grow.depth stack: {new} blocks are no multiple of the source's {old}; set model.shape.layers to"
                f" {-(-new // old) * old}, or give model.grow.layer_map"
            )
        return tuple(place % old for place in range(new))
    if len(given) != new:
        raise UserError(f"model.grow.layer_map has {len(given)} entries for {new} blocks; give one per block")
    if max(given) >= old:
        raise UserError(f"model.grow.layer_map names block {max(given)}; the source has 0 to {old - 1}")
    if settings.depth == "identity" and sorted({*given}) != list(range(old)):
        missing = min({*range(old)} - {*given})
        raise UserError(f"model.grow.layer_map leaves out block {missing}; with depth identity every one is needed")
    if settings.depth == "identity" and given != sorted(given):
        raise UserError("model.grow.layer_map goes back; with depth identity the blocks keep their order, or use stack")
    return tuple(given)


def grow_weights(
    model: PreTrainedModel, source: dict[str, Tensor], plan: GrowthPlan, settings: GrowSettings, init_std: float
) -> int:
    """Overwrite a freshly initialised model in place by what grows from `source` (float32, by name).

    Return how many numbers come from the source, copied or shared; the others of the model are made.
    """
    import torch

    copied = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            block = _BLOCK.fullmatch(name)
            if name.endswith(_TABLES):
                copied += _grow_table(parameter, source[name], plan, settings, init_std)
            elif block is None:
                parameter.copy_(source[name])
                copied += parameter.numel()
            elif plan.inserted[int(block[1])] and name.endswith(RESIDUAL_WRITERS):
                parameter.zero_()
            else:
                old = source[f"model.layers.{plan.layer_of[int(block[1])]}.{block[2]}"]
                copied += _grow_in_block(name, parameter, old, plan, settings, init_std)
    return copied


def _grow_table(parameter: Tensor, old: Tensor, plan: GrowthPlan, settings: GrowSettings, init_std: float) -> int:
    """Fill a table [ids, width] that begins with the rows of `old` that are no padding."""
    first, ids = plan.vocabulary
    old = old[:first]
    parameter[:first].copy_(old)
    if ids > first:
        noise = parameter[first:] * (settings.vocabulary_noise * _root_mean_square(old) / init_std)
        parameter[first:] = _mean_row(old)
        for new, known in settings.token_map.items():
            parameter[new].copy_(old[known])
        parameter[first:] += noise
    return old.numel() + len(settings.token_map) * old.shape[1]


def _grow_in_block(
    name: str, parameter: Tensor, old: Tensor, plan: GrowthPlan, settings: GrowSettings, init_std: float
) -> int:
    """Fill a parameter of a block; only the three matrices of the feed-forward network have another shape."""
    import torch

    units, all_units = plan.ffn
    columns = name.endswith(_UNIT_COLUMNS)
    if units == all_units or not (columns or name.endswith(_UNIT_ROWS)):
        parameter.copy_(old)
        return parameter.numel()
    copy_of = torch.arange(all_units) % units
    if columns:
        parameter[:, :units].copy_(old)
        if settings.ffn == "zero":
            parameter[:, units:].zero_()
            return old.numel()
        parameter.copy_(old[:, copy_of] * _shares(units, all_units))
        return parameter.numel()
    parameter[:units].copy_(old)
    if settings.ffn == "zero":
        return old.numel()  # the other rows stay as they were drawn
    noise = parameter[units:] * (settings.ffn_noise * _root_mean_square(old) / init_std)
    parameter[units:] = old[copy_of[units:]] + noise
    return parameter.numel()


def _shares(units: int, all_units: int) -> Tensor:
    """Return the share [all_units] of its column that each copy of a unit gets: halves of halves, which add up to 1."""
    import torch

    place = torch.arange(all_units)
    copies = (all_units - 1 - place % units) // units + 1  # of the unit that is copied here
    return 0.5 ** torch.minimum(place // units + 1, copies - 1)


def _mean_row(table: Tensor) -> Tensor:
    """Return the mean row [width] of a table [ids, width].

    Summed in whole multiples of 2^-32, which no order of adding changes: the same bits on every machine.
    """
    import torch

    parts = [(rows.double() * 2**32).round().to(torch.int64).sum(0) for rows in table.split(_ROWS_AT_ONCE)]
    return (torch.stack(parts).sum(0).double() / 2**32 / table.shape[0]).float()


def _root_mean_square(matrix: Tensor) -> float:
    """Return the root mean square of all numbers, its squares summed in whole multiples of 2^-24 as above."""
    import torch

    parts = [(rows.double().square() * 2**24).round().to(torch.int64).sum() for rows in matrix.split(_ROWS_AT_ONCE)]
    return math.sqrt(sum(int(part) for part in parts) / 2**24 / matrix.numel())
