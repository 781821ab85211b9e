"""Signatures: megabytes of text per second on one core, from raw text to 112 minima, against datasketch and rensa.

The text is Python sources of the interpreter and its packages. Ours normalises, finds and hashes words, hashes word
5-grams and keeps the minima; datasketch (bulk, fast hash) and rensa (full set, from token lists) are timed with the
splitting into words and 5-grams that they leave to their user. How far from the limits: the same pass without
permutations, permutations alone, and a copy of the text (numpy), which is what memory allows.
"""

import json
import re
import statistics
import time
from collections.abc import Callable

import numpy as np
import xxhash
from datasketch import MinHash
from rensa import RMinHash

from dedup.minhash import permutations, signatures
from dedup.normalise import batch_of, normalise
from dedup.parameters import DedupParameters
from dedup.shingles import shingle_hashes
from dedup.sketch import cpu_signer
from dedup_speed import real_texts

RUNS = 7
PEER_TEXTS = 300
TEXTS_PER_BATCH = 500  # about 2 MB, as in a run
WORD = re.compile(r"\w+")


def word_shingles(text: str) -> list[str]:
    """Return the word 5-grams of a text, as the peers get them."""
    words = WORD.findall(text.lower())
    return [" ".join(words[at : at + 5]) for at in range(len(words) - 4)]


def main() -> None:
    """Print one row per peer and one for the limits."""
    texts = real_texts()
    few = texts[:PEER_TEXTS]
    batch, size, few_size = batch_of(texts), _megabytes(texts), _megabytes(few)
    batches = [batch_of(texts[first : first + TEXTS_PER_BATCH]) for first in range(0, len(texts), TEXTS_PER_BATCH)]
    hashes, starts = shingle_hashes(normalise(batch), "word", 5)
    a, b = permutations(112, 1)
    wide = DedupParameters(bands=16, rows=8)
    runs: dict[str, tuple[Callable[[], object], float]] = {
        "112": (lambda: [cpu_signer(normalise(part), DedupParameters()) for part in batches], size),
        "128": (lambda: [cpu_signer(normalise(part), wide) for part in batches], size),
        "none": (lambda: [shingle_hashes(normalise(part), "word", 5) for part in batches], size),
        "permutations": (lambda: signatures(hashes, starts, a, b), size),
        "copy": (lambda: np.array(batch.data), size),
        "datasketch": (lambda: _datasketch(few), few_size),
        "rensa": (lambda: RMinHash.from_token_sets([word_shingles(t) for t in few], num_perm=112, seed=1), few_size),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(RUNS + 1):
        for name, (work, _) in runs.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    speed = {name: runs[name][1] / statistics.median(values[1:]) for name, values in times.items()}
    claim = f"MinHash signatures, {size:.0f} MB, 1 core"
    quality = f"128 permutations {speed['128']:.0f} MB/s; bits equal to the plain Python definition (tests)"
    for peer in ("datasketch", "rensa"):
        row = {"claim": f"{claim}, 112 permutations", "ours": f"{speed['112']:.0f} MB/s"}
        row |= {"peer": f"{peer} {speed[peer]:.1f} MB/s", "ratio": round(speed["112"] / speed[peer], 1)}
        print(json.dumps(row | {"quality": quality}))
    limits = (
        f"without permutations {speed['none']:.0f} MB/s, permutations alone {speed['permutations']:.0f} MB/s,"
        f" {len(hashes) * 112 / 1e6 / (size / speed['permutations']) / 1e3:.1f} thousand million updates a second"
    )
    row = {"claim": f"{claim}, distance to the memory limit", "ours": f"{speed['112']:.0f} MB/s"}
    row |= {"peer": f"a copy of the text {speed['copy']:.0f} MB/s", "ratio": round(speed["112"] / speed["copy"], 3)}
    print(json.dumps(row | {"quality": limits}))


def _megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def _datasketch(texts: list[str]) -> list[MinHash]:
    encoded = ([shingle.encode() for shingle in word_shingles(text)] for text in texts)
    return MinHash.bulk(encoded, num_perm=112, hashfunc=xxhash.xxh32_intdigest)


if __name__ == "__main__":
    main()
