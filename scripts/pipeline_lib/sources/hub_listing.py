"""Which files of a Hugging Face data set repository a configuration and a split consist of, at one commit.

The hub describes a data set's configurations in its card (`configs:` with `data_files` patterns); without that
description the `datasets` library goes by file names (data/train-00000-of-00004.parquet, train.jsonl, ...). Both
rules are followed here over one listing of the repository, with the library's own pattern lists, so that a name
means the same files as in `load_dataset`. No code of the repository is ever run.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ..config.sources import SourceSettings
from ..data_file_names import is_readable, split_suffix
from ..stage import StageFailure, UserError
from .patience import Patience, TryAgain, retry_after
from .transfer import Expected

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MAGIC = re.compile(r"[*?\[]")
_DESCRIPTIVE = ("README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""Names that describe a data set and hold no rows."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """One data file at the pinned commit and what proves its content."""

    path: str
    size: int
    algorithm: str
    digest: str

    @property
    def expected(self) -> Expected:
        """For the transfer's check."""
        return Expected(self.algorithm, self.digest, self.size)


@dataclass(frozen=True, slots=True)
class Listing:
    """The commit and its data files in reading order."""

    commit: str
    files: list[HubFile]

    def to_json(self) -> dict[str, Any]:
        """As stored beside the downloads, so that a resumed run reads the same commit."""
        return {"commit": self.commit, "files": [asdict(file) for file in self.files]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Listing":
        """The inverse of `to_json`."""
        return cls(value["commit"], [HubFile(**file) for file in value["files"]])


def endpoint() -> str:
    """Address of the hub: HF_ENDPOINT, or huggingface.co."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def refuse_offline(settings: SourceSettings) -> None:
    """Raise UserError when HF_HUB_OFFLINE forbids any request to the hub."""
    import huggingface_hub

    if huggingface_hub.is_offline_mode():
        raise _offline(settings)


def _offline(settings: SourceSettings) -> UserError:
    return UserError(
        f"{_where(settings)} is on the hub, and HF_HUB_OFFLINE is set; unset it to download, or use sources of type"
        " local"
    )


def _where(settings: SourceSettings) -> str:
    return f"source '{settings.name}': data set {settings.repo}"


def list_data_files(settings: SourceSettings, patience: Patience) -> Listing:
    """Ask the hub. Raises UserError when it is switched off, or the repository, configuration or split is unknown."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    where = _where(settings)
    refuse_offline(settings)
    api = huggingface_hub.HfApi(endpoint=endpoint())
    while True:
        try:
            return _list(api, settings, where)
        except OfflineModeIsEnabled as error:
            raise _offline(settings) from error
        except HfHubHTTPError as error:
            failure = _judge(error, where, settings)
        except _transport_errors() as error:
            failure = TryAgain(f"{type(error).__name__}: {error}")
        patience.wait(failure)


def _transport_errors() -> tuple[type[Exception], ...]:
    import httpx2

    return (httpx2.TransportError,)


def _judge(error: Any, where: str, settings: SourceSettings) -> TryAgain:
    """A failure worth another attempt. Raises UserError or StageFailure for the others."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        raise UserError(f"{where} asks for its terms to be accepted on the hub, and for a token (HF_TOKEN)") from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise UserError(f"{where} has no revision '{settings.revision}'; correct `revision`") from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise UserError(f"{where} was not found; correct `repo`, or give a token if it is private") from error
    if isinstance(error, errors.EntryNotFoundError):
        raise UserError(f"{where} has no folder for {', '.join(settings.files)}; correct `files`") from error
    status = error.response.status_code
    if status == 429 or status >= 500:
        return TryAgain(f"status {status}", retry_after(error.response.headers.get("Retry-After")))
    raise StageFailure(f"{where}: unexpected answer from {error.response.url} (status {status})") from error


def _list(api: "HfApi", settings: SourceSettings, where: str) -> Listing:
    info = api.dataset_info(settings.repo, revision=settings.revision, expand=["sha", "cardData"])
    if settings.files:
        patterns, folder = settings.files, _common_folder(settings.files)
    else:
        patterns, folder = _card_patterns(info.card_data, settings, where)
    tree = api.list_repo_tree(
        settings.repo, path_in_repo=folder or None, recursive=True, revision=info.sha, repo_type="dataset"
    )
    files = {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}
    if patterns is None:
        patterns = _patterns_by_name(files, folder, settings, where)
    chosen = match(files, patterns)
    if not settings.files:
        chosen = _one_format(chosen, where)
    if not chosen:
        raise UserError(f"{where}: no readable file matches {', '.join(patterns)} (commit {info.sha})")
    return Listing(info.sha, [_hub_file(files[path]) for path in chosen])


def _hub_file(entry: Any) -> HubFile:
    if entry.lfs is not None:
        return HubFile(entry.path, entry.lfs.size, "sha256", entry.lfs.sha256)
    return HubFile(entry.path, entry.size, "git-sha1", entry.blob_id)


def _card_patterns(card: Any, settings: SourceSettings, where: str) -> tuple[list[str] | None, str]:
    """(patterns of the split or None when the card has none, folder of the configuration) from the card."""
    configs = {config.get("config_name"): config for config in (card.get("configs") if card else None) or []}
    name = settings.config_name
    if name is None:
        standard = [key for key, config in configs.items() if config.get("default") or key == "default"]
        name = next(iter(standard or (configs if len(configs) == 1 else [])), None)
        if name is None and configs:
            raise UserError(f"{where} has several configurations; set `config_name` to one of {', '.join(configs)}")
    elif name not in configs:
        known = f"it has {', '.join(configs)}" if configs else "its card names none; use `files` instead"
        raise UserError(f"{where} has no configuration '{name}': {known}")
    config = configs.get(name, {})
    folder = str(config.get("data_dir") or "").strip("/")
    if config.get("data_files") is None:
        return None, folder
    from datasets.data_files import sanitize_patterns

    splits = sanitize_patterns(config["data_files"])
    if settings.split not in splits:
        raise UserError(f"{where} has no split '{settings.split}', it has {', '.join(splits)}; correct `split`")
    prefix = f"{folder}/" if folder else ""
    patterns = [prefix + str(pattern).removeprefix("./") for pattern in splits[settings.split]]
    return patterns, _common_folder(patterns)


def _common_folder(patterns: Iterable[str]) -> str:
    """The deepest folder that holds whatever the patterns match, so that only its part of the tree is listed."""
    fixed = [PurePosixPath(_MAGIC.split(pattern)[0] + "x").parent.parts for pattern in patterns]
    return "/".join(os.path.commonprefix(fixed)) if fixed else ""


def _patterns_by_name(names: Iterable[str], folder: str, settings: SourceSettings, where: str) -> list[str]:
    """Patterns of the split by the naming conventions of the `datasets` library."""
    from datasets.data_files import ALL_DEFAULT_PATTERNS, SPLIT_PATTERN_SHARDED

    names = [name for name in names if is_readable(name)]
    prefix = f"{folder}/" if folder else ""
    sharded = {}
    for name in match(names, [prefix + SPLIT_PATTERN_SHARDED.format(split="*")]):
        split = re.sub(r"-\d{5}-of-\d{5}.*", "", name.rpartition("/")[2])
        sharded[split] = [prefix + SPLIT_PATTERN_SHARDED.format(split=split)]
    for rule in [sharded, *ALL_DEFAULT_PATTERNS]:
        patterns = {str(split): [prefix + pattern for pattern in globs] for split, globs in rule.items()}
        present = [split for split in patterns if match(names, patterns[split])]
        if settings.split in present:
            return patterns[settings.split]
        if present:
            raise UserError(f"{where} has no split '{settings.split}', its files show {', '.join(present)}")
    raise UserError(f"{where} has no data files that can be read here; name some with `files`")


def match(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Readable files that match, in the order of the patterns and then by name, each once.

    `*` stays within a folder and `**` descends, as in `load_dataset`; hidden folders and descriptions are left out.
    """
    from fsspec.utils import glob_translate

    usable = sorted(
        name
        for name in names
        if is_readable(name)
        and PurePosixPath(name).name not in _DESCRIPTIVE
        and not any(part.startswith((".", "__")) for part in PurePosixPath(name).parts)
    )
    chosen: dict[str, None] = {}
    for pattern in patterns:
        compiled = re.compile(glob_translate(pattern))
        chosen.update(dict.fromkeys(name for name in usable if compiled.match(name)))
    return list(chosen)


def _one_format(names: list[str], where: str) -> list[str]:
    """The names, unless they are of several formats: one of them would be a copy or a description of the other."""
    readers = {split_suffix(name)[0] for name in names}
    if len(readers) > 1:
        raise UserError(f"{where} has files of several formats ({', '.join(names[:4])} ...); choose with `files`")
    return names
