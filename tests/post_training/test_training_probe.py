"""The passes behind --plan are those of training: its device, number format, packing and activation checkpointing."""

import re

import pytest
import torch

from pipeline_lib.config.run import RunConfig
from pipeline_lib.config.sft import SftSettings
from pipeline_lib.post_training.training_probe import TrainingPasses, estimate_training
from pipeline_lib.post_training.training_setup import load_model
from pipeline_lib.stage import Stage
from pipeline_lib.stage.catalog import BY_NAME
from pipeline_lib.stage.ledger import Ledger

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pass_multiplies_in_the_format_and_recomputes_as_training_does(tiny_run, dtype, checkpointing):
    model = load_model(tiny_run / "05_pretrain" / "final")
    products = []
    inside = model.model.layers[-1].mlp.gate_proj
    inside.register_forward_hook(lambda module, inputs, output: products.append((output.dtype, output.device.type)))
    passes = TrainingPasses(model, SftSettings(activation_checkpointing=checkpointing), dtype)
    passes.run(2, 8)
    assert products == [(getattr(torch, dtype), DEVICE)] * (2 if checkpointing else 1)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert all(weight.grad is None for weight in model.parameters())
    assert passes.seconds(2, 8) > 0 and passes.peak_bytes(2, 8) > 1_000_000


@pytest.mark.parametrize("script", ["07_sft.py", "09_dpo.py", "10_lora_finetune.py"])
def test_plan_says_where_and_in_which_format_it_was_measured(aligned_run, helpers, capsys, script):
    assert helpers.run_script(script, aligned_run, "--plan", "--dtype", "bfloat16") == 0
    out = capsys.readouterr().out
    assert f" s each on {DEVICE} in bfloat16" in out
    assert ("; 4,352 of 37,792 parameters are trained" in out) == (script == "10_lora_finetune.py")


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_the_plan_of_stage_10_is_that_of_its_adapters(aligned_run, quantization):
    settings = {"rank": 4, "micro_batch": 2, "max_length": 96, "activation_checkpointing": True}
    config = RunConfig(lora={**settings, "quantization": quantization, "keep_checkpoints": 2})
    stage = Stage(BY_NAME["10_lora"], config, aligned_run, 1, "")
    folder = stage.input("09_dpo").folder("final")
    adapted = estimate_training(stage, folder, 8, 40, 1, adapters=True)
    whole = estimate_training(stage, folder, 8, 40, 1)
    model, adapters = 33_440, 2 * 4 * (4 * (32 + 32) + 3 * (32 + 64))  # parameters
    assert adapted.disk_bytes == 4 * (model + adapters) + 3 * 3 * 4 * adapters
    assert whole.disk_bytes == 4 * model * (1 + 3 * 3)
    assert adapted.memory_bytes < whole.memory_bytes


def test_a_plan_whose_micro_batch_does_not_fit_is_a_failure_with_what_to_do(run_copy, helpers, capsys):
    """The ids alone would take 200 terabytes."""
    assert helpers.run_script("07_sft.py", run_copy, "--plan", "--micro_batch", str(10**12)) == 1
    out = capsys.readouterr().out
    assert "the probe failed: out of memory with micro-batches of 1,000,000,000,000 x 96 tokens" in out
    assert "lower sft.micro_batch or max_length" in out


def test_the_plan_of_packed_training_counts_packed_sequences_and_times_whole_ones(aligned_run, helpers, capsys):
    """The oracle packs what stage 07 trains on; the plan leaves out the padding, which is at most a tenth here."""
    from pipeline_lib.post_training.chat_tokens import load_chat_tokenizer
    from pipeline_lib.post_training.examples import conversation_rows, read_examples
    from pipeline_lib.post_training.supervised import pack
    from pipeline_lib.post_training.training_setup import horizon

    tokenizer = load_chat_tokenizer(aligned_run / "05_pretrain" / "final")
    paths = [aligned_run / name / "train.parquet" for name in ("06_sft_data", "06_reasoning_data")]
    examples = read_examples(paths, conversation_rows, tokenizer, 96, Ledger(), "sft")
    settings = SftSettings(max_length=96, micro_batch=2, accumulation=1, epochs=3, batching="pack")
    real = horizon(len(pack(examples, 96)[0]), settings).steps
    capsys.readouterr()
    flags = ["--batching", "pack", "--micro_batch", "2", "--accumulation", "1", "--epochs", "3"]
    assert helpers.run_script("07_sft.py", aligned_run, "--plan", *flags) == 0
    told = re.search(r"([\d,]+) steps; micro-batches of 2 x 96 tokens took", capsys.readouterr().out)
    assert told is not None
    assert 0.9 * real <= int(told[1].replace(",", "")) <= real < horizon(len(examples), settings).steps / 2


def test_a_packed_pass_is_one_row_whose_positions_restart_as_in_the_batches_of_training(tiny_run, monkeypatch):
    """The oracle is TRL's collator on the same conversations."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model = load_model(tiny_run / "05_pretrain" / "final")
    seen = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: seen.append(inputs) or forward(**inputs))
    TrainingPasses(model, SftSettings(batching="pack"), "float32", conversation=3).run(2, 8)
    row = {"input_ids": [5] * 8, "labels": [5] * 8, "seq_lengths": [3, 3, 2]}
    batch = DataCollatorForLanguageModeling(pad_token_id=1, padding_free=True)([row, row])
    assert seen[0]["input_ids"].shape == batch["input_ids"].shape == (1, 16)
    assert torch.equal(seen[0]["position_ids"].cpu(), batch["position_ids"])
