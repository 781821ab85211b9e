"""Stage 10: only adapters train, the merged model equals the adapted one, and 4 bits work on the CPU."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from pipeline_lib.stage.ledger import Ledger
from pipeline_lib.stage.manifest import MANIFEST, Manifest


@pytest.fixture
def run(aligned_run, tmp_path):
    return shutil.copytree(aligned_run, tmp_path / "run")


def logits(model):
    import torch

    ids = torch.arange(4, 84).reshape(2, 40)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def torch_close(one, other):
    import torch

    return torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_the_merged_folder_is_a_plain_model_with_the_adapters_logits(run, helpers, quantization):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from pipeline_lib.config.lora import LoraSettings
    from pipeline_lib.post_training.adapters import load_frozen

    assert helpers.run_script("10_lora_finetune.py", run, "--quantization", quantization) == 0
    result = Manifest.read(run / "10_lora" / MANIFEST).result
    assert result["after"]["val_loss"] < 0.95 * result["before"]["val_loss"]
    merged = AutoModelForCausalLM.from_pretrained(run / "10_lora" / "merged")
    assert type(merged).__name__ == "LlamaForCausalLM" and not hasattr(merged.config, "quantization_config")
    frozen = load_frozen(run / "09_dpo" / "final", LoraSettings(quantization=quantization), "float32")
    adapted = PeftModel.from_pretrained(frozen, run / "10_lora" / "adapter")
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(run / "09_dpo" / "final")
    assert not torch.allclose(logits(merged), logits(base), atol=1e-2)
    unquantised = PeftModel.from_pretrained(base, run / "10_lora" / "adapter")
    assert torch.allclose(logits(merged), logits(unquantised), atol=1e-4) == (quantization == "none")


def test_the_lines_of_the_documentation_load_the_adapter(run, helpers, tmp_path, monkeypatch):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    from pipeline_lib.config.base import PROJECT_ROOT

    assert helpers.run_script("10_lora_finetune.py", run, "--max_steps", "2") == 0
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    page = (PROJECT_ROOT / "docs" / "post_training.md").read_text("utf-8")
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "PeftModel" in block]
    loaded = {}
    exec(lines, loaded)
    merged = AutoModelForCausalLM.from_pretrained("runs/demo/10_lora/merged")
    base = AutoModelForCausalLM.from_pretrained("runs/demo/09_dpo/final")
    assert torch_close(logits(loaded["model"]), logits(merged))
    assert not torch_close(logits(base), logits(merged)), "the adapter changes something"
    with pytest.raises(OSError, match=r"\.\./\.\./09_dpo/final"):
        AutoPeftModelForCausalLM.from_pretrained("runs/demo/10_lora/adapter")


def test_domain_and_general_share_are_mixed_and_accounted_for(run, helpers):
    assert helpers.run_script("10_lora_finetune.py", run, "--general_share", "0.4", "--max_steps", "1") == 0
    manifest = Manifest.read(run / "10_lora" / MANIFEST)
    domain, general = manifest.result["domain_examples"], manifest.result["general_examples"]
    assert general == round(domain * 0.4 / 0.6) and domain < 60  # some of the 60 are held out
    ledger = Ledger.from_json(manifest.ledger)
    assert ledger.total("domain", "entered")["documents"] == 60
    entries = {flow: entry for flow, _, entry in ledger.items()}
    missed = {flow: entry.dropped["not reached within the budget"][0] for flow, entry in entries.items()}
    kept = {flow: entry.kept[0] for flow, entry in entries.items()}
    assert sum(kept.values()) == manifest.fingerprint["settings"]["micro_batch"], "one step reads one batch"
    assert kept["general"] + missed["general"] == general and kept["domain"] + missed["domain"] == domain
    assert entries["domain"].dropped["set aside for validation"][0] == 60 - domain
    assert entries["general"].dropped["beyond general_share"][0] == entries["general"].entered[0] - general


def test_a_general_share_that_takes_all_there_is_says_so(run, helpers, capsys):
    assert helpers.run_script("10_lora_finetune.py", run, "--general_share", "0.9", "--max_steps", "1") == 0
    assert "the general share is smaller than asked" in capsys.readouterr().out
    manifest = Manifest.read(run / "10_lora" / MANIFEST)
    general = next(entry for flow, _, entry in Ledger.from_json(manifest.ledger).items() if flow == "general")
    assert "beyond general_share" not in general.dropped


def test_only_the_adapters_of_the_named_layers_are_trained(run, helpers):
    from safetensors import safe_open

    flags = ["--rank", "2", "--max_steps", "1", "--target_modules", "[q_proj, down_proj]"]
    assert helpers.run_script("10_lora_finetune.py", run, *flags) == 0
    with safe_open(run / "10_lora" / "adapter" / "adapter_model.safetensors", "pt") as tensors:
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    assert {name.split(".")[-3] for name in shapes} == {"q_proj", "down_proj"}
    assert sum(a * b for a, b in shapes.values()) == 2 * 2 * ((32 + 32) + (64 + 32))
    assert Manifest.read(run / "10_lora" / MANIFEST).result["trainable_parameters"] == 640


def test_a_layer_the_model_does_not_have_is_a_user_error(run, helpers, capsys):
    assert helpers.run_script("10_lora_finetune.py", run, "--target_modules", "[query]") == 2
    assert "no linear layer 'query'; it has down_proj, gate_proj" in capsys.readouterr().err


def test_the_head_takes_no_adapter_and_is_not_offered(run, helpers, capsys):
    assert helpers.run_script("10_lora_finetune.py", run, "--target_modules", "[q_proj, lm_head]") == 2
    error = capsys.readouterr().err
    assert "no linear layer 'lm_head'; it has down_proj, " in error and error.count("lm_head") == 1


@pytest.mark.long
def test_the_adapter_folder_is_the_same_in_every_process_and_run_folder(run, helpers, tmp_path):
    assert helpers.run_script("10_lora_finetune.py", run, "--max_steps", "1") == 0
    expected = Manifest.read(run / "10_lora" / MANIFEST).outputs_digest
    elsewhere = shutil.copytree(run, tmp_path / "elsewhere" / "run")
    shutil.rmtree(elsewhere / "10_lora")
    from pipeline_lib.config.base import PROJECT_ROOT

    script = PROJECT_ROOT / "scripts" / "10_lora_finetune.py"
    command = [sys.executable, str(script), "--config", str(elsewhere / "run.yaml"), "--run-dir", str(elsewhere)]
    subprocess.run([*command, "--max_steps", "1"], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert Manifest.read(elsewhere / "10_lora" / MANIFEST).outputs_digest == expected
    config = json.loads((run / "10_lora" / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] == "../../09_dpo/final"


def test_merging_an_adapter_that_was_changed_on_the_way_is_refused(run, helpers, monkeypatch, capsys):
    import torch

    from pipeline_lib.post_training import adapters

    original = adapters._logits
    calls = []

    def drift(model, ids):
        calls.append(model)
        return original(model, ids) + (0.01 if len(calls) == 2 else 0.0) * torch.ones(1)

    monkeypatch.setattr(adapters, "_logits", drift)
    assert helpers.run_script("10_lora_finetune.py", run, "--max_steps", "1") == 1
    assert "merged and adapted logits differ by 0.01" in capsys.readouterr().err
    assert not (run / "10_lora" / "merged").exists()
