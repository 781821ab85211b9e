"""From settings to TRL's arguments, and models in and out as plain Hugging Face folders."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.fine_tuning import FineTuningSettings
from pipeline_lib.memory_reuse import keep_freed_memory
from pipeline_lib.packing.tokenizer_folder import copy_tokenizer
from pipeline_lib.stage import Stage, UserError

from .batch_order import epoch_order

if TYPE_CHECKING:
    from torch import dtype as TorchType
    from transformers import PreTrainedModel


def prepare_libraries(stage: Stage) -> None:
    """Set threads and silence before TRL is imported. Raises UserError under a distributed launcher.

    TRL reports its use to the hub unless told not to; progress bars and notices of its libraries would bury ours.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # Several visible GPUs would start nn.DataParallel, which multiplies the batch.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{stage.name} runs in one process; start it with plain python, without torchrun or accelerate")
    import torch

    torch.set_num_threads(stage.threads)
    if not torch.cuda.is_available():
        keep_freed_memory()
    for name in ("transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # TRL 1.16 itself passes the old name of this transformers setting.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


# -- settings ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Horizon:
    """Optimizer steps of the run and of one epoch."""

    steps: int
    per_epoch: int


def horizon(examples: int, settings: FineTuningSettings) -> Horizon:
    """Return how many optimizer steps the settings mean for a number of examples (or packed sequences)."""
    micro_batches = math.ceil(examples / settings.micro_batch)
    per_epoch = math.ceil(micro_batches / settings.accumulation)
    return Horizon(settings.max_steps or math.ceil(settings.epochs * per_epoch), per_epoch)


def sequences_read(lengths: Sequence[int], settings: FineTuningSettings, seed: int) -> list[int]:
    """Return the indices of the sequences that training reads at least once: the first epoch's, as far as it goes.

    lengths: tokens of each, as given to the EpochOrder of the trainer.
    """
    plan = horizon(len(lengths), settings)
    order = epoch_order(lengths, settings.micro_batch, settings.batching == "length", seed, 0)
    per_step = settings.micro_batch * settings.accumulation
    return order if plan.steps >= plan.per_epoch else order[: plan.steps * per_step]


def matmul_dtype(settings: FineTuningSettings, stage: Stage) -> str:
    """Return float32 or bfloat16 for the matrix products, and note what `auto` chose."""
    import torch

    if settings.dtype != "auto":
        return settings.dtype
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return "bfloat16"
    stage.note("matrix products in float32: there is no GPU with bfloat16")
    return "float32"


def trainer_arguments(stage: Stage, settings: FineTuningSettings, steps: int) -> dict[str, Any]:
    """Return the arguments that all of TRL's trainers share.

    Each step is logged (metrics.jsonl), nothing is saved or reported by the trainer itself. A loss that is not finite
    is shown as it is: the trainer's own filter would replace it by an average.
    """
    warmup = round(settings.warmup_fraction * steps)
    name = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}[settings.schedule]
    return {
        "output_dir": str(stage.work / "trainer"),
        "seed": stage.seed % 2**32,
        "max_steps": steps,
        "per_device_train_batch_size": settings.micro_batch,
        "per_device_eval_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": settings.accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": name,
        "warmup_steps": warmup,
        "weight_decay": settings.weight_decay,
        "adam_beta2": settings.beta2,
        "max_grad_norm": settings.clip_norm or 0.0,
        "max_length": settings.max_length,
        "optim": "adamw_torch_fused",
        "bf16": matmul_dtype(settings, stage) == "bfloat16",
        "gradient_checkpointing": settings.activation_checkpointing,
        "use_cache": True,  # what the trainer leaves in the saved config.json; its forward passes never cache
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "prediction_loss_only": True,
        "dataloader_pin_memory": False,
    }


# -- models --------------------------------------------------------------------------------------------------------


def load_model(folder: Path, **options: Any) -> PreTrainedModel:
    """Load a causal language model from a local folder, weights in float32. Raises UserError when it cannot be read."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: the model cannot be loaded: {error}") from None


def check_context(model: PreTrainedModel, settings: FineTuningSettings, section: str) -> None:
    """Raise UserError when training sequences could be longer than the model is declared for."""
    context = getattr(model.config, "max_position_embeddings", settings.max_length)
    if settings.max_length > context:
        raise UserError(
            f"{section}.max_length is {settings.max_length} tokens, but the model is declared for {context}; set it to"
            f" {context} or less"
        )


def stored_dtype(folder: Path) -> TorchType:
    """Return the number format in which the model in `folder` is stored."""
    import torch
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True).dtype or torch.float32


def save_model(model: PreTrainedModel, like: Path, folder: Path, end_of_turn: int) -> None:
    """Write a model folder: weights in the number format of `like`, and the tokenizer files of `like` unchanged.

    Generation stops at the end-of-sequence token and at `end_of_turn`: a chat model that is only told of the first
    would go on and play the user.
    """
    model.to(stored_dtype(like))
    stops = [end_of_turn, model.config.eos_token_id]
    model.generation_config.eos_token_id = list(dict.fromkeys(stop for stop in stops if stop is not None))
    model.save_pretrained(folder)
    copy_tokenizer(like, folder)
