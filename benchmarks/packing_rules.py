"""Packing documents into sequences: speed of the plan, and what each published rule loses, pads and cuts.

The documents are real: Python sources cut at their functions, or the texts that PACKING_TEXT names, encoded with a
vocabulary of 32,768 trained on them. Rules are compared on the same documents:
  best fit (ours)      every token kept; a document that fits is cut only to keep the padding within 0.1 %
  concatenate and cut  nanoGPT, datatrove: all tokens in one stream, cut every 2,048
  nanochat             rows filled by best fit from a buffer of 1,000 documents, the shortest one cropped for the rest
  TRL bfd              windows of 1,000 documents, longer documents truncated (bfd) or split (bfd_split)
  OLMo-core            best-fit decreasing with a segment tree over the free room
OLMo-core pins other versions than ours: --olmo (or OLMO_PYTHON) names a Python that has it (pip install ai2-olmo-core).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from packing_speed import CONTEXT, CORPUS_BYTES, batch_of, medians, pack_trl, real_texts, report
from pipeline_lib.packing.best_fit import pack
from pipeline_lib.packing.chunk_format import ChunkContent, ChunkFile, encode_chunk
from pipeline_lib.packing.packing_plan import Mixture, write_plan
from pipeline_lib.packing.text_encoder import TextEncoder
from pipeline_lib.packing.trained_tokenizer import train_tokenizer, write_tokenizer

FUNCTION = re.compile(r"\n(?=def |class |    def )")
BUFFER = 1000
OLMO_PACKER = Path(__file__).resolve().parent / "packing_peers" / "olmo_packer.py"
VOCAB_SIZE = 32_768


def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return all documents' tokens, uint32, and their boundaries, int64 [documents + 1]."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), train_tokenizer([batch_of(texts)], VOCAB_SIZE, 2))
        return TextEncoder(Path(folder)).encode(pa.array(texts, pa.large_string()))


def best_fit(lengths: np.ndarray) -> dict[str, float]:
    packing = pack(lengths, CONTEXT)
    cut = np.bincount(packing.document, minlength=len(lengths)) > 1
    return shares(lengths, packing.sequences, 0, int(cut.sum()), needless(lengths, cut))


def concatenate_and_cut(lengths: np.ndarray) -> dict[str, float]:
    ends = np.cumsum(lengths)
    crossed = (ends - 1) // CONTEXT > (ends - lengths) // CONTEXT
    sequences = int(ends[-1]) // CONTEXT
    lost = int(ends[-1]) - sequences * CONTEXT
    return shares(lengths, sequences, lost, int(crossed.sum()), needless(lengths, crossed))


def nanochat(lengths: np.ndarray) -> dict[str, float]:
    """Each row takes the longest buffered document that fits; when none does, the shortest is cropped to fill it."""
    waiting, buffer = iter(lengths.tolist()), []
    rows, lost, cut = 0, 0, []
    while True:
        room = CONTEXT + 1
        while room:
            while len(buffer) < BUFFER and (following := next(waiting, None)) is not None:
                buffer.append(following)
            if not buffer:
                return shares(lengths, rows, lost, len(cut), sum(length <= CONTEXT for length in cut), CONTEXT + 1)
            fitting = [length for length in buffer if length <= room]
            chosen = max(fitting) if fitting else min(buffer)
            buffer.remove(chosen)
            if not fitting:
                cut.append(chosen)
                lost += chosen - room
            room -= min(room, chosen)
        rows += 1


def needless(lengths: np.ndarray, cut: np.ndarray) -> int:
    """Count the documents that were cut although they fit into a sequence."""
    return int((cut & (lengths <= CONTEXT)).sum())


def shares(
    lengths: np.ndarray, sequences: int, lost: int, cut: int, needlessly: int, capacity: int = CONTEXT
) -> dict[str, float]:
    """Return percentages of tokens lost, of positions padded, and of documents cut, needlessly cut."""
    tokens, documents = int(lengths.sum()), len(lengths)
    padding = max(0, sequences * capacity - (tokens - lost))
    return {
        "lost": 100 * lost / tokens,
        "padding": 100 * padding / max(1, sequences * capacity),
        "cut": 100 * cut / documents,
        "needless": 100 * needlessly / documents,
    }


def spell(result: dict[str, float]) -> str:
    return (
        f"{result['lost']:.2f} % of tokens lost, {result['padding']:.3f} % padding, {result['cut']:.1f} % of documents"
        f" cut, {result['needless']:.1f} % needlessly"
    )


def trl_shares(lengths: np.ndarray, packed: datasets.Dataset) -> dict[str, float]:
    kept = sum(len(row) for row in packed["input_ids"])
    long = int((lengths > CONTEXT).sum())
    return shares(lengths, len(packed), int(lengths.sum()) - kept, long, 0)


class TemporaryPlan:
    """Our whole step: lengths from the chunk file, packing, the check that nothing is lost, the plan as a file."""

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray):
        self._folder = tempfile.TemporaryDirectory()
        self._chunk = Path(self._folder.name) / "chunk.lz4"
        documents = len(offsets) - 1
        content = ChunkContent(tokens, offsets, [""] * documents, np.zeros(documents, np.uint16), ["text"])
        self._chunk.write_bytes(encode_chunk(content, {"vocab_size": VOCAB_SIZE, "split": "train"}))

    def write(self) -> None:
        write_plan([ChunkFile(self._chunk)], CONTEXT, self._chunk.with_suffix(".parquet"), Mixture())


class OlmoCore:
    """OLMo-core's packer in a process of its own, on pieces no longer than a sequence, which is all it takes."""

    def __init__(self, python: str, lengths: np.ndarray):
        rest = lengths[lengths % CONTEXT > 0] % CONTEXT
        pieces = np.concatenate([[CONTEXT] * int((lengths // CONTEXT).sum()), rest])
        ends = np.cumsum(pieces)
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            np.save(file, np.stack([ends - pieces, ends], axis=1).astype(np.uint64))
            file.flush()
            command = [python, str(OLMO_PACKER), file.name, str(CONTEXT)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if self._answer() != "ready":
                raise SystemExit(f"{python} does not run OLMo-core's packer; its own message is above")

    def _answer(self) -> str:
        return self._process.stdout.readline().strip()

    def pack(self) -> int:
        """Pack everything; return the number of sequences. What is measured has a message through a pipe in it."""
        self._process.stdin.write("pack\n")
        self._process.stdin.flush()
        return int(self._answer())

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    """Print one JSON row per claim."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--olmo", default=os.environ.get("OLMO_PYTHON"), help="a Python that has ai2-olmo-core")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    texts = real_texts(4 * CORPUS_BYTES)
    tokens, offsets = encode([piece for text in texts for piece in FUNCTION.split(text) if piece])
    lengths = np.diff(offsets)
    ids = pa.LargeListArray.from_arrays(offsets, tokens.astype(np.int32))
    encoded = datasets.Dataset(pa.table({"input_ids": ids}))
    plan = TemporaryPlan(tokens, offsets)
    contenders = {
        "lengths": lambda: pack(lengths, CONTEXT).sequences,
        "plan": plan.write,
        "bfd": lambda: pack_trl(encoded, "bfd", BUFFER),
        "bfd_split": lambda: pack_trl(encoded, "bfd_split", len(lengths)),
    }
    olmo = OlmoCore(options.olmo, lengths) if options.olmo else None
    if olmo:
        contenders["olmo"] = olmo.pack
    seconds, results = medians(contenders)
    quality = {
        "bfd": "our plan checked and written; theirs " + spell(trl_shares(lengths, results["bfd"])),
        "bfd_split": "our plan checked and written; theirs " + spell(trl_shares(lengths, results["bfd_split"])),
        "olmo": f"lengths only on both sides; {results.get('olmo', 0):,} sequences, ours {results['lengths']:,}",
    }
    labels = {
        "bfd": "TRL bfd as documented (1,000 documents at a time)",
        "bfd_split": "TRL bfd_split, all documents at once",
        "olmo": "OLMo-core's best-fit packer",
    }
    for name in [name for name in labels if name in contenders]:
        ours = seconds["lengths" if name == "olmo" else "plan"]
        report(f"packing {len(lengths):,} documents into {CONTEXT} tokens, against {labels[name]}", ours, seconds[name],
                len(lengths) / 1e3, "k documents/s", quality[name])  # fmt: skip
    if olmo:
        olmo.close()
    else:
        print("no --olmo, so OLMo-core is not compared", file=sys.stderr)
    ours = spell(best_fit(lengths))
    for name, rule in (("nanochat", nanochat), ("concatenate and cut", concatenate_and_cut)):
        claim = f"what packing {len(lengths):,} documents into {CONTEXT} loses, pads and cuts, against {name}"
        print(json.dumps({"claim": claim, "ours": ours, "peer": spell(rule(lengths)), "ratio": ""}), flush=True)


if __name__ == "__main__":
    main()
