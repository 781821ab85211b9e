"""The kinds of chat data, and the probe behind `--plan` of the stages that prepare them."""

from __future__ import annotations

import time
from itertools import islice

from dataset_formatters import CONVERSATION_HANDLERS, PREFERENCE_HANDLERS
from pipeline_lib.stage import Estimate, Stage

from .chat_tokens import load_chat_tokenizer
from .conversation_checks import check_conversations
from .originals import read_originals
from .pair_checks import check_pairs
from .prepared_data import DataKind, check_batch, sources_of

INSTRUCTIONS = DataKind("sft", CONVERSATION_HANDLERS, check_conversations)
REASONING = DataKind("reasoning", CONVERSATION_HANDLERS, check_conversations, optional=True)
DOMAIN = DataKind("domain", CONVERSATION_HANDLERS, check_conversations)
PREFERENCES = DataKind("preference", PREFERENCE_HANDLERS, check_pairs)

_PROBE_RECORDS = 500
_LOADING_BYTES = 400_000_000
"""Memory of a process that has loaded transformers and a tokenizer."""


def estimate_preparation(stage: Stage, kind: DataKind) -> Estimate:
    """Format and check the first records of a kind and extrapolate to the bytes of all its files."""
    started = time.monotonic()
    files, handlers = sources_of(stage, kind)
    tokenizer = load_chat_tokenizer(stage.input("03_packed").folder("tokenizer"))
    probe = list(islice(read_originals(files), _PROBE_RECORDS))
    check_batch(probe[:8], kind, handlers, tokenizer, stage.settings.max_length)  # compiles the template
    loaded = time.monotonic()
    table = check_batch(probe, kind, handlers, tokenizer, stage.settings.max_length)
    seconds = time.monotonic() - loaded
    total = sum(file.path.stat().st_size for file in files)
    read = sum(len(str(original.value)) for original in probe) or 1
    scale = max(1.0, total / read)
    return Estimate(
        seconds=(loaded - started) + scale * seconds,
        memory_bytes=_LOADING_BYTES + 20 * int(table.nbytes),
        disk_bytes=total,
        basis=f"measured on the first {len(probe)} of {total / 1e6:.1f} MB of records",
    )
