"""Is everything there that training needs? Checks look at content; messages name the repairing command."""

import json
import os
from pathlib import Path
from typing import Any

from .data_file_names import DOCUMENT_READERS, is_readable, split_suffix
from .stage.lock import LOCK
from .stage.manifest import MANIFEST, Manifest
from .stage.workspace import Workspace

_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_NO_SOURCE_READS = (".arrow", ".lz4")  # of a saved data set, of a packed cache


def _json_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None when the file holds anything else (cut off, empty, a list)."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _json_faults(folder: Path, *names: str) -> list[str]:
    """Say which of the JSON files of a folder are missing or damaged."""
    missing = [f"{name} missing" for name in names if not (folder / name).is_file()]
    whole = [name for name in names if (folder / name).is_file()]
    return missing + [f"{name} damaged (no JSON object)" for name in whole if _json_object(folder / name) is None]


def _weight_faults(folder: Path) -> list[str]:
    """Say which weight files of a model folder are missing or damaged; a sharded model needs every shard of its index.

    A file is whole when its header can be read and the tensors it lists fill the rest of it; they are not read.
    """
    from safetensors import SafetensorError, safe_open

    names = [_WEIGHTS]
    if not (folder / _WEIGHTS).is_file() and (folder / _WEIGHTS_INDEX).is_file():
        shards = (_json_object(folder / _WEIGHTS_INDEX) or {}).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            return [f"{_WEIGHTS_INDEX} damaged (no weight_map)"]
        names = sorted(set(shards.values()))
    faults = []
    for name in names:
        if not (folder / name).is_file():
            faults.append(f"{name} missing")
            continue
        try:
            with safe_open(folder / name, framework="np"):
                pass
        except SafetensorError as error:
            faults.append(f"{name} damaged ({error})")
    return faults


def _is_complete(stage: Manifest, folder: Path) -> bool:
    """Whether all outputs of a finished stage are there in their sizes; their content is verified when it is read."""
    paths = {folder / name: entry.bytes for name, entry in stage.files.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _is_data_file(name: str) -> bool:
    """Whether a file of this name holds records or tokens. Running text is none: a README.md, a LICENSE.txt."""
    return name.endswith(_NO_SOURCE_READS) or (is_readable(name) and split_suffix(name)[0] not in DOCUMENT_READERS)


def _holds_data(path: Path) -> bool:
    """Whether `path` is a file with something in it, or holds a complete stage or a data file that is not empty.

    What lies in the folder of an unfinished stage (its lock or its work) is that stage's log and work, and what is left
    of a finished one whose outputs are gone is no data either.
    """
    if path.is_file():
        return path.stat().st_size > 0
    for place, folders, names in os.walk(path):
        stage = Manifest.read(Path(place, MANIFEST))
        if stage is not None and _is_complete(stage, Path(place)):
            return True
        if stage is not None or LOCK in names or Workspace.made_from(Path(place)) is not None:
            folders.clear()
            continue
        files = [Path(place, name) for name in names if _is_data_file(name)]
        if any(file.is_file() and file.stat().st_size > 0 for file in files):
            return True
    return False


def check_tokenizer_exists(path: str = "configs/tokenizer") -> bool:
    """Say whether `path` holds a tokenizer, and if not, print what is missing and the command that makes it."""
    folder = Path(path)
    faults = _json_faults(folder, "tokenizer.json", "tokenizer_config.json")
    if not faults:
        return True
    print(f"no tokenizer at {folder}: {', '.join(faults)}; make it with: python scripts/03_tokenize_and_pack.py")
    return False


def check_checkpoint_exists(path: str, checkpoint_type: str = "model") -> bool:
    """Say whether `path` holds a complete Hugging Face model, sharded or not; if not, print what is wrong.

    checkpoint_type: what the message calls it, and which script it names: init, pretrain, sft, dpo, or any word.
    """
    folder = Path(path)
    script = {"init": "04_init_model.py", "pretrain": "05_pretrain.py", "sft": "07_sft.py", "dpo": "09_dpo.py"}
    faults = _json_faults(folder, "config.json") + _weight_faults(folder)
    if not faults:
        return True
    command = f"; make it with: python scripts/{script[checkpoint_type]}" if checkpoint_type in script else ""
    print(f"no complete {checkpoint_type} checkpoint at {folder}: {', '.join(faults)}{command}")
    return False


def validate_training_prerequisites(model_path: str, tokenizer_path: str, data_path: str) -> bool:
    """Check model, tokenizer and data; print one line per thing that is missing; return whether all are there."""
    model = check_checkpoint_exists(model_path)
    tokenizer = check_tokenizer_exists(tokenizer_path)
    data = _holds_data(Path(data_path))
    if not data:
        print(f"no data at {data_path}; make it with: python scripts/03_tokenize_and_pack.py")
    return model and tokenizer and data
