"""A set of 64-bit hashes that is emptied in no time: the heart of every "did this occur before?" rule.

How: open addressing with linear probing. A slot counts as filled only when its stamp is the current one, so the next
document (or the next n-gram size) takes a new stamp instead of clearing memory, and a short document probes only the
first `mask + 1` slots, which stay in the cache.
"""

import numpy as np

from pipeline_lib.compiled import kernel


@kernel
def mask_for(entries):
    """Return the slot mask (a power of two minus one) that keeps `entries` hashes at most half full."""
    size = 16
    while size < 2 * entries:
        size *= 2
    return size - 1


@kernel
def new_slots(entries):
    """Return (keys uint64, stamps int32) with room for `entries` hashes; stamp 0 is never used."""
    size = mask_for(entries) + 1
    return np.empty(size, np.uint64), np.zeros(size, np.int32)


@kernel
def find_or_add(keys, stamps, mask, stamp, key):
    """Return (slot of the key, whether it was added just now)."""
    slot = np.int64(key & np.uint64(mask))
    while stamps[slot] == stamp:
        if keys[slot] == key:
            return slot, False
        slot = (slot + 1) & mask
    stamps[slot] = stamp
    keys[slot] = key
    return slot, True
