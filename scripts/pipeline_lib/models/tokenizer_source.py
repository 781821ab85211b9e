"""What stage 04 takes from stage 03: size of the vocabulary, special tokens, contexts, tokenizer files."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline_lib.packing.open_cache import open_cache, read_packed
from pipeline_lib.stage import Stage, StageInput


@dataclass(frozen=True)
class TokenizerSource:
    """What a model is made for.

    vocabulary: number of ids; special: token ids by their name in a transformers configuration; context: longest;
    files: content of the tokenizer's files by name.
    """

    vocabulary: int
    special: dict[str, int | None]
    context: int
    files: dict[str, bytes]


def read_tokenizer_source(stage: Stage) -> TokenizerSource:
    """Read what a model needs of the packed cache of the run, or of the parts that stage 03 has published so far.

    Raises UserError when there is nothing yet, or it is damaged.
    """
    return read_packed(stage, _read)


def _read(packed: StageInput) -> TokenizerSource:
    cache = open_cache(packed)
    # A document ends with the separator and none starts with one, so there is no beginning-of-sequence token.
    special = {"bos_token_id": None, "eos_token_id": cache.separator_id, "pad_token_id": cache.pad_id}
    # The files are read now: when the model is made, stage 03 may have moved them into place.
    return TokenizerSource(cache.vocab_size, special, max(cache.contexts), packed.contents("tokenizer/*"))
