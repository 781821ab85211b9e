"""From a shape to an initialised model in a Hugging Face directory.

Initialisation: normal with `init_std` everywhere, norms one, and the two matrices of a block that write into the
residual stream (attention output, feed-forward down) scaled by 1 / sqrt(2 x layers), so that the stream's variance
does not grow with depth (Radford et al. 2019, section 2.3).

Each parameter draws from its own generator, seeded by the run's seed and the parameter's *name*. Adding a block or
reordering modules therefore leaves every other parameter as it was, which one shared generator cannot promise.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from pipeline_lib.checkpoints import as_os_errors
from pipeline_lib.config.model import ModelSettings

from .shapes import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

RESIDUAL_WRITERS = ("o_proj.weight", "down_proj.weight")


def transformers_config(shape: ModelShape, settings: ModelSettings, special: dict[str, int | None]) -> PreTrainedConfig:
    """Return the Llama or Qwen3 configuration of a shape; `special` holds bos_token_id, eos_token_id, pad_token_id."""
    from transformers import LlamaConfig, Qwen3Config

    family = {"llama": LlamaConfig, "qwen3": Qwen3Config}[settings.architecture]
    return family(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        max_position_embeddings=shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        rms_norm_eps=1e-6,
        tie_word_embeddings=shape.tied,
        initializer_range=settings.init_std,
        attention_bias=False,
        dtype=settings.dtype,
        **special,
    )


def build_model(
    shape: ModelShape, settings: ModelSettings, special: dict[str, int | None], seed: int
) -> PreTrainedModel:
    """Return an initialised model in `settings.dtype` on the CPU, the same for the same seed on every machine."""
    import torch

    model = build_in_float32(shape, settings, special, seed)
    return model.to(getattr(torch, settings.dtype))


def build_in_float32(
    shape: ModelShape, settings: ModelSettings, special: dict[str, int | None], seed: int
) -> PreTrainedModel:
    """Return the model of `build_model` before it is rounded to the number format of the settings."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = transformers_config(shape, settings, special)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    initialise(model, settings.init_std, shape.layers, seed)
    return model


def initialise(model: PreTrainedModel, std: float, layers: int, seed: int) -> None:
    """Overwrite every parameter of `model` in place; see the head of this file for the rule."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0)
                continue
            scale = std / math.sqrt(2 * layers) if name.endswith(RESIDUAL_WRITERS) else std
            generator = torch.Generator().manual_seed(_name_seed(seed, name))
            parameter.normal_(0.0, scale, generator=generator)


def save_model_directory(model: PreTrainedModel, tokenizer_files: dict[str, bytes], folder: Path) -> Path:
    """Write configuration, safetensors and tokenizer files (content by name) to `folder`, emptied first; return it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with as_os_errors(folder):
        model.save_pretrained(folder)
    for name, content in tokenizer_files.items():
        (folder / name).write_bytes(content)
    return folder


def _name_seed(seed: int, name: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed}/{name}") >> 1  # torch takes 63 bits
