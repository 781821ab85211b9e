"""Memory that runs out: the same batch in smaller pieces, in one process and in two, and what is said about it."""

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_training import SETTINGS, BareStage, first_batches, make_run, nothing, open_data, step_gradients

from pipeline_lib.checkpoints import checkpoint_name, load_checkpoint, newest_valid_checkpoint, save_checkpoint
from pipeline_lib.oom_handler import SafeBatchSizes, is_out_of_memory
from pipeline_lib.pretraining import accumulation, validation
from pipeline_lib.pretraining.accumulation import MemoryRanOutInside, leave_word, take_over
from pipeline_lib.pretraining.batches import PackedData
from pipeline_lib.pretraining.cost import predict
from pipeline_lib.pretraining.distribution import alone, join
from pipeline_lib.pretraining.forward import summed_loss
from pipeline_lib.pretraining.inputs import TrainingInputs
from pipeline_lib.pretraining.logbook import open_logbook
from pipeline_lib.pretraining.loop import _next_step, optimizer_step, train
from pipeline_lib.pretraining.run_state import checkpoint_content, restore_run
from pipeline_lib.pretraining.saving import Saving
from pipeline_lib.stage import StageFailure

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


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


@pytest.fixture(scope="module")
def data(packed_run) -> PackedData:
    return open_data(packed_run[1] / "03_packed")


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


def exhaust() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def test_memory_that_runs_out_half_way_through_an_update_is_not_saved_over(data, tmp_path):
    run = make_run()
    book = open_logbook(tmp_path, run, False, SETTINGS.model_copy(update={"tensorboard": False}), "test")
    book.metrics.append({"step": 0})
    book.timings.append({"step": 0})

    run.optimizers["adamw"].step = exhaust  # Muon has already moved the matrices when AdamW asks for its moments
    with pytest.raises(StageFailure, match="out of memory in the update at step 1; the last checkpoint stands"):
        saving = Saving(SETTINGS, tmp_path / "checkpoints", book)
        _next_step(run, data.training_batches(None), data, book, saving, SETTINGS)
    assert newest_valid_checkpoint(tmp_path / "checkpoints") is None


def test_moments_that_do_not_fit_are_one_sentence_of_the_probe_before_training(data, tmp_path):
    run = make_run()
    inputs = TrainingInputs(data, run.horizon, {"total": 30_000}, "llama", 2, 32, 32, tmp_path, SETTINGS.micro_batch)
    run.optimizers["adamw"].step = exhaust
    with pytest.raises(StageFailure, match="out of memory in the update.* an optimizer with smaller moments"):
        predict(run, inputs, SETTINGS)


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
    context = get_context("fork")
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
        f"import test_memory_runs_out as test\n"
        f"test.fork_two({port}, test.Path({str(folder)!r}), test.Path({str(data.cache.path)!r}), {largest})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return told, [safetensors.torch.load_file(folder / f"{rank}.safetensors") for rank in range(2)]


@pytest.mark.long
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


@pytest.mark.long
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
    again.micro_batches.grow_after = 2
    restore_run(again, tmp_path, print)
    assert again.micro_batches.to_json() == run.micro_batches.to_json()
    assert again.micro_batches.size(64) == 4 and again.micro_batches.size(128) == 8


def test_how_long_to_wait_before_growing_back_may_change_on_resume():
    sizes = SafeBatchSizes(8, grow_after=200)
    sizes.failed(64)
    for _ in range(200):
        sizes.succeeded(64)
    sizes.failed(64)  # a failed try: 400 successes next time
    sooner = SafeBatchSizes(8, grow_after=20, state=sizes.to_json())
    for _ in range(39):
        sooner.succeeded(64)
    assert sooner.size(64) == 4
    sooner.succeeded(64)
    assert sooner.size(64) == 8
    assert SafeBatchSizes(8, grow_after=20, state=sooner.to_json()).to_json() == sooner.to_json()


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


def test_real_memory_exhaustion_is_recognised_and_other_errors_are_not():
    with pytest.raises(RuntimeError) as exhausted:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(exhausted.value) and is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as mismatch:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not is_out_of_memory(mismatch.value)


def test_reduced_and_raised_sizes_are_in_the_metrics_and_on_the_card(data, monkeypatch, tmp_path):
    tried = limited(monkeypatch, 4, MemoryError())
    settings = SETTINGS.model_copy(update={"max_steps": 5, "tensorboard": False})
    run, stage = make_run(settings), BareStage(settings, tmp_path)
    run.micro_batches.grow_after = 2
    with open_logbook(tmp_path, run, False, settings, "test") as book:
        train(stage, run, data, book)
    assert tried[:12] == [8, 4, 4, 4, 4, 8, 4, 4, 4, 4, 4, 4]
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = {"micro_batch_reduced_to": {}, "micro_batch_raised_to": {}}
    for line in written:
        for key, steps in told.items():
            if key in line:
                steps[line["step"]] = line[key]
    assert told["micro_batch_reduced_to"] == {1: 4, 3: 4} and told["micro_batch_raised_to"][2] == 8
    assert "step 2: pieces of 8 sequences are tried again" in stage.said
    assert [words[:22] for words in stage.said if "memory ran out" in words] == [
        "step 1: memory ran out",
        "step 3: memory ran out",
    ]


@pytest.mark.slow
def test_a_validation_that_not_one_sequence_fits_into_saves_the_step_and_says_so(data, monkeypatch, tmp_path):
    settings = SETTINGS.model_copy(update={"validation_steps": 2, "tensorboard": False})
    run, stage = make_run(settings), BareStage(settings, tmp_path)
    loss = forgetful(0)
    monkeypatch.setattr(
        validation, "summed_loss", lambda run, batch, chunk: (loss if run.step == 2 else summed_loss)(run, batch, chunk)
    )
    with (
        open_logbook(tmp_path, run, False, settings, "test") as book,
        pytest.raises(StageFailure, match="out of memory in the validation after step 2: not even one sequence of 64"),
    ):
        train(stage, run, data, book)
    saved = load_checkpoint(newest_valid_checkpoint(tmp_path / "checkpoints"))
    assert saved.step == 2 and saved.state["unwritten"]["step"] == 2
    monkeypatch.undo()
    again = make_run(settings)
    assert restore_run(again, tmp_path / "checkpoints", print) is not None
    with open_logbook(tmp_path, again, True, settings, "test") as book:
        train(BareStage(settings, tmp_path), again, data, book)
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in written] == list(range(again.horizon.steps + 1)) and "val_loss" in written[2]
