"""What stage 04 takes from stage 03: size of the vocabulary, special tokens, contexts, tokenizer files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.stage import Stage


@dataclass(frozen=True)
class TokenizerSource:
    """vocabulary: number of ids; special: token ids by their name in a transformers configuration; context: longest."""

    vocabulary: int
    special: dict[str, int | None]
    context: int
    files: list[Path]


def read_tokenizer_source(stage: Stage) -> TokenizerSource:
    """Open the packed cache of the run. Raises UserError when stage 03 has not finished or is damaged."""
    packed = stage.input("03_packed")
    cache = PackedCache(packed.file("index.json").parent, command=packed.command)
    # A document ends with the separator and none starts with one, so there is no beginning-of-sequence token.
    special = {"bos_token_id": None, "eos_token_id": cache.separator_id, "pad_token_id": cache.pad_id}
    return TokenizerSource(cache.vocab_size, special, max(cache.contexts), packed.files("tokenizer/*"))
