"""The state of every random generator a training step may draw from, as plain JSON.

Python, NumPy's global generator, torch on the CPU and on each CUDA device. A run continues bit for bit only if all
of them stand where they stood; forgetting one shows up as a loss that differs from the third digit on.
"""

from __future__ import annotations

import base64
import random
from typing import Any


def rng_state() -> dict[str, Any]:
    """Return the state of all generators as JSON values (about 20 kB)."""
    import numpy
    import torch

    version, words, gauss = random.getstate()
    legacy = numpy.random.get_state(legacy=False)
    state = {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "bit_generator": legacy["bit_generator"],
            "key": legacy["state"]["key"].tolist(),
            "pos": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch": _encode(torch.get_rng_state()),
        "cuda": [],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = [_encode(device_state) for device_state in torch.cuda.get_rng_state_all()]
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put every generator back to `state`, the result of `rng_state`.

    The generators of CUDA devices that this machine does not have are left out: a run goes on with fewer devices.
    """
    import numpy
    import torch

    python = state["python"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    saved = state["numpy"]
    numpy.random.set_state(
        {
            "bit_generator": saved["bit_generator"],
            "state": {"key": numpy.array(saved["key"], dtype=numpy.uint32), "pos": saved["pos"]},
            "has_gauss": saved["has_gauss"],
            "gauss": saved["gauss"],
        }
    )
    torch.set_rng_state(_decode(state["torch"]))
    for device, encoded in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_decode(encoded), device)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices) from one number."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _encode(state) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _decode(text: str):
    import torch

    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
