"""Which device there is, and how fast it multiplies in which format."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

BFLOAT16_MUST_GAIN = 1.2
ENOUGH_SECONDS = 3.0


@dataclass(frozen=True)
class MatmulSpeed:
    """Billions of floating-point operations per second of a forward-sized product in both formats."""

    float32: float
    bfloat16: float

    def __str__(self) -> str:
        return f"{self.float32:,.0f} GFLOP/s in float32, {self.bfloat16:,.0f} in bfloat16"


def choose_device() -> torch.device:
    """Return the first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_kind(device: torch.device) -> str:
    """Return what decides which formats and kernels a device has: "cpu", or "cuda" and the compute capability."""
    if device.type != "cuda":
        return device.type
    return "cuda {}.{}".format(*torch.cuda.get_device_capability(device))


def measure_matmul(device: torch.device, rows: int, width: int) -> MatmulSpeed:
    """Time [rows, width] x [width, 4 width] in both formats, interleaved, best of five, of fewer slow ones."""
    formats = (torch.float32, torch.bfloat16)
    shapes = ((rows, width), (width, 4 * width))
    operands = {dtype: [torch.ones(shape, device=device, dtype=dtype) for shape in shapes] for dtype in formats}
    best = dict.fromkeys(formats, float("inf"))
    spent = 0.0
    for attempt in range(6):
        if attempt > 1 and spent > ENOUGH_SECONDS:
            break
        for dtype in formats:
            seconds = timed(lambda pair=operands[dtype]: pair[0] @ pair[1], device)
            spent += seconds
            if attempt:  # the first one pays for the library's set-up
                best[dtype] = min(best[dtype], seconds)
    operations = 2 * rows * width * 4 * width
    return MatmulSpeed(*(operations / best[dtype] / 1e9 for dtype in formats))


def choose_dtype(speed: MatmulSpeed) -> str:
    """Return "bfloat16" where it is clearly faster, "float32" otherwise."""
    return "bfloat16" if speed.bfloat16 > BFLOAT16_MUST_GAIN * speed.float32 else "float32"


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Return the seconds `action` takes, waiting for the device to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
