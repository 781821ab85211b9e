"""One optimizer step: groups, decay, accumulation, clipping, and failures that leave the weights alone."""

import itertools
import json
import math
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from pipeline_lib.checkpoints import (
    checkpoint_name,
    load_checkpoint,
    newest_valid_checkpoint,
    save_checkpoint,
    seed_everything,
)
from pipeline_lib.config.model import ModelSettings
from pipeline_lib.config.pretrain import OptimizerSettings, PretrainSettings
from pipeline_lib.models.initialise import build_model
from pipeline_lib.models.shapes import resolve_shape
from pipeline_lib.oom_handler import SafeBatchSizes, is_out_of_memory
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.pretraining import accumulation, validation
from pipeline_lib.pretraining.accumulation import MemoryRanOutInside, leave_word, take_over
from pipeline_lib.pretraining.attention import use_attention
from pipeline_lib.pretraining.batches import PackedData
from pipeline_lib.pretraining.choices import Choices
from pipeline_lib.pretraining.distribution import Processes, alone, join
from pipeline_lib.pretraining.forward import TokenLoss, summed_loss
from pipeline_lib.pretraining.horizon import resolve_horizon
from pipeline_lib.pretraining.logbook import open_logbook
from pipeline_lib.pretraining.loop import _next_step, optimizer_step, train
from pipeline_lib.pretraining.optimizers import make_optimizers, parameter_groups
from pipeline_lib.pretraining.run_state import TrainingRun, checkpoint_content, restore_run
from pipeline_lib.pretraining.saving import Saving
from pipeline_lib.stage import StageFailure

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SPECIAL = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
SETTINGS = PretrainSettings(tokens=5120, batch_tokens=512, micro_batch=8, dtype="float32", compile="off")


def nothing(loss: float, norm: float) -> None:
    """What has to be waited for before an update when no checkpoint is being written."""


def make_model(tied: bool = False, dtype: str = "float32"):
    settings = ModelSettings(shape={"layers": 2, "width": 32, "heads": 2}, tie_embeddings=tied, dtype=dtype)
    return build_model(resolve_shape(settings, 400, 64), settings, SPECIAL, seed=3)


def make_run(settings: PretrainSettings = SETTINGS, processes: Processes | None = None) -> TrainingRun:
    model = make_model()
    horizon = resolve_horizon(settings, 64, 32, 30_000)
    optimizers = make_optimizers(model, settings.optimizer, horizon.rates, torch.float32)
    seed_everything(0)
    choices = Choices()
    use_attention(model, choices.attention)
    network = TokenLoss(model, choices.attention, "none", torch.float32)
    return TrainingRun(model, network, optimizers, horizon, choices, processes or alone())


def open_data(cache: Path) -> PackedData:
    return PackedData(PackedCache(cache), 64, 8, seed=1, validation_tokens=500)


@pytest.fixture(scope="module")
def data(packed_run) -> PackedData:
    return open_data(packed_run[1] / "03_packed")


def first_batches(data: PackedData, count: int):
    stream = data.training_batches(None)
    return [next(stream) for _ in range(count)]


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_in_exactly_one_group(tied):
    model = make_model(tied)
    groups = parameter_groups(model)
    members = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())
    assert len(groups["matrices"]) == 2 * 7 and len(groups["embedding"]) == 1
    assert len(groups["norms"]) == 2 * 2 + 1 and len(groups["head"]) == (not tied)


@pytest.mark.parametrize("name", ["muon", "adamw", "adamw_8bit"])
@pytest.mark.parametrize(("asked", "expected"), [(None, 0.0), (0.1, 0.1)])
def test_only_matrices_decay_and_null_is_zero(name, asked, expected):
    model = make_model()
    optimizers = make_optimizers(
        model, OptimizerSettings(name=name, weight_decay=asked), make_run().horizon.rates, torch.float32
    )
    assert set(optimizers) == {name, "adamw"}
    matrices = {id(parameter) for parameter in parameter_groups(model)["matrices"]}
    seen = set()
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                seen.add(id(parameter))
                assert group["weight_decay"] == (expected if id(parameter) in matrices else 0.0)
    assert seen == {id(parameter) for parameter in model.parameters()}


def step_gradients(run: TrainingRun, batch, settings: PretrainSettings):
    """Do a step and return (loss, reported norm, the gradients that reached the optimizers)."""
    gradients = {}
    muon_step = run.optimizers["muon"].step

    def remember():
        gradients.update({name: parameter.grad.clone() for name, parameter in run.model.named_parameters()})
        muon_step()

    run.optimizers["muon"].step = remember
    return *optimizer_step(run, batch, settings, nothing), gradients


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_the_micro_batch_changes_neither_loss_nor_gradient(data, micro_batch):
    batch = first_batches(data, 1)[0][0]
    loss, norm, expected = step_gradients(make_run(), batch, SETTINGS)
    parts = SETTINGS.model_copy(update={"micro_batch": micro_batch})
    loss_in_parts, norm_in_parts, gradients = step_gradients(make_run(), batch, parts)
    assert loss_in_parts == pytest.approx(loss, rel=1e-6) and norm_in_parts == pytest.approx(norm, rel=1e-5)
    for name, gradient in gradients.items():
        assert float((gradient - expected[name]).norm()) < 1e-4 * float(expected[name].norm()), name


def test_the_loss_is_the_mean_over_the_predicted_tokens_of_the_step(data):
    run = make_run()
    batch = first_batches(data, 1)[0][0]
    with torch.no_grad():
        summed = float(summed_loss(run, batch, chunk=100))
    loss, _, _ = step_gradients(run, batch, SETTINGS.model_copy(update={"micro_batch": 3}))
    assert loss == pytest.approx(summed / batch.target_count, rel=1e-5)


def test_the_norm_is_measured_before_clipping_and_the_gradient_clipped_to_the_limit(data):
    batch = first_batches(data, 1)[0][0]

    def norms(limit):
        settings = PretrainSettings(**{**SETTINGS.model_dump(), "optimizer": {"clip_norm": limit}})
        _, reported, gradients = step_gradients(make_run(settings), batch, settings)
        return reported, math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))

    free_reported, free = norms(None)
    tight_reported, tight = norms(0.01)
    assert free_reported == pytest.approx(free, rel=1e-5) and free > 0.05
    assert tight_reported == pytest.approx(free_reported, rel=1e-6)
    assert tight == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_leaves_weights_moments_and_step_as_they_were(data):
    run = make_run()
    (first, _), (second, _) = first_batches(data, 2)
    optimizer_step(run, first, SETTINGS, nothing)
    with torch.no_grad():
        run.model.lm_head.weight[5] = float("inf")
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(FloatingPointError):
        optimizer_step(run, second, SETTINGS, nothing)
    assert run.step == 1
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_memory_that_runs_out_half_way_through_an_update_is_not_saved_over(data, tmp_path):
    run = make_run()
    book = open_logbook(tmp_path, run, False, SETTINGS.model_copy(update={"tensorboard": False}), "test")
    book.metrics.append({"step": 0})
    book.timings.append({"step": 0})

    def exhaust():
        torch.empty(1 << 60, dtype=torch.uint8)

    run.optimizers["adamw"].step = exhaust  # Muon has already moved the matrices when AdamW asks for its moments
    with pytest.raises(StageFailure, match="out of memory in the update at step 1; the last checkpoint stands"):
        saving = Saving(SETTINGS, tmp_path / "checkpoints", book)
        _next_step(run, data.training_batches(None), data, book, saving, SETTINGS)
    assert newest_valid_checkpoint(tmp_path / "checkpoints") is None


class BareStage:
    """What the loop asks of a stage, without a run folder around it."""

    interrupted = False
    signals = SimpleNamespace(received=None)

    def __init__(self, settings: PretrainSettings, work: Path):
        self.settings, self.work, self.started, self.said = settings, work, time.monotonic(), []
        self.say = self.note = self.said.append

    def stop_if_interrupted(self) -> None:
        pass


def test_any_other_error_saves_the_last_whole_step_and_passes_through(data, tmp_path, monkeypatch):
    whole = data.training_batches

    def damaged(state, step):
        yield from itertools.islice(whole(state, step), 2)
        raise RuntimeError("chunk 7 is damaged")

    monkeypatch.setattr(data, "training_batches", damaged)
    run, stage = make_run(), BareStage(SETTINGS, tmp_path)
    with open_logbook(tmp_path, run, False, SETTINGS, "test") as book, pytest.raises(RuntimeError, match="chunk 7"):
        train(stage, run, data, book)
    assert "  the state after step 2 was saved before the error" in stage.said
    saved = load_checkpoint(newest_valid_checkpoint(tmp_path / "checkpoints"))
    assert saved.step == 2
    for name, weight in run.model.state_dict().items():
        assert torch.equal(saved.tensors["model"][name], weight)


@pytest.mark.parametrize("name", ["muon", "adamw", "adamw_8bit"])
def test_each_optimizer_learns(data, name):
    settings = PretrainSettings(**{**SETTINGS.model_dump(), "optimizer": {"name": name}})
    run = make_run(settings)
    losses = [optimizer_step(run, batch, settings, nothing)[0] for batch, _ in first_batches(data, 8)]
    assert losses[-1] < losses[0] - 0.3


def test_8_bit_moments_take_a_quarter_of_the_memory_and_step_like_full_ones():
    settings = [OptimizerSettings(name=name, lr=0.01) for name in ("adamw", "adamw_8bit")]
    matrices, used = [], []
    for setting in settings:
        model = make_model()
        optimizers = make_optimizers(model, setting, make_run().horizon.rates, torch.float32)
        parameter = model.model.layers[0].mlp.gate_proj.weight
        before = parameter.detach().clone()
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            for other in model.parameters():
                other.grad = torch.randn(other.shape, generator=generator)
            for optimizer in optimizers.values():
                optimizer.step()
        matrices.append(parameter.detach() - before)
        state = optimizers[setting.name].state[model.lm_head.weight]
        used.append(sum(value.nbytes for value in state.values() if torch.is_tensor(value) and value.numel() > 256))
    assert used[1] < 0.3 * used[0]
    assert float((matrices[1] - matrices[0]).norm()) < 0.1 * float(matrices[0].norm())


def limited(monkeypatch, largest: int, error: Exception) -> list[int]:
    """Let memory run out, in the backward pass too, when more than `largest` sequences are taken; return the sizes."""
    tried = []

    def loss(run, batch, chunk):
        tried.append(len(batch.inputs))
        value = summed_loss(run, batch, chunk)
        if len(batch.inputs) > largest:
            value.backward()  # so that part of a gradient is already there
            raise error
        return value

    monkeypatch.setattr(accumulation, "summed_loss", loss)
    return tried


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_memory_that_runs_out_repeats_the_same_batch_with_the_same_gradient(data, monkeypatch, error):
    batch = first_batches(data, 1)[0][0]
    loss, norm, expected = step_gradients(make_run(), batch, SETTINGS)
    tried = limited(monkeypatch, 2, error)
    run = make_run()
    loss_in_halves, norm_in_halves, gradients = step_gradients(run, batch, SETTINGS)
    assert tried == [8, 4, 2, 2, 2, 2] and run.save_soon
    assert run.micro_batches.sizes() == {"64": 2} and run.micro_batches.events == 2
    assert loss_in_halves == pytest.approx(loss, rel=1e-6) and norm_in_halves == pytest.approx(norm, rel=1e-6)
    whole = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in expected.values()))
    apart = math.sqrt(
        sum(float((gradient - expected[name]).double().square().sum()) for name, gradient in gradients.items())
    )
    assert apart < 1e-6 * whole


def forgetful(largest: int):
    """Return a loss that runs out of memory with more than `largest` sequences."""

    def loss(run, batch, chunk):
        if len(batch.inputs) > largest:
            raise MemoryError
        return summed_loss(run, batch, chunk)

    return loss


def run_as_one_of_two(rank: int, port: int, folder: Path, data: PackedData, largest: int) -> None:
    """Do a step as process `rank`, of which the second runs out of memory, and leave behind what it did."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    run = make_run(processes=join("ddp"))
    with pytest.MonkeyPatch.context() as patch:
        tried = limited(patch, largest if rank else 100, MemoryError())
        batch, ending = first_batches(data, 1)[0][0], ""
        loss, norm, gradients = 0.0, 0.0, {}
        try:
            loss, norm, gradients = step_gradients(run, batch, SETTINGS)
            run.micro_batches = SafeBatchSizes(8)
            patch.setattr(validation, "summed_loss", forgetful(largest if rank else 100))
            batches = data.validation_batches(16)
            ending = validation.validate(run, batches, data.token_bytes, 1000, lambda: False).loss
        except MemoryError as error:
            ending = str(error) or "my own"
    safetensors.torch.save_file(gradients, folder / f"{rank}.safetensors")
    told = {"tried": tried, "loss": loss, "norm": norm, "sizes": run.micro_batches.sizes(), "ending": ending}
    (folder / f"{rank}.json").write_text(json.dumps(told))


def fork_two(port: int, folder: Path, cache: Path, largest: int) -> None:
    """Do the step in two children of this process, and end with an error if one of them does."""
    data = open_data(cache)
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=run_as_one_of_two, args=(r, port, folder, data, largest)) for r in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    sys.exit([process.exitcode for process in both] != [0, 0])


def step_of_two(data: PackedData, folder: Path, largest: int) -> tuple[list[dict], list[dict]]:
    """Let two processes do a step; return what each tells and its gradients."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # From a process of its own: torch refuses to compute gradients in a child of one that has computed some.
    code = (
        f"import sys; sys.path[:0] = [{str(SCRIPTS)!r}, {str(Path(__file__).parent)!r}]\n"
        f"import test_optimizer_step as test\n"
        f"test.fork_two({port}, test.Path({str(folder)!r}), test.Path({str(data.cache.path)!r}), {largest})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return told, [safetensors.torch.load_file(folder / f"{rank}.safetensors") for rank in range(2)]


def test_two_processes_take_the_same_halves_when_memory_runs_out_in_one_of_them(data, tmp_path):
    loss, norm, expected = step_gradients(run := make_run(), first_batches(data, 1)[0][0], SETTINGS)
    validated = validation.validate(run, data.validation_batches(8), data.token_bytes, 1000, lambda: False).loss
    told, gradients = step_of_two(data, tmp_path, largest=1)
    assert [process["tried"] for process in told] == [[4, 2, 2, 1, 1, 1, 1], [4, 2, 1, 1, 1, 1]]
    assert [process["sizes"] for process in told] == [{"64": 1}] * 2
    whole = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in expected.values()))
    for process, found in zip(told, gradients, strict=True):
        assert process["loss"] == pytest.approx(loss, rel=1e-6) and process["norm"] == pytest.approx(norm, rel=1e-6)
        assert process["ending"] == pytest.approx(validated, rel=1e-5)
        apart = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
        assert math.sqrt(apart) < 1e-6 * whole


def test_two_processes_end_together_when_one_cannot_hold_a_single_sequence(data, tmp_path):
    told, _ = step_of_two(data, tmp_path, largest=0)
    assert [process["ending"] for process in told] == ["memory ran out in another process", "my own"]
    assert [process["tried"] for process in told] == [[4, 2, 2, 1, 1, 1, 1], [4, 2, 1]]


def test_the_safe_size_is_in_the_checkpoint_grows_back_and_waits_longer_after_each_failure(data, monkeypatch, tmp_path):
    tried = limited(monkeypatch, 4, MemoryError())
    settings = SETTINGS.model_copy(update={"micro_batch_grows_after": 2})
    run = make_run(settings)
    run.micro_batches.grow_after = 2
    stream = data.training_batches(None)
    for _ in range(5):
        batch, run.data = next(stream)
        optimizer_step(run, batch, settings, nothing)
    assert tried == [8, 4, 4, 4, 4, 8, 4, 4, 4, 4, 4, 4]  # 8 is tried again after two good steps, then after four
    save_checkpoint(tmp_path / checkpoint_name(run.step), *checkpoint_content(run))
    again = make_run(settings)
    restore_run(again, tmp_path, print)
    assert again.micro_batches.to_json() == run.micro_batches.to_json()
    assert again.micro_batches.size(64) == 4 and again.micro_batches.size(128) == 8


def test_with_fsdp_the_next_start_takes_half_and_keeps_to_it(data, monkeypatch, tmp_path):
    """One process that believes in others: the size is agreed on by a restart, because asking is impossible."""
    tried = limited(monkeypatch, 4, RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    run, stage = make_run(processes=replace(alone(), strategy="fsdp")), BareStage(SETTINGS, tmp_path)
    with open_logbook(tmp_path, run, False, SETTINGS, "test") as book, pytest.raises(StageFailure) as ended:
        train(stage, run, data, book)
    assert "with 8 sequences of 64 tokens at once" in str(ended.value) and "takes 4 at once" in str(ended.value)
    assert tried == [8] and all(parameter.grad is None for parameter in run.model.parameters())
    again = make_run(processes=replace(alone(), strategy="fsdp"))
    again.network.set_requires_gradient_sync = lambda last: None  # what FSDP adds to a network
    again.micro_batches.grow_after = 1
    assert "this one takes 4" in take_over(again, tmp_path) and again.save_soon
    assert take_over(again, tmp_path) is None
    for batch, _ in first_batches(data, 3):
        optimizer_step(again, batch, SETTINGS, nothing)
    assert tried == [8] + [4, 4] * 3
    assert again.micro_batches.events == 1
    assert (
        "use more processes" in leave_word(tmp_path, MemoryRanOutInside(64, 1)) and take_over(again, tmp_path) is None
    )


def test_one_sequence_that_does_not_fit_is_an_error_that_leaves_no_gradient(data, monkeypatch):
    limited(monkeypatch, 0, MemoryError())
    run = make_run()
    with pytest.raises(MemoryError):
        optimizer_step(run, first_batches(data, 1)[0][0], SETTINGS, nothing)
    assert all(parameter.grad is None for parameter in run.model.parameters()) and run.step == 0


@pytest.mark.parametrize("name", ["muon", "adamw", "adamw_8bit"])
def test_a_restored_run_continues_bit_for_bit(data, tmp_path, name):
    settings = PretrainSettings(**{**SETTINGS.model_dump(), "optimizer": {"name": name, "weight_decay": 0.1}})
    run = make_run(settings)
    stream = data.training_batches(None)
    for _ in range(3):
        batch, run.data = next(stream)
        optimizer_step(run, batch, settings, nothing)
        run.tokens.add(batch)
    save_checkpoint(tmp_path / checkpoint_name(run.step), *checkpoint_content(run))
    expected = []
    for _ in range(3):
        batch, run.data = next(stream)
        expected.append(optimizer_step(run, batch, settings, nothing))

    again = make_run(settings)
    assert restore_run(again, tmp_path, print) is not None
    assert again.step == 3 and again.tokens == run.tokens
    assert again.tokens.predicted == sum(batch.target_count for batch, _ in first_batches(data, 3))
    stream = data.training_batches(again.data)
    assert [optimizer_step(again, next(stream)[0], settings, nothing) for _ in range(3)] == expected
    for left, right in zip(run.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_real_memory_exhaustion_is_recognised_and_other_errors_are_not():
    with pytest.raises(RuntimeError) as exhausted:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(exhausted.value) and is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as mismatch:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not is_out_of_memory(mismatch.value)
