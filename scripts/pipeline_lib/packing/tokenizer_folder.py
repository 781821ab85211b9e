"""A tokenizer as a folder: an ordinary Hugging Face one, which transformers, vLLM and llama.cpp's converter read.

Reads what this package needs to know of any such folder (the separator, the pad token, the chat template) from its JSON
files; nothing heavy is imported here.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.config import resolve_path
from pipeline_lib.stage import UserError

END_OF_TEXT, PAD, TURN_START, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, TURN_START, TURN_END)
"""Ids 0 to 3. The first ends a document, the second fills a sequence up, the others frame a turn of a chat."""

_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
_NEEDED = ("tokenizer.json", "tokenizer_config.json")


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def resolve_tokenizer(name: str) -> Path:
    """Return the folder of a tokenizer that is given by its path or by its id on the Hugging Face hub.

    A tokenizer of the hub that was fetched once is taken from the local cache, so that it never changes under a run.
    Trap: another program may have cached other files of the same repository; then its own are fetched.
    Raises UserError when it is neither a folder nor can be fetched.
    """
    folder = resolve_path(name)
    if folder.is_dir():
        return folder
    neither = f"{folder} is no folder; name a tokenizer folder or an id on the Hugging Face hub"
    if not _HUB_ID.fullmatch(name):
        raise UserError(neither)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(name, allow_patterns=list(_COPIED), local_files_only=True))
        if all((cached / file).is_file() for file in _NEEDED):
            return cached
    except LocalEntryNotFoundError:
        pass  # it was not fetched yet
    except HFValidationError:  # the hub's rules for names are longer than the pattern above
        raise UserError(neither) from None
    try:
        fetched = Path(snapshot_download(name, allow_patterns=list(_COPIED)))
    except (OSError, ValueError) as error:  # httpx, hub and offline errors are OSErrors
        reason = str(error).splitlines()[0]
        raise UserError(
            f"tokenizer {name!r} is no folder below {folder.parent} and could not be fetched from the hub ({reason})"
        ) from None
    if not (fetched / "tokenizer.json").is_file():  # the hub has none, or cannot be reached and this is the cached one
        raise UserError(
            f"tokenizer {name!r} of the hub: {fetched} holds no tokenizer.json, and none could be fetched; name a"
            " tokenizer in Hugging Face's fast format, and be online the first time"
        )
    return fetched


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy an existing tokenizer's files unchanged. Raises UserError when it is not a folder with a tokenizer.json."""
    if not (source / "tokenizer.json").is_file():
        raise UserError(f"pack.tokenizer: {source} has no tokenizer.json; name a folder in Hugging Face's fast format")
    folder.mkdir(parents=True, exist_ok=True)
    for path in tokenizer_files(source):
        shutil.copyfile(path, folder / path.name)


def tokenizer_files(source: Path) -> list[Path]:
    """Return the files that `copy_tokenizer` would take, sorted: they identify an existing tokenizer."""
    return sorted(source / name for name in _COPIED if (source / name).is_file())


@dataclass(frozen=True)
class SpecialIds:
    """Ids with a meaning outside the text: what ends a document, what fills a sequence, and all that are not text."""

    separator: int
    pad: int
    all: tuple[int, ...]


def special_ids(folder: Path) -> SpecialIds:
    """Read them from a folder; without a pad token the separator fills sequences.

    Raises UserError without an EOS, and when it or the pad token is one that text can spell.
    """
    tokenizer = tokenizer_content(folder)
    settings = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    ids = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    special = tuple(sorted(token["id"] for token in tokenizer.get("added_tokens") or [] if token["special"]))
    named = {key: _content(settings.get(key)) for key in ("eos_token", "pad_token")}
    if named["eos_token"] not in ids:
        raise UserError(
            f"{folder / 'tokenizer_config.json'}: eos_token is {named['eos_token']!r}, which is no added token of"
            " tokenizer.json; documents need a token that ends them"
        )
    for key, token in named.items():
        if token in ids and ids[token] not in special:
            raise UserError(
                f'{folder / "tokenizer.json"}: the {key} {token!r} is an added token with "special": false, so a'
                ' document that spells it would hold the token itself; set "special": true there'
            )
    separator = ids[named["eos_token"]]
    return SpecialIds(separator, ids.get(named["pad_token"], separator), special)


def tokenizer_content(folder: Path) -> dict[str, Any]:
    """Return tokenizer.json of a folder. Raises UserError when it is missing or not JSON."""
    return _read_json(folder / "tokenizer.json")


def chat_template_is_trainable(folder: Path) -> bool:
    """Say whether the folder has a chat template that marks what the assistant writes."""
    path = folder / "chat_template.jinja"
    settings = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    template = path.read_text("utf-8") if path.is_file() else str(settings.get("chat_template") or "")
    return "generation" in template and "endgeneration" in template


def _content(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} has no {path.name}; name a tokenizer folder in Hugging Face's fast format"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); give another tokenizer folder") from None
