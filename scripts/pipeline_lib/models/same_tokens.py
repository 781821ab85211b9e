"""Do the ids of two tokenizers mean the same? A row of a trained table is worth something only under its own meaning.

The same file does. So does a pure extension: every token of the first has the same id in the second, its merges are
the first ones of the second, and nothing else differs. Text may come out in fewer tokens then, of which some are new.
"""

import json
from pathlib import Path
from typing import Any

from pipeline_lib.stage import UserError

_SETTINGS_OF_A_CALL = ("truncation", "padding")  # they say how long a batch is made, not what an id means


def require_same_tokens(source: Path, content: bytes) -> int:
    """Return how many ids the tokenizer.json at `source` has: 1 + the highest.

    Raises UserError unless each of them means the same in the one with `content`.
    """
    before = source.read_bytes()
    tokenizer = _parse(before, str(source))
    count = 1 + max(_ids(tokenizer).values(), default=-1)
    if before == content:
        return count
    difference = _difference(tokenizer, _parse(content, "the tokenizer.json of 03_packed"))
    if difference is not None:
        raise UserError(
            f"model.grow.source was trained with another tokenizer ({source}) than the text is packed with:"
            f" {difference}; start the run from the packed cache of the source (packed: in the YAML), or pack the text"
            f" with its tokenizer (pack.tokenizer: {source.parent})"
        )
    return count


def _difference(source: dict[str, Any], own: dict[str, Any]) -> str | None:
    """Return the first thing that keeps `own` from being an extension of `source`, None when nothing does."""
    ids = _ids(own)
    for token, number in _ids(source).items():
        if token not in ids:
            return f"its token {token!r} is missing"
        if ids[token] != number:
            return f"its token {token!r} has id {number} there and {ids[token]} here"
    added = {json.dumps(token, sort_keys=True) for token in own.get("added_tokens") or []}
    for token in source.get("added_tokens") or []:
        if json.dumps(token, sort_keys=True) not in added:
            return f"its added token {token['content']!r} is treated in another way"
    merges, own_merges = ([_pair(merge) for merge in each["model"].get("merges") or []] for each in (source, own))
    if own_merges[: len(merges)] != merges:
        return "its merges are not the first ones here"
    rest, own_rest = _rest(source), _rest(own)
    differing = sorted(key for key in rest.keys() | own_rest.keys() if rest.get(key) != own_rest.get(key))
    return f"{differing[0]} differs" if differing else None


def _ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Return the id of every token: of the model's vocabulary (a mapping, or Unigram's list) and of the added ones."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    return {**vocabulary, **{token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}}


def _rest(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return what is neither a token nor a merge, the settings of the model by `model.<name>`."""
    model = {f"model.{key}": value for key, value in tokenizer["model"].items() if key not in ("vocab", "merges")}
    left_out = ("model", "added_tokens", *_SETTINGS_OF_A_CALL)
    return model | {key: value for key, value in tokenizer.items() if key not in left_out}


def _pair(merge: str | list[str]) -> tuple[str, ...]:
    return tuple(merge.split(" ") if isinstance(merge, str) else merge)  # both spellings are in use


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
        _ids(value)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} is no tokenizer in Hugging Face's fast format ({error}); give another one") from None
    return value
