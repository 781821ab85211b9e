"""Which backend judges toxicity, by the settings and by what is on this machine, without loading anything heavy."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib.config import resolve_path
from pipeline_lib.stage import UserError, bytes_digest, file_digest

if TYPE_CHECKING:
    from pipeline_lib.config.clean import ToxicitySettings

WEIGHTS = "model.safetensors"
SCORER_BYTES = 700 << 20
"""What judging with a BERT takes beside its weights, measured: torch and transformers, and 16 windows of 512 tokens."""
WORD_LIST = Path(__file__).with_name("profanity.txt")


def toxicity_backend(settings: "ToxicitySettings") -> str:
    """Return the backend that will judge: off, detoxify or words; `auto` takes Detoxify if its weights are here.

    Raises UserError for `detoxify` without weights.
    """
    if settings.backend in ("off", "words"):
        return settings.backend
    here = weights_folder(settings.model) is not None
    if settings.backend == "detoxify" and not here:
        raise UserError(
            f"clean.toxicity.backend is detoxify, and the weights of {settings.model} are not on this machine; fetch"
            f" them with: hf download {settings.model}, name a folder in clean.toxicity.model, or choose words"
        )
    return "detoxify" if here else "words"


def describe_backend(settings: "ToxicitySettings") -> dict[str, str]:
    """JSON that names what judges and changes when it does; for the up-to-date check and the card."""
    backend = toxicity_backend(settings)
    if backend == "words":
        words = read_words(word_list(settings))
        digest = bytes_digest("\n".join(words).encode())
        return {"backend": f"a list of {len(words)} words (crudeness, not toxicity)", "digest": digest}
    if backend == "detoxify":
        return {
            "backend": f"detoxify ({settings.model})",
            "digest": file_digest(weights_folder(settings.model) / WEIGHTS),
        }
    return {"backend": backend}


def scorer_bytes(settings: "ToxicitySettings") -> int:
    """Return the memory that judging takes in each process that cleans; words take none worth counting."""
    if toxicity_backend(settings) != "detoxify":
        return 0
    return (weights_folder(settings.model) / WEIGHTS).stat().st_size + SCORER_BYTES


def word_list(settings: "ToxicitySettings") -> Path:
    """Return the file with the words."""
    return resolve_path(settings.words) if settings.words else WORD_LIST


def weights_folder(model: str) -> Path | None:
    """Return the folder of the model's weights on this machine: a folder as it is, or in the hub's cache."""
    folder = resolve_path(model)
    if (folder / WEIGHTS).is_file():
        return folder
    if model.count("/") != 1 or folder.exists():
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, WEIGHTS)
    except HFValidationError:  # a folder that is not there, under a name that no model of the hub can have
        return None
    return Path(found).parent if isinstance(found, str) else None


def read_words(path: Path) -> list[str]:
    """Return the words of a list, one a line, # for comments. Raises UserError for an unreadable or empty file."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"clean.toxicity.words: {path} cannot be read ({error})") from None
    words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not words:
        raise UserError(f"clean.toxicity.words: {path} has no word; give one word a line")
    return words
