"""Whether the text supports the vocabulary that is asked for, told by `--plan` before the stage would refuse it.

Where the probe is all of the training text, the answer is that of the stage. Else the number of ids that a text
supports is taken to grow with a power of its length (Heaps' law), the one from every second document of the probe to
all of them, and a shortage is only likely.
"""

import math

import pyarrow as pa

from pipeline_lib.config.pack import PackSettings

from .bpe_training import train_merges
from .pretoken_counts import count_pieces
from .shards import Run, sample_texts
from .text_encoder import text_buffers
from .tokenizer_folder import SPECIAL_TOKENS

_LEAST = 256 + len(SPECIAL_TOKENS)
_ROOM = 1.5
"""A shortage by less than this factor is no warning: 8 times the text supported 1.3 to 1.6 times what was expected."""


def foresee_vocabulary(runs: list[Run], text_bytes: int, settings: PackSettings, probed_bytes: int) -> str | None:
    """Return the line that says that the stage will, or may, refuse `pack.vocab_size`; None when it need not fear that.

    text_bytes: of text in all runs together.
    """
    if settings.tokenizer is not None:
        return None
    texts = pa.array(sample_texts(runs, probed_bytes), pa.large_string())
    data, _ = text_buffers(texts)
    supported = _supported(texts, settings)
    if supported >= settings.vocab_size:
        return None
    asked = f"pack.vocab_size asks for {settings.vocab_size:,} token ids"
    pairs = f"(pairs that occur at least {settings.min_pair_count} times)"
    mixed = settings.weights or settings.token_shares  # the training text may leave some out, or a whole source
    if len(data) == text_bytes <= settings.training_bytes and not mixed:
        return (
            f"{asked}, the text supports {supported:,} {pairs}: the stage will refuse it; set vocab_size to at most"
            f" {supported}, or give more text"
        )
    expected = _grown(texts, supported, min(text_bytes, settings.training_bytes), settings)
    if _ROOM * expected >= settings.vocab_size:
        return None
    rounded = float(f"{expected:.2g}")
    return (
        f"{asked}, the text may support only some {rounded:,.0f} {pairs}, judging by {len(data) / 1e6:.1f} MB of it:"
        " the stage would refuse it then and say how many"
    )


def _supported(texts: pa.Array, settings: PackSettings) -> int:
    """How many ids the texts support, counted up to those that are asked for."""
    counted = count_pieces([text_buffers(texts)])
    merges = train_merges(counted, settings.vocab_size - len(SPECIAL_TOKENS), settings.min_pair_count)
    return len(merges.tokens) + len(SPECIAL_TOKENS)


def _grown(texts: pa.Array, supported: int, text_bytes: int, settings: PackSettings) -> float:
    """How many ids `text_bytes` of text like this one support, of which all of it supports `supported`."""
    half = texts.take(pa.array(range(0, len(texts), 2)))
    few, many = (len(text_buffers(part)[0]) for part in (half, texts))
    of_half = _supported(half, settings) - _LEAST
    if not 0 < few < many or of_half <= 0 or supported == _LEAST:
        return math.inf  # nothing to judge by
    power = min(1.0, max(0.0, math.log((supported - _LEAST) / of_half) / math.log(many / few)))
    return _LEAST + (supported - _LEAST) * (text_bytes / many) ** power
