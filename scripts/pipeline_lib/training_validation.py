"""Is everything there that training needs? Checks look at content; messages name the repairing command."""

import json
from pathlib import Path

_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"


def _missing_weights(folder: Path) -> list[str]:
    """Return the weight files a model folder lacks; a sharded model needs every shard of its index."""
    if (folder / _WEIGHTS).is_file():
        return []
    index = folder / _WEIGHTS_INDEX
    if not index.is_file():
        return [_WEIGHTS]
    shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    return [name for name in shards if not (folder / name).is_file()]


def check_tokenizer_exists(path: str = "configs/tokenizer") -> bool:
    """Say whether `path` holds a tokenizer, and if not, print what is missing and the command that makes it."""
    folder = Path(path)
    if (folder / "tokenizer.json").is_file() and (folder / "tokenizer_config.json").is_file():
        return True
    print(f"no tokenizer at {folder}; make it with: python scripts/03_tokenize_and_pack.py")
    return False


def check_checkpoint_exists(path: str, checkpoint_type: str = "model") -> bool:
    """Say whether `path` holds a complete Hugging Face model, sharded or not; if not, print what is missing.

    checkpoint_type: what the message calls it, and which script it names: init, pretrain, sft, dpo, or any word.
    """
    folder = Path(path)
    script = {"init": "04_init_model.py", "pretrain": "05_pretrain.py", "sft": "07_sft.py", "dpo": "09_dpo.py"}
    missing = ([] if (folder / "config.json").is_file() else ["config.json"]) + _missing_weights(folder)
    if not missing:
        return True
    command = f"; make it with: python scripts/{script[checkpoint_type]}" if checkpoint_type in script else ""
    print(f"no complete {checkpoint_type} checkpoint at {folder}: {', '.join(missing)} missing{command}")
    return False


def validate_training_prerequisites(model_path: str, tokenizer_path: str, data_path: str) -> bool:
    """Check model, tokenizer and data; print one line per missing thing; return whether all are there."""
    model = check_checkpoint_exists(model_path)
    tokenizer = check_tokenizer_exists(tokenizer_path)
    folder = Path(data_path)
    data = folder.is_file() or (folder.is_dir() and any(file.is_file() for file in folder.rglob("*")))
    if not data:
        print(f"no data at {folder}; make it with: python scripts/03_tokenize_and_pack.py")
    return model and tokenizer and data
