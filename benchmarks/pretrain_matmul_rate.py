"""How much of the rate at which this machine multiplies the model's own matrices a training step reaches.

The rate: every linear layer's three products (output, input gradient, weight gradient) alone, at the shapes of a
micro-batch. A step: forward and backward of that micro-batch of real packed documents. Its FLOPs are the useful ones
(pretraining/meters.py), the same number for all contenders, so attention across documents earns nothing.

Ours, eager and compiled, against the same transformers model as Hugging Face runs it (loss from labels, causal
attention over the whole sequence), eager and compiled. Five interleaved rounds.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import torch

from pipeline_lib.config.model import ModelSettings
from pipeline_lib.models.initialise import build_model
from pipeline_lib.models.shapes import ModelShape, resolve_shape
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.pretraining.attention import use_attention
from pipeline_lib.pretraining.batches import Batch, PackedData
from pipeline_lib.pretraining.forward import TokenLoss
from pipeline_lib.pretraining.machine import choose_dtype, measure_matmul, timed
from pipeline_lib.pretraining.meters import TokenCounts, flop_count
from pretraining_peers.contest import CONTEXT, ROOT, prepare_run

ROUNDS = 5
SEQUENCES = 8
CPU = torch.device("cpu")
SPECIAL = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}


def matmul_seconds(shape: ModelShape, rows: int, dtype: torch.dtype) -> float:
    """Return the seconds that the products of a step take alone, each the best of five."""
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    block = [(shape.width, queries), (shape.width, keys), (shape.width, keys), (queries, shape.width)]
    block += [(shape.width, shape.ffn), (shape.width, shape.ffn), (shape.ffn, shape.width)]
    layers = [(sides, shape.layers) for sides in block] + [((shape.width, shape.vocabulary), 1)]
    total = 0.0
    for (inputs, outputs), count in layers:
        states, weight = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
        gradient = torch.ones(rows, outputs, dtype=dtype)
        for product in (
            lambda s=states, w=weight: s @ w.T,
            lambda g=gradient, w=weight: g @ w,
            lambda g=gradient, s=states: g.T @ s,
        ):
            total += count * min(timed(product, CPU) for _ in range(5))
    return total


def contenders(shape: ModelShape, settings: ModelSettings, batch: Batch, dtype: torch.dtype) -> dict:
    """Return {name: a forward and backward pass}."""

    def model(attention: str | None):
        made = build_model(shape, settings, SPECIAL, seed=0)
        use_attention(made, attention or "dense")
        return made

    def ours(compiled: bool):
        network = TokenLoss(model("documents"), "documents", "none", dtype)
        if compiled:
            network.model.base_model.compile(dynamic=False)
        return lambda: network(*vars(batch).values(), 2048).backward()

    def theirs(compiled: bool):
        made = model(None)
        if compiled:
            made.compile(dynamic=False)
        labels = torch.where(batch.counted, batch.targets, -100)

        def step():
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                loss = made(input_ids=batch.inputs, labels=labels, shift_labels=labels).loss
            loss.backward()

        return step

    return {
        "ours": ours(False),
        "ours, compiled": ours(True),
        "transformers": theirs(False),
        "transformers, compiled": theirs(True),
    }


def main() -> None:
    """Print one row per number format: float32, and bfloat16 where it is the faster one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / "benchmark_pretrain")
    options = parser.parse_args()
    prepare_run(options.run_dir)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cache = PackedCache(options.run_dir / "03_packed")
    batch = next(PackedData(cache, CONTEXT, SEQUENCES, 0, 10_000).training_batches(None))[0]
    settings = ModelSettings(shape={"layers": 8, "width": 384, "heads": 6})
    shape = resolve_shape(settings, cache.vocab_size, CONTEXT)
    counts = TokenCounts()
    counts.add(batch)
    parameters = shape.parameter_counts()["matmul"]
    useful = flop_count(parameters, shape.layers, shape.heads * shape.head_width).of(counts)
    fastest = choose_dtype(measure_matmul(CPU, batch.inputs.numel(), shape.width))
    for dtype in dict.fromkeys([torch.float32, getattr(torch, fastest)]):
        steps = contenders(shape, settings, batch, dtype)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        products = []
        for attempt in range(ROUNDS + 1):
            products.append(matmul_seconds(shape, batch.inputs.numel(), dtype))
            for name, step in steps.items():
                taken = timed(step, CPU)
                if attempt:
                    seconds[name].append(taken)
        rate = 6 * parameters * batch.inputs.numel() / statistics.median(products)
        share = {name: useful / statistics.median(taken) / rate for name, taken in seconds.items()}
        ours = max(value for name, value in share.items() if name.startswith("ours"))
        peer = max(value for name, value in share.items() if name.startswith("transformers"))
        row = {
            "claim": f"share of the matmul rate at the model's own shapes, {parameters / 1e6:.0f} M, {dtype}",
            "ours": round(ours, 3),
            "peer": round(peer, 3),
            "ratio": round(ours / peer, 2),
            "quality": {
                **{name: round(value, 3) for name, value in share.items()},
                "GFLOP/s of the products": round(rate / 1e9),
                "documents per sequence": round(int(batch.documents.amax(1).sum()) / SEQUENCES, 1),
            },
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
