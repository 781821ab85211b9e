"""What stage 04 takes from stage 03: size of the vocabulary, special tokens, contexts, tokenizer files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline_lib.packing.open_cache import open_packed
from pipeline_lib.stage import Stage


@dataclass(frozen=True)
class TokenizerSource:
    """vocabulary: number of ids; special: token ids by their name in a transformers configuration; context: longest."""

    vocabulary: int
    special: dict[str, int | None]
    context: int
    files: list[Path]


def read_tokenizer_source(stage: Stage) -> TokenizerSource:
    """Open the packed cache of the run, or the parts that stage 03 has published so far.

    Raises UserError when there is nothing yet, or it is damaged.
    """
    packed, cache = open_packed(stage)
    # A document ends with the separator and none starts with one, so there is no beginning-of-sequence token.
    special = {"bos_token_id": None, "eos_token_id": cache.separator_id, "pad_token_id": cache.pad_id}
    return TokenizerSource(cache.vocab_size, special, max(cache.contexts), packed.files("tokenizer/*"))
