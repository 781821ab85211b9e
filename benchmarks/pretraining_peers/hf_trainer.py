"""Hugging Face's Trainer on the same rows: pretraining as its language-modelling example does it."""

import json
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from judge import hf_bits_per_byte
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from pipeline_lib.packing.reader import PackedCache

CALIBRATION_STEPS = 15


class Rows(torch.utils.data.Dataset):
    """All packed rows in memory, labels where a token of the same document follows."""

    def __init__(self, cache: PackedCache, context: int):
        batches = list(cache.batches(context, 512, seed=0))
        self.tokens = torch.cat([batch["input_ids"] for batch in batches])
        self.labels = torch.cat([batch["labels"] for batch in batches])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


class Clock(TrainerCallback):
    """Notes when each step, reading its batch included, began and ended; `judge`, at the end of every `every`th one,
    is not part of it, and its values come with the number of steps before them."""

    def __init__(self, every: int = 0, judge: Callable[[], float] | None = None):
        self.every, self.judge = every, judge
        self.spans: list[tuple[float, float]] = []
        self.values: list[tuple[int, float]] = []

    def on_train_begin(self, args, state, control, **_):
        self.since = time.time()

    def on_step_end(self, args, state, control, **_):
        self.spans.append((self.since, time.time()))
        if self.judge and (state.global_step % self.every == 0 or state.global_step == state.max_steps):
            self.values.append((state.global_step, self.judge()))
        self.since = time.time()

    def step_seconds(self) -> float:
        """Return the mean time of a step, the first third left out: it warms up, or compiles."""
        later = self.spans[len(self.spans) // 3 :]
        return (later[-1][1] - later[0][0]) / len(later)


def train(arguments: dict, model, rows: Rows, steps: int, callbacks: list) -> None:
    """Train `model` for `steps` steps."""
    settings = TrainingArguments(
        output_dir=arguments["scratch"],
        per_device_train_batch_size=arguments["batch"],
        learning_rate=arguments["lr"],
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 50),
        weight_decay=0.1,
        adam_beta2=0.95,
        max_steps=steps,
        seed=arguments["seed"],
        torch_compile=arguments["compile"],
        bf16=arguments.get("bf16", False),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
    )
    Trainer(model=model, args=settings, train_dataset=rows, callbacks=callbacks).train()


def main() -> None:
    """Train for the given steps, or as many as fit into the given seconds, and print the result."""
    arguments = json.loads(sys.argv[1])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments["threads"])
    cache = PackedCache(arguments["packed"])
    rows = Rows(cache, arguments["context"])

    def fresh():
        return AutoModelForCausalLM.from_pretrained(arguments["model"], dtype=torch.float32)

    steps = arguments["steps"]
    if not steps:
        clock = Clock()
        train(arguments, fresh(), rows, CALIBRATION_STEPS, [clock])
        steps = max(2, round(arguments["seconds"] / clock.step_seconds()))
    model = fresh()
    judge = partial(hf_bits_per_byte, model, cache, arguments["context"])
    clock = Clock(max(1, steps // arguments["validations"]), judge)
    train(arguments, model, rows, steps, [clock])
    tokens = steps * arguments["batch"] * arguments["context"]
    print(json.dumps({"steps": clock.spans, "values": clock.values, "tokens": tokens}))


if __name__ == "__main__":
    main()
