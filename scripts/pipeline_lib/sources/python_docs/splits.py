"""Which split an item or a module belongs to, by a hash of its name alone: no order, no seed, no count decides.

    text        appears in the pretraining documents and nowhere else
    sft, preference, domain     also the material of that training set
    eval        cut out of the pretraining documents; the only material of evaluation questions

Held-out modules are whole files that appear in no document and no training set, only in `heldout_docs`.
Installing one more package therefore adds items and moves none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import xxhash

T = TypeVar("T")

SHARES = (("eval", 60), ("preference", 180), ("domain", 100), ("sft", 420), ("text", 240))
"""Share of each split in thousandths of all documented names."""

HELD_OUT_SHARE = 30
"""Share of modules held out, in thousandths."""


def draw(*key: object) -> int:
    """A uniform 64-bit number that depends on the key only."""
    return xxhash.xxh3_64_intdigest("\0".join(map(str, key)).encode("utf-8"))


def pick(options: Sequence[T], *key: object) -> T:
    """One of the options, decided by the key."""
    return options[draw(*key) % len(options)]


def split_of(name: str) -> str:
    """The split of a qualified name: text, sft, preference, domain or eval."""
    position = draw("split", name) % 1000
    for split, share in SHARES:
        if position < share:
            return split
        position -= share
    raise AssertionError("the shares add up to 1000")


def is_held_out(module: str) -> bool:
    """Whether a module's document is kept for evaluation."""
    return draw("module", module) % 1000 < HELD_OUT_SHARE
