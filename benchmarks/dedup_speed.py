"""Fuzzy dedup, parquet in and removed ids out, against datasketch as documented and at its best, on one core.

The corpus is real text that every machine has (Python sources of the interpreter and its packages) plus edited copies.
Truth is the exact Jaccard similarity of all pairs' word 5-gram sets (a sparse matrix product). Recall: of all pairs at
0.8 or more, the fraction of which at least one was removed. Precision: the fraction of removed documents that do
resemble a document that stayed. Every run reads the file, splits, hashes, searches; runs are interleaved.
"""

import json
import random
import re
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse
import xxhash
from datasketch import MinHash, MinHashLSH

from dedup import DedupParameters, find_duplicates

RUNS = 5
CORPUS_BYTES = 12_000_000
LONGEST = 40_000
SHORTEST_WORDS = 50
"""Sketches have nothing to say about texts of a few words: the peer's are all alike, ours are compared exactly."""
THRESHOLD = 0.8
WORD = re.compile(r"\w+")


def real_texts() -> list[str]:
    """Return Python sources of the standard library and the installed packages, about CORPUS_BYTES in all."""
    folders = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py")) if path.stat().st_size <= LONGEST]
    random.Random(0).shuffle(files)
    texts, size = [], 0
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(WORD.findall(text)) < SHORTEST_WORDS:
            continue
        texts.append(text)
        size += len(text)
        if size >= CORPUS_BYTES:
            return texts
    return texts


def with_edited_copies(texts: list[str]) -> list[str]:
    """Add a copy of every fifth text with up to 6 % of its words replaced."""
    rng = random.Random(1)
    copies = []
    for text in texts[::5]:
        fraction = rng.uniform(0.0, 0.06)
        copies.append(WORD.sub(lambda word, f=fraction: "edited" if rng.random() < f else word[0], text))
    return texts + copies


def shingles(text: str) -> set[str]:
    """Return the distinct word 5-grams of a text, as the peer gets them."""
    words = WORD.findall(text.lower())
    return {" ".join(words[at : at + 5]) for at in range(len(words) - 4)}


def exact_similarities(texts: list[str]) -> dict[tuple[int, int], float]:
    """Return the Jaccard similarity of every pair of documents that reaches THRESHOLD."""
    numbers: dict[str, int] = {}
    rows = [[numbers.setdefault(shingle, len(numbers)) for shingle in shingles(text)] for text in texts]
    sizes = np.array([len(row) for row in rows])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    matrix = scipy.sparse.csr_matrix(
        (np.ones(starts[-1], np.int32), np.concatenate(rows), starts), (len(rows), len(numbers))
    )
    shared = scipy.sparse.triu(matrix @ matrix.T, 1).tocoo()
    jaccard = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    close = jaccard >= THRESHOLD
    pairs = zip(shared.row[close].tolist(), shared.col[close].tolist(), strict=True)
    return dict(zip(pairs, jaccard[close].tolist(), strict=True))


def ours(path: Path, workers: int = 1) -> set[int]:
    """Return the removed documents of dedup.find_duplicates at its defaults."""
    parameters = DedupParameters(jaccard=THRESHOLD, max_removed_fraction=1.0)
    found = find_duplicates([path], parameters, workers, path.parent / "scratch")
    return {int(identity) for identity in found["id"].to_pylist()}


def first_come_first_kept(sketches: list[MinHash], lsh: MinHashLSH) -> set[int]:
    removed = set()
    for number, sketch in enumerate(sketches):
        if lsh.query(sketch):
            removed.add(number)
        else:
            lsh.insert(number, sketch)
    return removed


def datasketch_documented(path: Path) -> set[int]:
    """The way of datasketch's documentation: update() per shingle, 128 permutations, parameters from the threshold."""
    sketches = []
    for text in pq.read_table(path, columns=["text"])["text"].to_pylist():
        sketch = MinHash(num_perm=128)
        for shingle in shingles(text):
            sketch.update(shingle.encode())
        sketches.append(sketch)
    return first_come_first_kept(sketches, MinHashLSH(threshold=THRESHOLD, num_perm=128))


def datasketch_best(path: Path) -> set[int]:
    """datasketch with its bulk interface, a fast hash, and our number of permutations and bands."""
    texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
    documents = ([shingle.encode() for shingle in shingles(text)] for text in texts)
    sketches = MinHash.bulk(documents, num_perm=112, hashfunc=xxhash.xxh32_intdigest)
    return first_come_first_kept(sketches, MinHashLSH(num_perm=112, params=(14, 8)))


def quality(removed: set[int], truth: dict[tuple[int, int], float]) -> str:
    """Return recall and precision of a set of removed documents."""
    found = sum(1 for pair in truth if removed.intersection(pair))
    right = {a for a, b in truth if b not in removed} | {b for a, b in truth if a not in removed}
    return f"recall {found / len(truth):.4f}, precision {len(removed & right) / max(len(removed), 1):.4f}"


def seconds(run: Callable[[Path], set[int]], path: Path) -> tuple[float, set[int]]:
    started = time.perf_counter()
    removed = run(path)
    return time.perf_counter() - started, removed


def main() -> None:
    """Print one row per peer."""
    texts = with_edited_copies(real_texts())
    truth = exact_similarities(texts)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.parquet"
        pq.write_table(pa.table({"id": [str(number) for number in range(len(texts))], "text": texts}), path)
        runs = {"ours": ours, "documented": datasketch_documented, "best": datasketch_best}
        ours(path)  # load the compiled kernels
        times: dict[str, list[float]] = {name: [] for name in runs}
        removed: dict[str, set[int]] = {}
        for _ in range(RUNS):
            for name, run in runs.items():
                taken, removed[name] = seconds(run, path)
                times[name].append(taken)
    speed = {name: megabytes / statistics.median(values) for name, values in times.items()}
    for name, setting in (("documented", "as documented, 128 permutations"), ("best", "bulk, xxh32, 112 permutations")):
        row = {
            "claim": f"fuzzy dedup, {len(texts)} documents, {megabytes:.1f} MB, 1 core",
            "ours": f"{speed['ours']:.1f} MB/s",
            "peer": f"datasketch ({setting}) {speed[name]:.2f} MB/s",
            "ratio": round(speed["ours"] / speed[name], 1),
            "quality": f"ours: {quality(removed['ours'], truth)}; peer: {quality(removed[name], truth)}",
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
