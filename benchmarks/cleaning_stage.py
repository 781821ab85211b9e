"""Everything stage 02 does to a document, parquet to parquet on one core, without deduplication; and decontamination.

The corpus is the documentation of the installed packages (cleaning_quality.py), written again and again under new ids.
Each size runs in a process of its own, so that its peak memory is its own; the peer of the larger size is the smaller
one, because the promise is that time grows as the input does. Decontamination is compared with datatrove's filter over
an index of the same evaluation texts, with the same words.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cleaning_quality import OurWords, real_texts
from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.text_cleaning.contamination import build_index

RUNS = 5
COPIES = (1, 10)
COLUMNS = ("id", "text", "source", "url", "origin", "license")


def write_corpus(path: Path, texts: list[str], copies: int) -> None:
    """Write `copies` times the texts, one row group per copy."""
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for copy in range(copies):
            rows = [
                {"id": f"{copy}-{i}", "text": text, "source": "web", "url": "", "origin": "", "license": ""}
                for i, text in enumerate(texts)
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def clean_once(corpus: Path) -> None:
    """Clean one file in this process, and print seconds and peak memory (the work of a subprocess)."""
    from pipeline_lib.text_cleaning.shard import ShardJob, clean_shard, start_cleaner

    start_cleaner(CleanSettings(contamination={"enabled": False}), [], 0, None)
    groups = tuple(range(pq.read_metadata(corpus).num_row_groups))
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"{name}.parquet" for name in ("candidates", "receipts", "scores", "copies")]
        clean_shard(ShardJob(corpus, (), *outputs))  # the compiled code is loaded
        started = time.perf_counter()
        clean_shard(ShardJob(corpus, groups, *outputs))
        seconds = time.perf_counter() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


def whole_stage(texts: list[str]) -> None:
    """Time both sizes in turn."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    seconds: dict[int, list[float]] = {copies: [] for copies in COPIES}
    memory: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for copies in COPIES:
            write_corpus(Path(folder) / f"{copies}.parquet", texts, copies)
        for _ in range(RUNS):
            for copies in COPIES:
                argv = [sys.executable, __file__, str(Path(folder) / f"{copies}.parquet")]
                output = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout
                taken, memory[copies] = json.loads(output.splitlines()[-1])
                seconds[copies].append(taken)
    small, large = (statistics.median(seconds[copies]) for copies in COPIES)
    line = {
        "claim": "stage 02 without dedup, parquet to parquet, one core",
        "ours": f"{megabytes * COPIES[1] / large:.1f} MB/s",
        "peer": "itself with a tenth of the input",
        "ratio": f"{large / small:.1f}x the time",
        "quality": f"peak memory {memory[COPIES[0]] / 1e6:.0f} MB, then {memory[COPIES[1]] / 1e6:.0f} MB",
    }
    print(json.dumps(line), flush=True)


def decontamination(texts: list[str]) -> None:
    """Time the look-up of 13 words in a row, ours against datatrove's; every document with a copy must be found."""
    from datatrove.data import Document
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter, NGramsDecontIndexer

    asked = [" ".join(text.split()[40:70]) for text in texts[::20]]
    config = NGramsDecontConfig(n_grams=13)
    words = OurWords()
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "asked.jsonl"
        records.write_text("".join(json.dumps({"question": text}) + "\n" for text in asked))
        index = build_index([records], 13)
    peer = object.__new__(NGramsDecontFilter)  # its constructors ask for lighteval, which only loads task files
    indexer = object.__new__(NGramsDecontIndexer)
    for block in (peer, indexer):
        block.config, block.tokenizer = config, words
    from datatrove.utils.hashing import create_hash_func

    peer.hash_func = indexer.hash_func = create_hash_func(config.hash_config)
    peer.stat_update = lambda *names, **values: None
    peer._index_hashes = {value: "asked" for text in asked for value in indexer.compute_hashes(text)}
    array = pa.array(texts, pa.large_string())
    index.matches(array.slice(0, 1))
    ours, theirs = [], []
    for _ in range(RUNS):
        started = time.perf_counter()
        counts = index.matches(array).counts
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        verdicts = [peer.filter(Document(text=text, id="")) is not True for text in texts]
        theirs.append(time.perf_counter() - started)
    planted = [place for place in range(0, len(texts), 20) if len(texts[place].split()) >= 53]
    line = {
        "claim": "decontamination, word 13-grams, one core",
        "ours": f"{len(texts) / statistics.median(ours):,.0f} documents/s",
        "peer": f"datatrove {len(texts) / statistics.median(theirs):,.0f} documents/s",
        "ratio": round(statistics.median(theirs) / statistics.median(ours), 1),
        "quality": f"{sum(counts[place] > 0 for place in planted)} of {len(planted)} planted copies found, datatrove"
        f" {sum(verdicts[place] for place in planted)}; same verdict on"
        f" {sum((count > 0) == verdict for count, verdict in zip(counts, verdicts, strict=True)) / len(texts):.2%}",
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        clean_once(Path(sys.argv[1]))
    else:
        whole_stage(real_texts())
        decontamination(real_texts())
