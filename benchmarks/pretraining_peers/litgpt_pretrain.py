"""litgpt's own pretraining loop on the same tokens, laid end to end and cut into blocks as it expects them.

It compiles the model always; the time counts from its first training batch, compiling included, as its users pay it.
"""

import itertools
import json
import sys
import time
from pathlib import Path

import torch
from judge import bits_per_byte
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.model import GPT
from litgpt.pretrain import setup

from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.pretraining.cpu_attention import document_runs

CALIBRATION_STEPS = 12


class Blocks(DataModule):
    """Blocks of context + 1 tokens; remembers when each training batch was taken."""

    def __init__(self, cache: PackedCache, context: int, seed: int):
        super().__init__()
        self.moments: list[float] = []
        self.seed = seed
        pieces = []
        for batch in cache.batches(context, 512, seed=0):
            pieces.append(batch["input_ids"][batch["segment_ids"] != 0])
        stream = torch.cat(pieces)
        count = len(stream) // (context + 1)
        self.blocks = stream[: count * (context + 1)].view(count, context + 1)

    def connect(self, tokenizer=None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        self.batch = batch_size

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(self.seed)

        def collate(rows: list) -> torch.Tensor:
            self.moments.append(time.time())
            return torch.stack(rows)

        loader = torch.utils.data.DataLoader(
            self.blocks, self.batch, shuffle=True, generator=generator, drop_last=True, collate_fn=collate
        )
        # litgpt saves the state of its loader with the model, or pickles a loader that has none, tokens and all.
        loader.state_dict, loader.load_state_dict = dict, lambda state: None
        return loader

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.blocks[:8], 8)


def train(arguments: dict, config: Config, data: Blocks, steps: int) -> Path:
    """Train and return where the model lies."""
    out = Path(arguments["scratch"]) / f"litgpt-{time.time_ns()}"
    setup(
        "benchmark",
        model_config=config,
        out_dir=out,
        precision="bf16-mixed" if arguments["bf16"] else "32-true",
        data=data,
        train=TrainArgs(
            save_interval=None,
            log_interval=1_000,
            global_batch_size=arguments["batch"],
            micro_batch_size=arguments["batch"],
            max_tokens=steps * arguments["batch"] * arguments["context"],
            max_norm=1.0,
            min_lr=0.0,
            lr_warmup_steps=max(1, steps // 50),
            tie_embeddings=False,
        ),
        eval=EvalArgs(interval=10**9, max_iters=1),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": arguments["lr"], "weight_decay": 0.1, "betas": (0.9, 0.95)},
        },
        devices=1,
        logger_name="csv",
        seed=arguments["seed"],
    )
    return out / "final" / "lit_model.pth"


def fitting_steps(arguments: dict, config: Config, data: Blocks) -> int:
    """Return how many steps fit into the given seconds, compiling included."""
    train(arguments, config, data, CALIBRATION_STEPS)
    compiling = data.moments[2] - data.moments[0]
    step = (data.moments[-1] - data.moments[4]) / (len(data.moments) - 5)
    torch._dynamo.reset()
    data.moments.clear()
    return max(CALIBRATION_STEPS, round((arguments["seconds"] - compiling) / step))


def judged(weights: Path, config: Config, cache: PackedCache, context: int) -> float:
    """Return the better of two figures: whole rows as it was trained, and each document alone."""
    model = GPT(config)
    model.load_state_dict(torch.load(weights, weights_only=True)["model"])
    model.eval()

    def alone(batch) -> torch.Tensor:
        logits = torch.zeros(*batch.inputs.shape, config.padded_vocab_size)
        for row, start, end in document_runs(batch.documents):
            logits[row, start:end] = model(batch.inputs[row : row + 1, start:end])[0]
        return logits

    return min(bits_per_byte(cache, context, way) for way in (lambda batch: model(batch.inputs), alone))


def main() -> None:
    """Train for the given steps, or as many as fit into the given seconds, and print the result."""
    arguments = json.loads(sys.argv[1])
    torch.set_num_threads(arguments["threads"])
    context = arguments["context"]
    cache = PackedCache(arguments["packed"])
    shape = json.loads((Path(arguments["model"]) / "config.json").read_text())
    config = Config(
        name="benchmark",
        block_size=context,
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        n_layer=shape["num_hidden_layers"],
        n_head=shape["num_attention_heads"],
        n_query_groups=shape["num_key_value_heads"],
        n_embd=shape["hidden_size"],
        head_size=shape["head_dim"],
        intermediate_size=shape["intermediate_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=1e-6,
        mlp_class_name="LLaMAMLP",
    )
    data = Blocks(cache, context, arguments["seed"])
    steps = arguments["steps"] or fitting_steps(arguments, config, data)
    weights = train(arguments, config, data, steps)
    spans = list(itertools.pairwise(data.moments))  # one batch more is taken than trained on
    value = judged(weights, config, cache, context)
    tokens = steps * arguments["batch"] * context
    print(json.dumps({"steps": spans, "values": [(steps, value)], "tokens": tokens}))


if __name__ == "__main__":
    main()
