"""Models that torch.compile has wrapped: how to get the plain model, and how to load what a wrapped one saved."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_COMPILED_PREFIX = "_orig_mod."


def unwrap_compiled_model(model: "torch.nn.Module") -> "torch.nn.Module":
    """Return the module inside any number of torch.compile wrappers; a plain model is returned as it is."""
    while hasattr(model, "_orig_mod"):
        model = model._orig_mod
    return model


def _read_weights(folder: Path) -> dict[str, "torch.Tensor"]:
    from safetensors.torch import load_file

    files = [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else []
    files = files or sorted(folder.glob("model-*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds neither model.safetensors nor model-*.safetensors shards")
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        weights.update(load_file(file))
    return weights


def load_compiled_checkpoint(
    path: str, use_flash_attention: bool = True, move_to_device: bool = False
) -> "PreTrainedModel":
    """Load a Hugging Face folder whose weights a compiled model may have saved, whole or in shards.

    `_orig_mod.` is stripped from the names before they are compared, and every name must then match (tied weights
    aside). use_flash_attention: use it where the package and a GPU are there; the choice is printed when it cannot be
    honoured. move_to_device: put the model on GPU 0 if there is one. bfloat16 on a GPU, the saved type on a CPU.
    Raises FileNotFoundError without weights, RuntimeError naming missing and unexpected tensors.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from .kernel_optimizations import flash_attention_problem

    on_gpu = torch.cuda.is_available()
    attention = "sdpa"
    if use_flash_attention:
        problem = flash_attention_problem() if on_gpu else "needs a GPU"
        if problem is None:
            attention = "flash_attention_2"
        else:
            print(f"using scaled dot-product attention: flash-attn {problem}")
    folder = Path(path)
    weights = {name.replace(_COMPILED_PREFIX, ""): tensor for name, tensor in _read_weights(folder).items()}
    config = AutoConfig.from_pretrained(folder)
    dtype = torch.bfloat16 if on_gpu else next(iter(weights.values())).dtype
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    expected = set(model.state_dict())
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    missing, unexpected = sorted(expected - set(weights) - tied), sorted(set(weights) - expected)
    if missing or unexpected:
        raise RuntimeError(f"{folder} does not fit its config.json: missing {missing[:5]}, unexpected {unexpected[:5]}")
    model.load_state_dict(weights, strict=not tied)
    model.tie_weights()
    return model.to("cuda:0") if move_to_device and on_gpu else model
