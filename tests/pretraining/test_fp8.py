"""FP8 layers: rounded as FP8 rounds, chosen by measured gain, saved like any others. Emulated, so a CPU suffices."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import SETTINGS, SPECIAL, nothing, open_data

from fork_launcher import SCRIPTS
from pipeline_lib.config.model import ModelSettings
from pipeline_lib.models.initialise import build_model
from pipeline_lib.models.shapes import resolve_shape
from pipeline_lib.pretraining import fp8
from pipeline_lib.pretraining.choices import Choices
from pipeline_lib.pretraining.distribution import alone
from pipeline_lib.pretraining.fp8 import choose_fp8, choose_layers, eligible_layers, layer_gain, use_fp8
from pipeline_lib.pretraining.horizon import resolve_horizon
from pipeline_lib.pretraining.loop import optimizer_step
from pipeline_lib.pretraining.setup import equip
from pipeline_lib.stage import StageFailure
from pipeline_lib.stage.manifest import Manifest

CPU = torch.device("cpu")


@pytest.fixture
def torchao(monkeypatch) -> Path:
    """The folder beside the environment's packages into which `make install-dev` puts torchao."""
    folder = Path(sys.prefix) / "torchao"
    if not folder.is_dir():
        pytest.skip(f"torchao is not in {folder}; make install-dev puts it there")
    monkeypatch.syspath_prepend(folder)
    importlib.import_module("torchao")
    return folder


def make_model(width: int = 32, ffn: int = 64):
    settings = ModelSettings(shape={"layers": 2, "width": width, "heads": 2, "ffn": ffn})
    return build_model(resolve_shape(settings, 400, 64), settings, SPECIAL, seed=3)


def test_layers_with_odd_sides_and_the_head_stay_out():
    names = eligible_layers(make_model(ffn=72))
    assert len(names) == 2 * 4 and all("self_attn" in name for name in names)
    assert len(eligible_layers(make_model())) == 2 * 7
    assert not any("lm_head" in name for name in eligible_layers(make_model()))


def test_only_shapes_that_gain_are_converted_and_the_note_has_the_figures():
    model = make_model()
    gains = {(32, 32): 0.9, (32, 64): 1.3, (64, 32): 1.01}
    choice = choose_layers(model, "rowwise", gains)
    assert {name.rsplit(".", 1)[1] for name in choice.layers} == {"gate_proj", "up_proj"}
    assert "32 x 64 1.30" in choice.notes[0] and "4 layers" in choice.notes[0]


def test_a_wish_that_cannot_be_honoured_is_refused_and_auto_is_silent_on_a_cpu():
    model = make_model()
    assert choose_fp8("auto", "tensorwise", model, 64, [64], CPU, False).layers == []
    assert choose_fp8("off", "tensorwise", model, 64, [64], CPU, False).notes == []
    with pytest.raises(StageFailure, match="pretrain.fp8 is on"):
        choose_fp8("on", "tensorwise", model, 64, [64], CPU, False)


@pytest.mark.parametrize(
    ("contexts", "torchao", "words"),
    [([512, 1000], True, "a multiple of 16 tokens, and sequences have 1,000"), ([512], False, "and torchao")],
)
def test_a_gpu_on_which_fp8_cannot_run_goes_on_without_or_refuses(monkeypatch, contexts, torchao, words):
    monkeypatch.setattr(fp8, "check_fp8_available", lambda: True)  # transformer_engine alone makes that true
    monkeypatch.setattr(fp8, "_has_torchao", lambda: torchao)
    gpu = torch.device("cuda", 0)
    choice = choose_fp8("auto", "tensorwise", make_model(), 64, contexts, gpu, False)
    assert choice.layers == [] and words in choice.notes[0]
    with pytest.raises(StageFailure, match=words):
        choose_fp8("on", "tensorwise", make_model(), 64, contexts, gpu, False)


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_a_product_is_rounded_as_fp8_rounds(torchao, recipe):
    plain, eight = make_model(), make_model()
    name = "model.layers.0.mlp.gate_proj"
    use_fp8(eight, recipe, [name], emulate=True)
    layer, weight = eight.get_submodule(name), plain.get_submodule(name).weight
    states = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        dim = None if recipe == "tensorwise" else 1
        largest = tensor.abs().amax(dim, keepdim=True) if dim else tensor.abs().amax()
        scale = 448.0 / largest
        if recipe == "rowwise":
            scale = torch.exp2(torch.floor(torch.log2(scale)))  # torchao takes powers of two here
        return (tensor * scale).to(torch.float8_e4m3fn).float() / scale

    expected = rounded(states) @ rounded(weight.detach()).T
    exact = states @ weight.detach().T
    with torch.no_grad():
        found = layer(states)
    assert float((found - expected).norm()) < 0.01 * float(exact.norm())
    assert 0.005 * float(exact.norm()) < float((found - exact).norm()) < 0.06 * float(exact.norm())


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_training_in_fp8_learns_and_its_weights_load_anywhere(torchao, packed_run, recipe):
    data = open_data(packed_run[1] / "03_packed")
    horizon = resolve_horizon(SETTINGS, 64, 32, 30_000)
    losses = {}
    for wanted in ("off", "emulate"):
        model = make_model()
        choice = choose_fp8(wanted, recipe, model, 512, [64], CPU, False)
        run = equip(
            model, Choices(fp8_recipe=recipe, fp8_layers=choice.layers, fp8_emulated=True), SETTINGS, horizon, alone()
        )
        stream = data.training_batches(None)
        losses[wanted] = [optimizer_step(run, next(stream)[0], SETTINGS, nothing)[0] for _ in range(6)]
    assert losses["emulate"][-1] < losses["emulate"][0] - 0.3
    assert losses["emulate"] != losses["off"]
    assert losses["emulate"] == pytest.approx(losses["off"], rel=0.02)
    make_model().load_state_dict(model.state_dict(), strict=True)


def test_the_probe_finds_that_emulation_does_not_pay(torchao):
    assert 0 < layer_gain(32, 64, 128, "tensorwise", CPU, False) < 1


@pytest.mark.long
def test_the_stage_trains_in_emulated_fp8_and_a_stopped_run_goes_on_with_it(torchao, packed_run, tmp_path):
    config, inputs = packed_run
    run = tmp_path / "run"
    shutil.copytree(inputs, run)
    command = [sys.executable, str(SCRIPTS / "05_pretrain.py"), "--config", str(config), "--run-dir", str(run)]
    command += ["--fp8", "emulate", "--max_steps", "4", "--keep_best", "false"]
    environment = {**os.environ, "PYTHONPATH": str(torchao)}
    for flags, code in ((["--time_limit_seconds", "0.001"], 143), ([], 0)):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment, timeout=180)
        assert done.returncode == code, done.stdout + done.stderr
    assert "continuing from step-00000001" in done.stdout
    manifest = Manifest.read(run / "05_pretrain" / "manifest.json")
    assert manifest.result["fp8_layers"] == 14 and "FP8 (tensorwise) emulated in 14 layers" in str(manifest.notes)
    # Nothing of FP8 is in the model that comes out.
    before, after = (load_file(run / name / "model.safetensors") for name in ("04_init", "05_pretrain/final"))
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in after.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in before.items()
    }
