"""Where a finished model runs and in which number format: one rule for stage 11 and for the chat (without lm-eval)."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib.stage import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def choose_device(wanted: str, setting: str = "evaluate.device") -> str:
    """Return cpu or cuda for auto, cpu or cuda. Raises UserError when a GPU is demanded and there is none.

    setting: what asks for it, for the message.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{setting} is cuda and this machine has no usable GPU; set it to auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def load_pretrained(folder: Path, device: str, dtype: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a Hugging Face model folder and its tokenizer from disk alone. Raises UserError when it is not one.

    device: cpu or cuda; dtype: float32, bfloat16 or auto (as saved, but float32 on a CPU).
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wanted = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "auto": "auto" if device == "cuda" else torch.float32,
    }
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=wanted[dtype], local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} does not load as a model with its tokenizer: {error}") from None
    return model.to(device), tokenizer
