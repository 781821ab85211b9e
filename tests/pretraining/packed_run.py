"""A small run with stages 03 and 04 finished, made by the real scripts from generated text."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fork_launcher import run_script
from pipeline_lib.stage import Ledger
from pipeline_lib.stage.manifest import Manifest
from pipeline_lib.stage.stage import describe_files

CONFIG = """
threads: 1
pack: {vocab_size: 400, contexts: [64], chunk_tokens: 8000, val_fraction: 0.1}
model: {shape: {layers: 2, width: 32, heads: 2}}
pretrain:
  batch_tokens: 512
  tokens: 12288
  micro_batch: 4
  validation_steps: 8
  validation_tokens: 2000
  checkpoint_steps: 3
  dtype: float32
  compile: off
"""


def write_text(run: Path, documents: int, seed: int = 0, sources: tuple[str, ...] = ("made",), shard: int = 0) -> None:
    """Finish stage 02 with documents whose words follow each other by a fixed random table, so there is a pattern.

    The documents are of the sources in turn. A `shard` after the first is added to what is there.
    """
    chance = random.Random(seed)
    words = ["".join(chance.choice("bdfklmnprst") + chance.choice("aeiou") for _ in range(3)) for _ in range(60)]
    following = {word: chance.sample(words, 3) for word in words}
    texts = []
    for _ in range(documents):
        word, text = chance.choice(words), []
        for _ in range(chance.randrange(5, 120)):
            text.append(word)
            word = chance.choice(following[word])
        texts.append(" ".join(text) + ".")
    folder = run / "02_clean"
    folder.mkdir(parents=True, exist_ok=True)
    name, prefix = f"part-{shard:05d}.parquet", "d" if shard == 0 else f"s{shard}-"
    of_text = [sources[n % len(sources)] for n in range(documents)]
    pq.write_table(
        pa.table({"id": [f"{prefix}{n}" for n in range(documents)], "text": texts, "source": of_text}), folder / name
    )
    before = Manifest.read(folder / "manifest.json") if shard else None
    ledger = Ledger.from_json(before.ledger) if before else Ledger()
    for text, source in zip(texts, of_text, strict=True):
        ledger.enter("text", source, documents=1, bytes=len(text))
        ledger.keep("text", source, documents=1, bytes=len(text))
    fingerprint = {"inputs": {}, "settings": {}, "seed": 42, "data": {}, "code": {}}
    files = {**(before.files if before else {}), **describe_files(folder / name, name)}
    Manifest("02_clean", fingerprint, files, ledger.to_json(), {}, [], 0, {}).write(folder / "manifest.json")


def make_packed_run(folder: Path, config: str = CONFIG) -> tuple[Path, Path]:
    """Return (configuration file, run folder) with stages 02, 03 and 04 finished."""
    path, run = folder / "tiny.yaml", folder / "run"
    path.write_text(config)
    write_text(run, documents=300)
    for script in ("03_tokenize_and_pack.py", "04_init_model.py"):
        done = run_script(script, path, run)
        assert done.returncode == 0, done.stdout + done.stderr
    return path, run
