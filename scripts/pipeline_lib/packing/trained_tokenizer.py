"""Train a tokenizer and write it as a Hugging Face folder.

The folder is written without transformers, whose import costs seconds: `tokenizers` writes tokenizer.json, and
tokenizer_config.json and chat_template.jinja are small. A test loads the result with AutoTokenizer.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from pipeline_lib.stage import UserError

from .bpe_training import Merges, byte_order, train_merges
from .chat_template import CHAT_TEMPLATE
from .pretoken_counts import CL100K_PATTERN, DISTINCT_BYTES, DocumentBatch, PretokenCounts, count_pieces
from .tokenizer_folder import END_OF_TEXT, PAD, SPECIAL_TOKENS, TURN_END, TURN_START

_SHIFTED = byte_order()[188:]
_PRINTABLE = {byte: chr(256 + place) for place, byte in enumerate(_SHIFTED)}


def train_tokenizer(
    batches: Iterable[DocumentBatch], vocab_size: int, min_pair_count: int, limit: int = DISTINCT_BYTES
) -> Merges:
    """Learn the merges of a tokenizer of `vocab_size` ids in all from text, in memory that `limit` bounds.

    Raises UserError when the text has too few pairs.
    """
    return learn_vocabulary(count_pieces(batches, limit), vocab_size, min_pair_count)


def learn_vocabulary(counted: PretokenCounts, vocab_size: int, min_pair_count: int) -> Merges:
    """Learn the merges of a tokenizer of `vocab_size` ids in all. Raises UserError when there are too few pairs."""
    merges = train_merges(counted, vocab_size - len(SPECIAL_TOKENS), min_pair_count)
    reached = len(merges.tokens) + len(SPECIAL_TOKENS)
    if reached < vocab_size:
        text = f"{counted.share:.2%} of the training text" if counted.reductions else "the training text"
        raise UserError(
            f"pack.vocab_size: {vocab_size} token ids were asked for, {text} supports {reached} (pairs that"
            f" occur at least {min_pair_count} times); set vocab_size to at most {reached}"
            f"{'' if counted.reductions else ', or give more text'}"
        )
    return merges


def printable(token: bytes) -> str:
    """Spell bytes in the alphabet of byte-level BPE files: one printable character per byte."""
    return token.decode("latin-1").translate(_PRINTABLE)


def tokenizer_json(merges: Merges) -> str:
    """Return the content of tokenizer.json for these merges and the four special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    spelled = [printable(token) for token in merges.tokens]
    vocabulary = {token: identity for identity, token in enumerate([*SPECIAL_TOKENS, *spelled])}
    model = models.BPE(vocab=vocabulary, merges=[(spelled[a], spelled[b]) for a, b in merges.pairs])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer.to_str(pretty=True)


def write_tokenizer(folder: Path, merges: Merges) -> None:
    """Write a trained tokenizer into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(merges), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "unk_token": None,
        "additional_special_tokens": [TURN_START, TURN_END],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
