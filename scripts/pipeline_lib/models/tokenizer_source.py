"""What stage 04 takes from stage 03: size of the vocabulary, special tokens, contexts, tokenizer, a few tokens."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline_lib.packing.open_cache import open_cache, read_packed
from pipeline_lib.stage import Stage, StageInput, UserError


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


def read_sample(stage: Stage, sequences: int, length: int) -> list[list[int]]:
    """Return the beginnings of the first packed training sequences, at most so many ids each. Raises UserError."""

    def read(packed: StageInput) -> list[list[int]]:
        cache = open_cache(packed)
        context = min(cache.contexts)
        count = min(sequences, cache.sequences(context))
        if count == 0:
            remedy = f"lower pack.val_fraction and run: {packed.command}"
            raise UserError(f"{packed.path} has no training sequences; {remedy}")
        rows = [cache.sequence(number, context)["input_ids"][:length].tolist() for number in range(count)]
        return [[number for number in row if number != cache.pad_id] for row in rows]

    return read_packed(stage, read)
