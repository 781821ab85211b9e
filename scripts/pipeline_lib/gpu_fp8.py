"""Whether FP8 training works here, and the Accelerate object that switches it on.

FP8 keeps matrix operands in 8 bits: E4M3 forward (precision), E5M2 backward (range), with a scale per tensor taken from
the largest magnitudes of recent steps. It needs tensor cores that multiply FP8: Ada (8.9), Hopper (9.0) and later.
"""

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

_FIRST_FP8_CAPABILITY = (8, 9)
_AMAX_HISTORY_STEPS = 1024


def check_fp8_available() -> bool:
    """Return whether GPU 0 multiplies FP8 and a library that trains with it is there (transformer_engine, torchao)."""
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability(0) < _FIRST_FP8_CAPABILITY:
        return False
    return any(importlib.util.find_spec(name) is not None for name in ("transformer_engine", "torchao"))


def get_fp8_accelerator(gradient_accumulation_steps: int = 4) -> "Accelerator":
    """Return an Accelerator with mixed precision "fp8" on the transformer_engine back end, hybrid E4M3/E5M2 format.

    Raises RuntimeError, saying what is missing, where FP8 cannot run: a switch that cannot be honoured is an error.
    """
    if not check_fp8_available():
        raise RuntimeError(
            "FP8 needs a GPU of compute capability 8.9 or later and transformer_engine or torchao; train in bfloat16"
            " or float32 here"
        )
    if importlib.util.find_spec("transformer_engine") is None:
        raise RuntimeError("the FP8 recipe of Accelerate needs transformer_engine: pip install transformer_engine")
    from accelerate import Accelerator
    from accelerate.utils import TERecipeKwargs

    recipe = TERecipeKwargs(fp8_format="HYBRID", amax_history_len=_AMAX_HISTORY_STEPS, amax_compute_algo="max")
    return Accelerator(
        mixed_precision="fp8", gradient_accumulation_steps=gradient_accumulation_steps, kwargs_handlers=[recipe]
    )
