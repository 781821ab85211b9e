"""Memory and growth: 10,000 to 1,000,000 synthetic documents, without a limit and with --max-ram 512M.

The documents have 60 to 400 words drawn by Zipf's law from 20,000; every tenth is a copy of an earlier one, three in
ten of these exact, the others with up to 5 % of their words replaced. Every run is a process of its own
(scripts/dedup_files.py run, two workers), timed from start to end with the compiled code on disk; its resident memory
is the kernel's peak, and sampled for the curve. The kept documents of both runs must be equal. One run a point: a peak
and a factor of a hundred between the sizes need no median, the ratio of the two times is context.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

SIZES = (10_000, 100_000, 1_000_000)
PER_FILE = 50_000
LIMIT = "512M"
SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "dedup_files.py"


def write_documents(folder: Path, count: int) -> None:
    """Write `count` documents in files of PER_FILE."""
    rng = np.random.default_rng(7)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = np.array(["".join(rng.choice(letters, size)) for size in rng.integers(2, 11, 20_000)], dtype=object)
    weight = 1 / np.arange(1, len(words) + 1)
    earlier: list[np.ndarray] = []
    folder.mkdir(parents=True)
    for first in range(0, count, PER_FILE):
        texts = []
        lengths = rng.integers(60, 400, min(PER_FILE, count - first))
        drawn = np.split(rng.choice(len(words), int(lengths.sum()), p=weight / weight.sum()), np.cumsum(lengths)[:-1])
        for document in drawn:
            if rng.random() < 0.1 and earlier:
                document = earlier[rng.integers(len(earlier))].copy()
                if rng.random() > 0.3:
                    edits = rng.integers(0, len(document), 1 + int(len(document) * rng.uniform(0, 0.05)))
                    document[edits] = rng.integers(0, len(words), len(edits))
            elif len(earlier) < 20_000 or rng.random() < 0.01:
                earlier = [*earlier[-19_999:], document] if len(earlier) >= 20_000 else earlier
                earlier.append(document)
            texts.append(" ".join(words[document]))
        ids = [f"doc-{number:08d}" for number in range(first, first + len(texts))]
        table = pa.table({"id": ids, "text": texts, "source": ["web"] * len(texts)})
        path = folder / f"part-{first // PER_FILE:05d}.parquet"
        pq.write_table(table, path, compression="zstd", row_group_size=10_000)


def run(folder: Path, out: Path, limit: str | None) -> tuple[float, list[int], int]:
    """Return (seconds, resident MB sampled ten times a second, peak MB by the kernel)."""
    command = [sys.executable, str(SCRIPT), "run", str(folder), str(out), "--workers", "2"]
    started = time.perf_counter()
    process = subprocess.Popen(command + (["--max-ram", limit] if limit else []), stdout=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    curve = []
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        curve.append(watched.memory_info().rss >> 20)
        time.sleep(0.1)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return time.perf_counter() - started, curve, usage.ru_maxrss >> 10


def digest_of_kept(out: Path) -> str:
    """Return a digest of the ids that stay, in the order of the shards."""
    state = xxhash.xxh3_128()
    for file in sorted(out.glob("part-*.parquet")):
        state.update("\n".join(pq.read_table(file, columns=["id"])["id"].to_pylist()).encode())
    return state.hexdigest()


def main() -> None:
    """Print one row per size."""
    before = None
    with tempfile.TemporaryDirectory() as temporary:
        for size in SIZES:
            folder = Path(temporary) / str(size)
            # In a process of its own: the kernel's peak of a child begins at the size of the process that started it.
            writer = multiprocessing.get_context("spawn").Process(target=write_documents, args=(folder, size))
            writer.start()
            writer.join()
            if writer.exitcode:
                sys.exit("writing the documents failed")
            if before is None:
                run(folder, Path(temporary) / "warm-up", LIMIT)  # leaves the compiled code on disk
            results, kept = {}, set()
            for limit in (None, LIMIT):
                out = Path(temporary) / "out"
                results[limit] = run(folder, out, limit)
                kept.add(digest_of_kept(out))
                shutil.rmtree(out)
            shutil.rmtree(folder)
            if len(kept) != 1:
                sys.exit(f"the kept documents differ: {kept}")
            (free, _, free_peak), (limited, curve, peak) = results[None], results[LIMIT]
            points = [curve[round(at * (len(curve) - 1) / 10)] for at in range(11)]
            growth = f"; {free / before[1]:.1f} times the time of {before[0]:,}" if before else ""
            row = {
                "claim": f"dedup of {size:,} documents within {LIMIT}",
                "ours": f"{limited:.1f} s, peak {peak} MB",
                "peer": f"ours without a limit: {free:.1f} s, peak {free_peak} MB{growth}",
                "ratio": round(limited / free, 2),
                "quality": f"same kept set {kept.pop()[:16]}; MB at each tenth of the time: {points}",
            }
            print(json.dumps(row), flush=True)
            before = size, free


if __name__ == "__main__":
    main()
