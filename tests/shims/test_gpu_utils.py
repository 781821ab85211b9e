"""The older public names: all there, from one home each, and doing what their names say."""

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gpu_utils

NAMES = {
    "GPUInfo", "detect_gpu_type", "check_fp8_available", "print_gpu_info", "setup_torch_backends",
    "get_fp8_accelerator",
    "OOMHandler", "oom_recovery_context", "with_oom_retry", "get_safe_batch_size", "OOMRecoveryCallback",
    "check_tokenizer_exists", "check_checkpoint_exists", "validate_training_prerequisites", "unwrap_compiled_model",
    "load_compiled_checkpoint", "setup_kernel_optimizations", "get_optimizer_name", "CurriculumCallback",
}  # fmt: skip


def test_exactly_the_public_names_are_exported():
    assert set(gpu_utils.__all__) == set(dir(gpu_utils)) == NAMES
    for name in NAMES:
        assert getattr(gpu_utils, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gpu_utils.nothing


SIGNATURES = {
    "OOMHandler": "initial_batch_size=8, min_batch_size=1, reduction_factor=0.5, max_retries=3, cooldown_seconds=2.0",
    "oom_recovery_context": "initial_batch_size=8, min_batch_size=1, reduction_factor=0.5",
    "with_oom_retry": "max_retries=3, reduction_factor=0.5, min_batch_size=1",
    "get_safe_batch_size": "model_params_billions=7.0, gpu_memory_gb=None, sequence_length=2048, dtype_bytes=2,"
    " safety_factor=0.8",
    "check_fp8_available": "",
    "get_fp8_accelerator": "gradient_accumulation_steps=4",
    "CurriculumCallback": "curriculum_config, output_dir",
    "OOMRecoveryCallback": "max_accumulation=64",
    "get_optimizer_name": "name",
    "setup_kernel_optimizations": "use_liger_kernel=False, use_cce=False, model_type='llama'",
    "load_compiled_checkpoint": "path, use_flash_attention=True, move_to_device=False",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_an_older_call_still_means_the_same(name):
    """By position and by keyword: the older parameters come first, in the older order, with the older defaults."""
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in inspect.signature(getattr(gpu_utils, name)).parameters.values()
        if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert ", ".join(map(str, parameters)) == SIGNATURES[name]


def test_importing_the_shim_loads_no_heavy_library(scripts: Path):
    code = "import sys, gpu_utils; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=scripts, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_detection_tells_seven_facts_and_a_machine_without_gpu_is_a_cpu(monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    info = gpu_utils.detect_gpu_type()
    assert set(info) == set(gpu_utils.GPUInfo.__annotations__)
    assert (info["gpu_name"], info["compute_capability"], info["batch_size"]) == ("CPU", "N/A", 4)
    assert not (info["is_h100"] or info["is_a100"] or info["fp8_available"]) and info["compile_mode"] == "default"
    gpu_utils.print_gpu_info(info)
    assert "CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "capability", "h100", "a100", "fp8_hardware"),
    [
        ("NVIDIA A100-SXM4-80GB", (8, 0), False, True, False),
        ("NVIDIA GeForce RTX 4090", (8, 9), False, False, True),
        ("NVIDIA H200", (9, 0), True, False, True),
        ("NVIDIA B200", (10, 0), True, False, True),
        ("Tesla T4", (7, 5), False, False, False),
    ],
)
def test_generations_are_told_apart(monkeypatch, name, capability, h100, a100, fp8_hardware):
    import importlib.util

    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: object())
    info = gpu_utils.detect_gpu_type()
    assert (info["is_h100"], info["is_a100"], info["fp8_available"]) == (h100, a100, fp8_hardware)
    assert info["compile_mode"] == ("max-autotune" if h100 else "default") and info["batch_size"] == 8
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert gpu_utils.check_fp8_available() is False


def test_fp8_is_refused_where_it_cannot_run(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="FP8 needs a GPU"):
        gpu_utils.get_fp8_accelerator()


def test_backends_are_set_and_can_still_be_asked_for():
    import torch

    gpu_utils.setup_torch_backends()
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.benchmark
    assert torch._dynamo.config.cache_size_limit == 64 and not torch._dynamo.config.suppress_errors


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("NCCL: failed to allocate 4 MiB of GPU memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("CUDA out of memory"), False),
        (RuntimeError("room for improvement on gpu"), False),
    ],
)
def test_only_memory_errors_are_memory_errors(error, expected):
    assert gpu_utils.OOMHandler().is_oom_error(error) is expected


def test_a_real_allocation_failure_is_recognised():
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert gpu_utils.OOMHandler().is_oom_error(caught.value)


def test_handler_halves_to_the_minimum_then_gives_up_and_counts_every_event():
    handler = gpu_utils.OOMHandler(8, min_batch_size=2, cooldown_seconds=0, max_retries=5)
    error = RuntimeError("CUDA out of memory")
    assert [handler.handle_oom(error) for _ in range(3)] == [True, True, False]
    assert handler.get_stats() == {
        "initial_batch_size": 8, "current_batch_size": 2, "total_oom_events": 3, "batch_size_reduced": True,
    }  # fmt: skip
    handler.reset()
    assert (handler.retry_count, handler.batch_size, handler.oom_count) == (0, 2, 3)
    assert handler.handle_oom(ValueError("other")) is False and handler.oom_count == 3


@pytest.mark.parametrize("how", ["keyword", "position", "default"])
def test_retry_reduces_the_batch_size_however_it_was_given(how):
    seen = []

    @gpu_utils.with_oom_retry(max_retries=3)
    def train(data, batch_size=16):
        seen.append(batch_size)
        if batch_size > 4:
            raise RuntimeError("CUDA out of memory")
        return data, batch_size

    calls = {
        "keyword": lambda: train("x", batch_size=16),
        "position": lambda: train("x", 16),
        "default": lambda: train("x"),
    }
    assert calls[how]() == ("x", 4) and seen == [16, 8, 4]


def test_retry_passes_on_other_errors_and_refuses_functions_without_a_batch_size():
    @gpu_utils.with_oom_retry()
    def fail(batch_size):
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        fail(8)
    with pytest.raises(TypeError, match="no batch_size"):
        gpu_utils.with_oom_retry()(lambda data: data)


def test_a_size_that_is_missing_or_below_the_minimum_is_taken_as_it_can_be():
    seen = []

    @gpu_utils.with_oom_retry(min_batch_size=4)
    def train(batch_size=None):
        seen.append(batch_size)
        if batch_size > 4:
            raise MemoryError
        return batch_size

    assert (train(), train(2)) == (4, 2) and seen == [8, 4, 2]


def test_context_reports_events(capsys):
    with gpu_utils.oom_recovery_context(8) as handler:
        handler.cooldown_seconds = 0
        assert handler.handle_oom(MemoryError())
    assert "out of memory 1 times: batch size 8 -> 4" in capsys.readouterr().out


def test_safe_batch_size_grows_with_memory_shrinks_with_length_and_is_zero_when_the_model_does_not_fit():
    sizes = [gpu_utils.get_safe_batch_size(1.0, memory) for memory in (8, 24, 40, 80, 141)]
    assert sizes == sorted(sizes) and sizes[0] == 0 < sizes[2] and max(sizes) <= 32
    assert gpu_utils.get_safe_batch_size(7.0, 24) == 0
    assert gpu_utils.get_safe_batch_size(1.0, 80, 4096) < gpu_utils.get_safe_batch_size(1.0, 80, 2048)


def test_safe_batch_size_follows_shape_optimizer_checkpointing_sharding_and_frozen_weights(capsys):
    def size(**more) -> int:
        return gpu_utils.get_safe_batch_size(1.0, 24, width=2048, layers=16, **more)

    plain = size()
    assert 0 < plain < 32
    assert size(optimizer="adamw_8bit") > plain and size(activation_checkpointing=True) > plain
    assert size(shards=8) > plain and size(trainable_parameters=1e7) > plain
    assert size(vocabulary=200_000) < min(plain, size(vocabulary=200_000, loss_chunk=2048))
    assert gpu_utils.get_safe_batch_size(1.0, 24, width=2048, layers=32) < plain
    assert capsys.readouterr().out == ""
    assert size(weight_bytes=4, sequence_length=2_000_000) == 0
    assert gpu_utils.get_safe_batch_size(7.0, 24) == 0
    told = capsys.readouterr().out.splitlines()
    assert "one sequence of 2,000,000 tokens takes" in told[0] and "moments alone take" in told[1]
    with pytest.raises(ValueError, match="unknown optimizer 'lion'"):
        size(optimizer="lion")


def test_the_memory_estimate_is_its_formula():
    from pipeline_lib.memory_estimate import estimate_memory

    found = estimate_memory(1e9, 80e9, 2048, 2048, 16, vocabulary=32_000, dtype_bytes=2, weight_bytes=4, shards=2)
    assert (found.weights, found.gradients, found.optimizer) == (2e9, 2e9, 4e9)
    assert found.per_sequence == 2048 * (17 * 2 * 2048 * 16 + 32_000 * 6)
    assert found.room == pytest.approx(0.8 * 80e9 - 8e9)
    assert found.sequences == min(32, int(found.room / found.per_sequence))


@pytest.fixture
def tiny_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape))


def test_compiled_checkpoints_load_whole_and_in_shards(tiny_model, tmp_path: Path):
    import torch
    from safetensors.torch import save_file

    names = list(tiny_model.state_dict())
    for folder, parts in ((tmp_path / "one", [names]), (tmp_path / "two", [names[:3], names[3:]])):
        tiny_model.config.save_pretrained(folder)
        for index, part in enumerate(parts):
            file = "model.safetensors" if len(parts) == 1 else f"model-{index + 1:05d}-of-00002.safetensors"
            state = tiny_model.state_dict()
            save_file({f"_orig_mod.{name}": state[name].clone() for name in part}, folder / file)
        loaded = gpu_utils.load_compiled_checkpoint(str(folder), use_flash_attention=False)
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, tiny_model.state_dict()[name])
    (tmp_path / "two" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(RuntimeError, match="missing"):
        gpu_utils.load_compiled_checkpoint(str(tmp_path / "two"))


def test_unwrapping_returns_the_very_module(tiny_model):
    import torch

    assert gpu_utils.unwrap_compiled_model(torch.compile(tiny_model)) is tiny_model
    assert gpu_utils.unwrap_compiled_model(tiny_model) is tiny_model


def test_validation_knows_shards_and_names_the_repairing_command(tiny_model, tmp_path: Path, capsys):
    model = tmp_path / "model"
    assert not gpu_utils.check_checkpoint_exists(str(model), "init")
    assert "python scripts/04_init_model.py" in capsys.readouterr().out
    tiny_model.save_pretrained(model, max_shard_size="10KB")
    assert len(list(model.glob("model-*.safetensors"))) > 1 and gpu_utils.check_checkpoint_exists(str(model))
    sorted(model.glob("model-*.safetensors"))[0].unlink()
    assert not gpu_utils.check_checkpoint_exists(str(model), "pretrain")
    assert "model-00001" in capsys.readouterr().out
    assert not gpu_utils.check_tokenizer_exists(str(tmp_path / "tokenizer"))
    assert not gpu_utils.validate_training_prerequisites(str(model), str(tmp_path / "t"), str(tmp_path / "d"))
    assert capsys.readouterr().out.count("03_tokenize_and_pack.py") == 3


@pytest.mark.parametrize("damage", ["empty", "cut off", "header cut off", "garbage"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_damaged_weight_file_is_not_a_complete_checkpoint(tiny_model, tmp_path: Path, capsys, damage, sharded):
    tiny_model.save_pretrained(tmp_path, **({"max_shard_size": "10KB"} if sharded else {}))
    assert gpu_utils.check_checkpoint_exists(str(tmp_path), "sft") and capsys.readouterr().out == ""
    file = sorted(tmp_path.glob("model*.safetensors"))[-1]
    content = file.read_bytes()
    file.write_bytes(
        {"empty": b"", "cut off": content[:-1], "header cut off": content[:40], "garbage": b"<html>" * 99}[damage]
    )
    assert not gpu_utils.check_checkpoint_exists(str(tmp_path), "sft")
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{file.name} damaged" in line and line.endswith("make it with: python scripts/07_sft.py")


@pytest.mark.parametrize(
    "content", ["", '{"weight_map": {"a', "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_a_damaged_index_or_configuration_is_a_line_and_not_an_exception(tmp_path: Path, capsys, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    (tmp_path / "config.json").write_text("")
    assert not gpu_utils.check_checkpoint_exists(str(tmp_path), "sft")
    (line,) = capsys.readouterr().out.splitlines()
    assert "config.json damaged" in line and "model.safetensors.index.json damaged" in line
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    assert gpu_utils.check_tokenizer_exists(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("")
    assert not gpu_utils.check_tokenizer_exists(str(tmp_path)) and "tokenizer.json damaged" in capsys.readouterr().out


@pytest.fixture
def ready(tiny_model, tmp_path: Path) -> Callable[[Path], bool]:
    """Says whether all is there, when model and tokenizer are and the data lies in the given place."""
    model = tmp_path / "model"
    tiny_model.save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_text("{}")
    return lambda data: gpu_utils.validate_training_prerequisites(str(model), str(model), str(data))


def test_data_is_a_finished_stage_or_a_data_file_that_is_not_empty(ready, tmp_path: Path, capsys):
    from pipeline_lib.stage.manifest import FileEntry, Manifest

    stage = tmp_path / "03_packed"
    (stage / "work").mkdir(parents=True)
    (stage / "log.txt").write_text("12:00 started\n")
    (stage / ".lock").write_text("4711")
    (stage / "work" / "journal.jsonl").write_text("{}\n")
    (stage / "work" / "chunk.lz4").write_bytes(b"half")
    assert not ready(stage) and not ready(tmp_path / "nothing"), "killed, and never begun"
    assert capsys.readouterr().out.count("03_tokenize_and_pack.py") == 2
    (stage / "manifest.json").write_text('{"stage": "03_packed"')
    assert not ready(stage), "a manifest that was cut off"
    (stage / ".lock").unlink()
    (stage / "manifest.json").unlink()
    (stage / "work" / "state.json").write_text('{"made_from": {"inputs": {}}}')
    assert not ready(stage), "interrupted, and the lock given back"
    shutil.rmtree(stage / "work")
    (stage / "chunks").mkdir()
    (stage / "chunks" / "0.lz4").write_bytes(b"whole")
    (stage / "index.json").write_text("{}")
    files = {"chunks/0.lz4": FileEntry(5, ""), "index.json": FileEntry(2, "")}
    Manifest("03_packed", {}, files, {}, {}, [], 0).write(stage / "manifest.json")
    assert ready(stage) and ready(tmp_path)
    (stage / "chunks" / "0.lz4").write_bytes(b"half")
    assert not ready(stage), "an output that was cut off"
    (stage / "chunks" / "0.lz4").unlink()
    assert not ready(stage), "finished, and its outputs deleted since"

    mine = tmp_path / "mine"
    (mine / "deeper").mkdir(parents=True)
    (mine / "README.md").write_text("words")
    (mine / "deeper" / "a.parquet").touch()
    assert not ready(mine) and not ready(mine / "deeper" / "a.parquet")
    (mine / "deeper" / "b.jsonl").write_text("{}\n")
    assert ready(mine) and ready(mine / "deeper" / "b.jsonl")


@pytest.mark.parametrize("name", ["alpaca.json", "train.csv", "x.jsonl.bz2", "x.ndjson.xz", "x.PARQUET", "x.arrow"])
def test_what_stage_01_reads_records_from_is_data_for_training_too(ready, tmp_path: Path, name: str):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "LICENSE.txt").write_text("words")
    assert not ready(tmp_path / "data")
    (tmp_path / "data" / name).write_text("something")
    assert ready(tmp_path / "data")


def test_kernels_are_refused_rather_than_ignored():
    assert gpu_utils.setup_kernel_optimizations() == "none"
    with pytest.raises(ValueError, match="choose one"):
        gpu_utils.setup_kernel_optimizations(True, True)
    with pytest.raises(ValueError, match="unknown model_type"):
        gpu_utils.setup_kernel_optimizations(True, model_type="bert")
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="liger_kernel"):
            gpu_utils.setup_kernel_optimizations(use_liger_kernel=True)


def test_optimizer_name_falls_back_aloud(monkeypatch, capsys):
    import importlib.util

    assert gpu_utils.get_optimizer_name("adamw_bnb_8bit") == "adamw_bnb_8bit"
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert gpu_utils.get_optimizer_name("adamw_bnb_8bit") == "adamw_torch_fused"
    assert "bitsandbytes is not installed" in capsys.readouterr().out
    assert gpu_utils.get_optimizer_name("lion") == "lion"


def test_curriculum_stops_at_each_boundary_and_its_state_is_read_back(tmp_path: Path):
    from transformers import TrainerControl, TrainerState

    schedule = [{"steps": 10, "seq_length": 512}, {"steps": 20, "seq_length": 1024}]
    config = {"schedule": schedule, "data_pattern": str(tmp_path / "train_{seq_length}")}
    callback = gpu_utils.CurriculumCallback(config, str(tmp_path))
    assert [callback.get_current_stage(step) for step in (0, 9, 10, 25)] == [(0, 512), (0, 512), (1, 1024), (1, 1024)]
    assert gpu_utils.CurriculumCallback({}, str(tmp_path)).get_current_stage(5) == (0, 2048)
    control = TrainerControl()
    callback.on_train_begin(None, TrainerState(global_step=8), control)
    callback.on_step_begin(None, TrainerState(global_step=9), control)
    assert not control.should_training_stop and callback.resume_step() == 0
    callback.on_step_begin(None, TrainerState(global_step=10), control)
    assert control.should_training_stop and control.should_save and callback.resume_step() == 10
    state = json.loads((tmp_path / "curriculum_state.json").read_text())
    assert (state["current_stage"], state["current_seq_length"], state["schedule"]) == (1, 1024, schedule)
    with pytest.raises(FileNotFoundError, match="train_512"):
        callback.data_path(0)
    with pytest.raises(ValueError, match="cannot be honoured"):
        gpu_utils.CurriculumCallback({"auto_stop_at_boundary": False}, str(tmp_path))


def test_oom_callback_keeps_the_global_batch_and_counts():
    from transformers import TrainerControl, TrainerState, TrainingArguments

    arguments = TrainingArguments(output_dir="unused", per_device_train_batch_size=8, gradient_accumulation_steps=2)
    callback = gpu_utils.OOMRecoveryCallback(max_accumulation=8)
    logs: dict = {}
    callback.on_log(arguments, TrainerState(), TrainerControl(), logs=logs)
    assert logs == {}
    assert [callback.record(MemoryError(), arguments) for _ in range(3)] == [True, True, False]
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (2, 8)
    callback.on_log(arguments, TrainerState(), TrainerControl(), logs=logs)
    assert logs == {"oom_recovery/total_events": 2}
