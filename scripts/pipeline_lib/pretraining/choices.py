"""What is chosen once per run by probing this machine, and written down so that a continuation is exact."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Choices:
    """What was chosen at the first start; `notes` are the sentences that say so and why.

    device: the kind of device that was probed (machine.device_kind), "" in records of older versions; processes: how
    many shared the work, 0 in records of older versions; threads: of each of them; dtype: number format of the matrix
    products; attention: see attention.py; kernels: "none", "liger" or "cce"; fp8_recipe and fp8_layers: the linear
    layers that multiply in FP8 and how they scale; fp8_emulated: rounded only, as was asked for; deterministic: every
    GPU kernel of a step has a deterministic form; peak_flops: FLOP/s of the best large matrix product in `dtype` on one
    process's device.
    """

    dtype: str = "float32"
    compiled: bool = False
    processes: int = 0
    threads: int = 1
    notes: list[str] = field(default_factory=list)
    attention: str = "documents"
    kernels: str = "none"
    fp8_recipe: str = "tensorwise"
    fp8_layers: list[str] = field(default_factory=list)
    fp8_emulated: bool = False
    deterministic: bool = True
    device: str = ""
    peak_flops: float = 0.0
