"""The passes behind --plan are those of training: its device, number format and activation checkpointing."""

import pytest
import torch

from pipeline_lib.config.sft import SftSettings
from pipeline_lib.post_training.training_probe import TrainingPasses
from pipeline_lib.post_training.training_setup import load_model

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
    assert f" s each on {DEVICE} in bfloat16" in capsys.readouterr().out


def test_a_plan_whose_micro_batch_does_not_fit_is_a_failure_with_what_to_do(run_copy, helpers, capsys):
    """The ids alone would take 200 terabytes."""
    assert helpers.run_script("07_sft.py", run_copy, "--plan", "--micro_batch", str(10**12)) == 1
    out = capsys.readouterr().out
    assert "the probe failed: out of memory with micro-batches of 1,000,000,000,000 x 96 tokens" in out
    assert "lower sft.micro_batch or max_length" in out
