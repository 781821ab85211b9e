"""Tokenizer training, encoding and packing against Hugging Face tokenizers, gigatoken's trainer and TRL's packing.

The corpus is real text that every machine has: Python sources of the interpreter and its packages. Peers run as
documented and at their best (all cores, everything in memory, one packing window over the whole corpus). Rounds are
interleaved; what is compared is checked to be the same (ids, merges) or its quality stands beside it (tokens lost,
padding, bytes per token).
"""

import ctypes
import gc
import gzip
import json
import os
import platform
import random
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "true"

import datasets
import gigatoken
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
import xxhash
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from trl import pack_dataset

from pipeline_lib.packing.build_chunks import UNITS_AT_ONCE, bound_memory, make_chunk, stays_in_memory
from pipeline_lib.packing.cache_index import INDEX, Shard, describe_cache, describe_chunk
from pipeline_lib.packing.chunk_format import ChunkFile
from pipeline_lib.packing.chunk_ranges import ChunkRange, cut_into_chunks
from pipeline_lib.packing.encoded_runs import EncodedRun, EncodedRuns, encode_run
from pipeline_lib.packing.packing_plan import Mixture, plan_file_name, write_plan
from pipeline_lib.packing.pretoken_counts import CL100K_PATTERN
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.packing.run_files import RunFile
from pipeline_lib.packing.shards import Run, plan_runs
from pipeline_lib.packing.text_encoder import TextEncoder
from pipeline_lib.packing.tokenizer_folder import SPECIAL_TOKENS
from pipeline_lib.packing.trained_tokenizer import printable, tokenizer_json, train_tokenizer, write_tokenizer
from pipeline_lib.stage import available_cores, file_digest, ordered_threads, write_bytes_atomic, write_json_atomic

ROUNDS = 5
CORPUS_BYTES = 12_000_000
VOCAB_SIZE = 8192
CONTEXT = 2048
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def real_texts(size: int = CORPUS_BYTES) -> list[str]:
    """Return about `size` bytes of documents: Python sources, or the JSON lines files that PACKING_TEXT names.

    No text is there twice: stage 02 would have removed it, and LZ4 would find it.
    """
    if given := os.environ.get("PACKING_TEXT"):
        return list(dict.fromkeys(_texts_of([Path(name) for name in given.split(":")], size)))
    folders = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py")) if 200 < path.stat().st_size < 200_000]
    random.Random(0).shuffle(files)
    texts, read = [], 0
    for path in files:
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
        read += len(texts[-1])
        if read >= size:
            break
    return list(dict.fromkeys(texts))


def _texts_of(files: list[Path], size: int) -> list[str]:
    texts, read = [], 0
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else open(file, encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                texts.append(record.get("text") or record["content"])
                read += len(texts[-1])
                if read >= size:
                    return texts
    return texts


def with_memory_bounded(run: Callable[[TextEncoder], Any], shard: Path) -> Callable[[TextEncoder], Any]:
    """Let a contender give freed memory back where stage 03 would, and pay for it; the others keep theirs."""

    def paying(encoder: TextEncoder) -> Any:
        pool, changed = pa.default_memory_pool(), bound_memory(plan_runs([shard]))
        try:
            return run(encoder)
        finally:
            if changed:
                pa.set_memory_pool(pool)
                if platform.libc_ver()[0] == "glibc":  # back to where its own rule ends once a large block was freed
                    mallopt = ctypes.CDLL(None).mallopt
                    mallopt(M_MMAP_THRESHOLD, 32 << 20)
                    mallopt(M_TRIM_THRESHOLD, 64 << 20)

    return paying


def medians(
    contenders: dict[str, Callable[..., Any]], prepare: Callable[[], Any] | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Run the contenders in turn, ROUNDS times after one warm-up; return median seconds and last results.

    prepare: makes, outside the timing, what each run gets as its argument.
    """
    given = (lambda: (prepare(),)) if prepare else tuple
    results = {name: run(*given()) for name, run in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, run in contenders.items():
            arguments = given()
            gc.collect()
            gc.disable()  # as timeit does: who runs after a peer's millions of lists would pay for looking at them
            started = time.perf_counter()
            results[name] = run(*arguments)
            seconds[name].append(time.perf_counter() - started)
            gc.enable()
    return {name: statistics.median(each) for name, each in seconds.items()}, results


def report(claim: str, ours: float, peer: float, size: float, unit: str, quality: str) -> None:
    """Print one row; `size` / seconds is the rate in `unit`."""
    row = {
        "claim": claim,
        "ours": f"{size / ours:.3g} {unit}",
        "peer": f"{size / peer:.3g} {unit}",
        "ratio": f"{peer / ours:.2f}",
        "quality": quality,
    }
    print(json.dumps(row, ensure_ascii=False), flush=True)


def reference_tokenizer(pattern: str) -> tokenizers.Tokenizer:
    """Return an untrained Hugging Face byte-level BPE with this split rule."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_reference(texts: list[str]) -> tokenizers.Tokenizer:
    """Train Hugging Face's BpeTrainer to the same size under the same rule."""
    tokenizer = reference_tokenizer(CL100K_PATTERN)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_gigatoken(texts: list[str]) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Train gigatoken's own trainer, which splits by the GPT-2 rule; what it prints is not ours to show."""
    joined = "\0".join(text.replace("\0", " ") for text in texts).encode()
    with open(os.devnull, "w") as nowhere:
        kept = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            return gigatoken.train_bpe(joined, VOCAB_SIZE - len(SPECIAL_TOKENS), [], separator=b"\0")
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def bytes_per_token(trained: tuple[dict, list], pattern: str, texts: list[str]) -> float:
    """Return how well gigatoken's vocabulary compresses the corpus under a split rule."""
    vocabulary, merges = trained
    tokenizer = reference_tokenizer(pattern)
    tokenizer.model = models.BPE(
        vocab={printable(value): identity for identity, value in vocabulary.items()},
        merges=[(printable(a), printable(b)) for a, b in merges],
    )
    encoded = gigatoken.Tokenizer.from_json(tokenizer.to_str()).encode_batch(texts)
    return sum(len(text.encode()) for text in texts) / int(encoded.layout.offsets.data[-1])


def _encode_runs(runs: list[Run], encoder: TextEncoder, folder: Path) -> list[EncodedRun | RunFile]:
    """Encode as stage 03 does, in memory or to files."""
    if stays_in_memory(runs):
        return list(ordered_threads(lambda run: encode_run(run, encoder, 42), runs, UNITS_AT_ONCE))

    def encode(run: Run) -> RunFile:
        file = RunFile(folder, run)
        file.write(encode_run(run, encoder, 42), encoder)
        return file

    return list(ordered_threads(encode, runs, UNITS_AT_ONCE))


def pack_ours(folder: Path, shard: Path, encoder: TextEncoder, chunk_tokens: int = 4_000_000) -> PackedCache:
    """Text shard in, packed cache on disk out: what stage 03 does after training, without its process start."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    encoded = EncodedRuns(_encode_runs(plan_runs([shard]), encoder, folder), encoder)

    def write(numbered: tuple[int, ChunkRange]) -> dict[str, Any]:
        number, chunk = numbered
        description = {"part": 0, "split": chunk.split, "range": chunk.to_json(), "vocab_size": encoder.vocab_size}
        name = f"chunk-{number:05d}.lz4"
        write_bytes_atomic(folder / name, make_chunk(encoded, chunk, description, 0, available_cores()))
        return describe_chunk(ChunkFile(folder / name), name)

    ranges = cut_into_chunks(encoded.statistics(), chunk_tokens, 0.0).ranges
    entries = list(ordered_threads(write, enumerate(ranges), UNITS_AT_ONCE))
    chunks = [ChunkFile(folder / entry["file"]) for entry in entries]
    path = folder / plan_file_name(CONTEXT)
    plan = {"context": CONTEXT, "file": path.name, **write_plan(chunks, CONTEXT, path, Mixture())}
    plan["digest"] = file_digest(path)
    parts = [[Shard(shard.name, "")]]
    write_json_atomic(folder / INDEX, describe_cache({}, encoder, parts, entries, [plan]))
    return PackedCache(folder)


def pack_trl(encoded: datasets.Dataset, strategy: str, window: int) -> datasets.Dataset:
    """Pack with TRL, in memory; `window` documents are packed together (its default is 1,000)."""
    settings = {"keep_in_memory": True, "load_from_cache_file": False, "batch_size": window}
    return pack_dataset(encoded, CONTEXT, strategy, settings)


def encode_as_documented(texts: datasets.Dataset, tokenizer: tokenizers.Tokenizer) -> datasets.Dataset:
    """Tokenise with datasets.map in batches, as the courses of Hugging Face show it, and end each document."""

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[*each.ids, 0] for each in tokenizer.encode_batch_fast(batch["text"])]}

    return texts.map(encode, batched=True, remove_columns=["text"], keep_in_memory=True, load_from_cache_file=False)


def quality_of(packed: datasets.Dataset, tokens: int) -> str:
    """Return the tokens lost and the padding of a packed data set."""
    lengths = [len(row) for row in packed["input_ids"]]
    lost, padding = 1 - sum(lengths) / tokens, 1 - sum(lengths) / CONTEXT / len(lengths)
    return f"peer loses {100 * lost:.2f} %, pads {100 * padding:.3f} %"


def write_shard(path: Path, texts: list[str]) -> Path:
    """Write texts as a shard of the pipeline."""
    ids = [f"python-{xxhash.xxh3_128_hexdigest(text.encode())}" for text in texts]
    columns = {"id": ids, "source": ["python"] * len(texts), "text": texts}
    pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=1000)
    return path


def padding_of(cache: PackedCache) -> str:
    """Return what our packing loses and pads."""
    plan = cache.index["plans"][0]["splits"]["train"]
    return f"ours loses 0, pads {100 * plan['padding'] / (plan['padding'] + plan['tokens']):.3f} %"


def benchmark_training(texts: list[str], size: float) -> None:
    shard = batch_of(texts)
    seconds, results = medians(
        {
            "ours": lambda: train_tokenizer([shard], VOCAB_SIZE, 2),
            "hf": lambda: train_reference(texts),
            "gigatoken": lambda: train_gigatoken(texts),
        }
    )
    ours, reference = json.loads(tokenizer_json(results["ours"])), json.loads(results["hf"].to_str())
    assert ours["model"]["vocab"] == reference["model"]["vocab"]
    assert ours["model"]["merges"] == reference["model"]["merges"]
    report(
        "BPE training, 8,192 ids, against HF BpeTrainer",
        seconds["ours"],
        seconds["hf"],
        size,
        "MB/s",
        "same vocabulary, same merges",
    )
    encoded = gigatoken.Tokenizer.from_json(json.dumps(ours)).encode_batch(texts)
    own = sum(len(text.encode()) for text in texts) / int(encoded.layout.offsets.data[-1])
    theirs = [bytes_per_token(results["gigatoken"], pattern, texts) for pattern in (GPT2_PATTERN, CL100K_PATTERN)]
    report(
        "BPE training against gigatoken's trainer (GPT-2 split only)",
        seconds["ours"],
        seconds["gigatoken"],
        size,
        "MB/s",
        f"{own:.3f} bytes/token; gigatoken's {theirs[0]:.3f}, under our split {theirs[1]:.3f}",
    )


def batch_of(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return texts as one batch of bytes and boundaries."""
    encoded = [text.encode() for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in encoded])]).astype(np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def benchmark_encoding(texts: list[str], encoder: TextEncoder, reference: tokenizers.Tokenizer, size: float) -> None:
    arrow = pa.array(texts, pa.large_string())
    seconds, results = medians(
        {
            "ours": lambda: encoder.encode(arrow),
            "hf": lambda: reference.encode_batch_fast(texts, add_special_tokens=False),
        }
    )
    tokens, offsets = results["ours"]
    for place, expected in enumerate(results["hf"]):
        assert tokens[offsets[place] : offsets[place + 1]].tolist() == expected.ids
    claim = "encoding, against HF tokenizers encode_batch_fast on all cores"
    report(claim, seconds["ours"], seconds["hf"], size, "MB/s", "ids equal in every document")


def benchmark_whole(folder: Path, texts: list[str], tokenizer: Path, reference: tokenizers.Tokenizer) -> None:
    """Cleaned Parquet to a finished cache, against the same with Hugging Face tokenizers and TRL.

    Every measurement of ours has a tokenizer loaded anew: gigatoken remembers words, and nobody encodes the same text
    twice.
    """
    folder.mkdir()
    shard = write_shard(folder / "part-00000.parquet", texts)

    def documented(_: TextEncoder) -> datasets.Dataset:
        loaded = datasets.Dataset(pq.read_table(shard, columns=["text"]))
        return pack_trl(encode_as_documented(loaded, reference), "bfd", 1000)

    def best(_: TextEncoder) -> datasets.Dataset:
        read = pq.read_table(shard, columns=["text"])["text"].to_pylist()
        ids = [[*each.ids, 0] for each in reference.encode_batch_fast(read, add_special_tokens=False)]
        return pack_trl(datasets.Dataset.from_dict({"input_ids": ids}), "bfd_split", len(texts))

    def ours(encoder: TextEncoder) -> PackedCache:
        return pack_ours(folder, shard, encoder)

    contenders = {"ours": with_memory_bounded(ours, shard), "documented": documented, "best": best}
    seconds, results = medians(contenders, lambda: TextEncoder(tokenizer))
    size = sum(len(text.encode()) for text in texts) / 1e6
    tokens = results["ours"].tokens()
    peers = {
        "documented": "datasets.map(encode_batch) and TRL bfd, as documented",
        "best": "encode_batch_fast in one call and TRL bfd_split in one window",
    }
    for name, label in peers.items():
        quality = f"same ids; {padding_of(results['ours'])}; {quality_of(results[name], tokens)}"
        claim = f"cleaned Parquet to finished cache ({CONTEXT}), {size:.0f} MB, against {label}"
        report(claim, seconds["ours"], seconds[name], size, "MB/s", quality)


def benchmark_overhead(folder: Path, texts: list[str], tokenizer: Path) -> None:
    """What shuffling, compressing, checksums and planning add to bare gigatoken on text in memory or in Parquet.

    Up to 64 MB of one shard stay in memory; a larger corpus goes through files.
    Every measurement loads the tokenizer anew, as in `benchmark_whole`.
    """
    folder.mkdir()
    shard = write_shard(folder / "part-00000.parquet", texts)
    arrow = pa.array(texts, pa.large_string())

    def from_parquet(encoder: TextEncoder) -> None:
        for batch in pq.read_table(shard, columns=["text"]).to_batches(max_chunksize=4000):
            encoder.encode(batch.column("text"))

    seconds, _ = medians(
        {
            "ours": with_memory_bounded(lambda encoder: pack_ours(folder, shard, encoder), shard),
            "text in memory": lambda encoder: encoder.encode(arrow),
            "the same Parquet": from_parquet,
        },
        lambda: TextEncoder(tokenizer),
    )
    size = sum(len(text.encode()) for text in texts) / 1e6
    for source in ("text in memory", "the same Parquet"):
        quality = f"{seconds['ours'] / seconds[source]:.2f} times the time, for a finished cache instead of ids"
        report(f"cleaned Parquet to finished cache, {size:.0f} MB, against bare gigatoken on {source}",
               seconds["ours"], seconds[source], size, "MB/s", quality)  # fmt: skip


def main() -> None:
    """Print one JSON row per claim."""
    datasets.disable_progress_bars()
    texts = real_texts()
    size = sum(len(text.encode()) for text in texts) / 1e6
    benchmark_training(texts, size)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_tokenizer(folder / "tokenizer", train_tokenizer([batch_of(texts)], VOCAB_SIZE, 2))
        encoder = TextEncoder(folder / "tokenizer")
        reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
        reference.encode_special_tokens = True
        benchmark_encoding(texts, encoder, reference, size)
        benchmark_whole(folder / "whole", real_texts(3 * CORPUS_BYTES), folder / "tokenizer", reference)
        benchmark_overhead(folder / "overhead", real_texts(5 * CORPUS_BYTES), folder / "tokenizer")
        benchmark_overhead(folder / "several runs", real_texts(16 * CORPUS_BYTES), folder / "tokenizer")


if __name__ == "__main__":
    main()
