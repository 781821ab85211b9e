"""Fuzzy dedup, parquet in and parquet out on two cores, against datatrove, datasketch and rensa, verification included.

    python benchmarks/run_all.py dedup_speed                 12 MB
    python benchmarks/run_all.py dedup_speed -- --large      72 MB, where starts and small files weigh less

The corpus is real text that every machine has (Python sources of the interpreter and its packages) plus edited copies,
about 3,000 documents (--large: 17,000, in ASCII, so that everybody's words are the same). Truth is the exact Jaccard
similarity of all pairs' word 5-gram sets (a sparse matrix product). Recall: of all pairs at 0.8 or more, the fraction
of which at least one was removed. Precision: the fraction of removed documents that do resemble a document that stayed.
Every run reads the shards and writes what stays; runs are interleaved. What a run costs before the first document
(datatrove starts its workers in four stages) is measured on a few documents and taken out in a second ratio, because a
larger corpus would hide it. What reading the shards and writing all of them costs, with nothing in between, is measured
too: no deduplication can be faster. Peers as documented and at their best:
* datatrove 0.10.1, its four stages with 14 x 8 and word 5-grams, two tasks on two workers, with its own (spaCy) words
  and with words split by one regular expression, which is faster;
* datasketch, update() per shingle as its documentation shows, and bulk with a fast hash and our number of permutations;
* rensa, full-set R-MinHash with 128 permutations, 16 x 8 bands: keep what no bucket of an earlier document holds.
"""

import argparse
import json
import random
import re
import shutil
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

from dedup import DedupParameters, fuzzy_dedup
from dedup.corpus import Corpus
from dedup.cpu_dedup import write_kept_shards

RUNS = 5
CORPUS_BYTES = 10_000_000
"""Of text; 12 MB with the copies, chosen so that datatrove should take about half a minute on two cores."""
LARGE_BYTES = 60_000_000
LONGEST = 12_000
FEW = 40
"""Documents of the corpus on which the cost of starting is measured."""
STARTS = 2
"""Of these the faster one counts: the first reads libraries from disk."""
SHARDS = 4
SHORTEST_WORDS = 50
"""Sketches have nothing to say about texts of a few words: the peer's are all alike, ours are compared exactly."""
THRESHOLD = 0.8
WORD = re.compile(r"\w+")


def real_texts(wanted: int = CORPUS_BYTES, only_ascii: bool = False) -> list[str]:
    """Return Python sources of the standard library and the installed packages, about `wanted` bytes in all."""
    folders = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py")) if path.stat().st_size <= LONGEST]
    random.Random(0).shuffle(files)
    texts, size = [], 0
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(WORD.findall(text)) < SHORTEST_WORDS or (only_ascii and not text.isascii()):
            continue
        texts.append(text)
        size += len(text)
        if size >= wanted:
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


def texts_of(folder: Path) -> list[str]:
    """Return the texts of all shards, in the order of their ids."""
    table = pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("*.parquet"))]).sort_by("id")
    return table["text"].to_pylist()


def write_rows(folder: Path, out: Path, removed: set[int]) -> None:
    """Write the shards without the removed documents: the part that the peers leave to their user."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.glob("*.parquet")):
        table = pq.read_table(file)
        stays = [int(identity) not in removed for identity in table["id"].to_pylist()]
        pq.write_table(table.filter(pa.array(stays)), out / file.name, compression="zstd")


def ours(folder: Path, out: Path) -> None:
    """dedup.fuzzy_dedup at its defaults, every removal verified, with receipts."""
    fuzzy_dedup(folder, out, DedupParameters(max_removed_fraction=1.0), workers=2, one_file=False)


def copy(folder: Path, out: Path) -> None:
    """Read and write all shards as ours does, on two threads, and nothing else."""
    corpus = Corpus(tuple(sorted(folder.glob("*.parquet"))))
    write_kept_shards(corpus, np.ones(corpus.rows(), np.bool_), out, 2)


def first_come_first_kept(sketches: list[MinHash], lsh: MinHashLSH) -> set[int]:
    removed = set()
    for number, sketch in enumerate(sketches):
        if lsh.query(sketch):
            removed.add(number)
        else:
            lsh.insert(number, sketch)
    return removed


def datasketch_documented(folder: Path, out: Path) -> None:
    """The way of datasketch's documentation: update() per shingle, 128 permutations, parameters from the threshold."""
    sketches = []
    for text in texts_of(folder):
        sketch = MinHash(num_perm=128)
        for shingle in shingles(text):
            sketch.update(shingle.encode())
        sketches.append(sketch)
    write_rows(folder, out, first_come_first_kept(sketches, MinHashLSH(threshold=THRESHOLD, num_perm=128)))


def datasketch_bulk(folder: Path, out: Path) -> None:
    """datasketch with its bulk interface, a fast hash, and our number of permutations and bands."""
    documents = ([shingle.encode() for shingle in shingles(text)] for text in texts_of(folder))
    sketches = MinHash.bulk(documents, num_perm=112, hashfunc=xxhash.xxh32_intdigest)
    write_rows(folder, out, first_come_first_kept(sketches, MinHashLSH(num_perm=112, params=(14, 8))))


def rensa_full_set(folder: Path, out: Path) -> None:
    """rensa's full-set R-MinHash and its LSH index; a document goes when an earlier kept one is in a bucket of it."""
    from rensa import RMinHash, RMinHashLSH

    documents = [list(shingles(text)) for text in texts_of(folder)]
    index = RMinHashLSH(threshold=THRESHOLD, num_perm=128, num_bands=16)
    removed = set()
    for number, sketch in enumerate(RMinHash.from_token_sets(documents, num_perm=128, seed=1)):
        if index.query(sketch):
            removed.add(number)
        else:
            index.insert(number, sketch)
    write_rows(folder, out, removed)


class PatternWords:
    """Words by one regular expression, in the interface of datatrove's word splitters."""

    def word_tokenize(self, text: str) -> list[str]:
        return WORD.findall(text)


def datatrove(folder: Path, out: Path, words: object | None = None) -> None:
    """The four stages of datatrove's own MinHash example, two tasks on two workers."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    work = out / "work"
    config = MinhashConfig(num_buckets=14, hashes_per_bucket=8, n_grams=5)
    signature = MinhashDedupSignature(str(work / "signatures"), config)
    if words is not None:
        signature.word_tokenizer = words
    stages = [
        (2, [ParquetReader(str(folder)), signature]),
        (14, [MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config)]),
        (1, [MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config)]),
        (2, [ParquetReader(str(folder)), MinhashDedupFilter(str(work / "remove")), ParquetWriter(str(out / "kept"))]),
    ]
    for number, (tasks, steps) in enumerate(stages):
        LocalPipelineExecutor(steps, tasks=tasks, workers=2, logging_dir=str(work / f"log{number}")).run()
    for file in sorted((out / "kept").glob("*.parquet")):
        shutil.move(file, out / file.name)


def datatrove_pattern(folder: Path, out: Path) -> None:
    """The same with a faster word splitter."""
    datatrove(folder, out, PatternWords())


def timed(run: Callable[[Path, Path], None], folder: Path, out: Path) -> float:
    """Return the seconds that a run needs, into an output folder that is not there before."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    run(folder, out)
    return time.perf_counter() - started


def removed_from(out: Path, documents: int) -> set[int]:
    """Return the documents that are not in the output shards."""
    files = [file for file in sorted(out.glob("*.parquet")) if file.name != "removed.parquet"]
    kept = {int(identity) for file in files for identity in pq.read_table(file, columns=["id"])["id"].to_pylist()}
    return set(range(documents)) - kept


def quality(removed: set[int], truth: dict[tuple[int, int], float]) -> str:
    """Return recall and precision of a set of removed documents."""
    found = sum(1 for pair in truth if removed.intersection(pair))
    right = {a for a, b in truth if b not in removed} | {b for a, b in truth if a not in removed}
    return f"recall {found / len(truth):.4f}, precision {len(removed & right) / max(len(removed), 1):.4f}"


PEERS: dict[str, Callable[[Path, Path], None]] = {
    "datatrove, four stages, 2 tasks, as documented": datatrove,
    "datatrove, four stages, 2 tasks, words by a pattern": datatrove_pattern,
    "datasketch, as documented, 128 permutations": datasketch_documented,
    "datasketch, bulk, xxh32, 112 permutations": datasketch_bulk,
    "rensa, full set, 128 permutations": rensa_full_set,
}


def write_corpus(folder: Path, texts: list[str]) -> None:
    """Write the documents, dealt out over SHARDS files; a document's id is its number."""
    folder.mkdir()
    for shard in range(SHARDS):
        numbers = range(shard, len(texts), SHARDS)
        table = pa.table({"id": [f"{number:06d}" for number in numbers], "text": texts[shard::SHARDS]})
        pq.write_table(table, folder / f"part-{shard:05d}.parquet", compression="zstd")


def main() -> None:
    """Print one row per peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--large", action="store_true")
    is_large = parser.parse_args().large
    texts = with_edited_copies(real_texts(LARGE_BYTES, only_ascii=True) if is_large else real_texts())
    truth = exact_similarities(texts)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary) / "in", Path(temporary) / "out"
        write_corpus(folder, texts)
        few = Path(temporary) / "few"
        write_corpus(few, texts[:FEW])
        runs = {"ours": ours, "copy": copy, **PEERS}
        ours(folder, out)  # load the compiled kernels
        start = {name: min(timed(run, few, out) for _ in range(STARTS)) for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        removed: dict[str, set[int]] = {}
        for _ in range(RUNS):
            for name, run in runs.items():
                times[name].append(timed(run, folder, out))
                removed[name] = removed_from(out, len(texts))
    medians = {name: statistics.median(values) for name, values in times.items()}
    speed = {name: megabytes / median for name, median in medians.items()}
    bare = {name: median - start[name] for name, median in medians.items()}
    for name in PEERS:
        row = {
            "claim": f"fuzzy dedup, parquet to parquet, {len(texts)} documents, {megabytes:.1f} MB, 2 cores",
            "ours": f"{speed['ours']:.1f} MB/s",
            "peer": f"{name}: {speed[name]:.2f} MB/s",
            "ratio": round(speed["ours"] / speed[name], 1),
            "quality": f"ours: {quality(removed['ours'], truth)}; peer: {quality(removed[name], truth)}; without the"
            f" start (ours {start['ours']:.2f} s, peer {start[name]:.1f} s) the ratio is"
            f" {bare[name] / bare['ours']:.1f}; reading and writing alone {speed['copy']:.0f} MB/s, at most"
            f" {speed['copy'] / speed[name]:.0f} times the peer",
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
