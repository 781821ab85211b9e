"""Hugging Face's Trainer on the same rows: pretraining as its language-modelling example does it."""

import json
import sys
import time

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
    """Notes when steps end, to know how many fit into a time."""

    def __init__(self):
        self.moments = []

    def on_step_end(self, args, state, control, **_):
        self.moments.append(time.perf_counter())

    def step_seconds(self) -> float:
        """Return the mean time of a step, the first third left out: it warms up, or compiles."""
        moments = self.moments[len(self.moments) // 3 :]
        return (moments[-1] - moments[0]) / (len(moments) - 1)


class Judge(TrainerCallback):
    """Validates a few times on the way; `spent` is the time that took, in seconds."""

    def __init__(self, model, cache, context, every: int):
        self.model, self.cache, self.context, self.every = model, cache, context, every
        self.spent, self.curve = 0.0, []

    def on_train_begin(self, args, state, control, **_):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            began = time.perf_counter()
            value = hf_bits_per_byte(self.model, self.cache, self.context)
            self.curve.append((round(began - self.start - self.spent, 1), round(value, 4)))
            self.spent += time.perf_counter() - began


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
    """Train for the given seconds and print the result."""
    arguments = json.loads(sys.argv[1])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments["threads"])
    cache = PackedCache(arguments["packed"])
    rows = Rows(cache, arguments["context"])

    def fresh():
        return AutoModelForCausalLM.from_pretrained(arguments["model"], dtype=torch.float32)

    clock = Clock()
    train(arguments, fresh(), rows, CALIBRATION_STEPS, [clock])
    steps = max(2, round(arguments["seconds"] / clock.step_seconds()))
    model = fresh()
    judge = Judge(model, cache, arguments["context"], max(1, steps // arguments["validations"]))
    began = time.perf_counter()
    train(arguments, model, rows, steps, [judge])
    seconds = time.perf_counter() - began - judge.spent
    tokens = steps * arguments["batch"] * arguments["context"]
    result = {"seconds": seconds, "bits_per_byte": judge.curve[-1][1], "tokens": tokens, "curve": judge.curve}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
