"""When a checkpoint is taken, and what it then knows."""

import itertools
import json
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from tiny_training import SETTINGS, BareStage, make_run, open_data

from pipeline_lib.checkpoints import BackgroundSaver, checkpoint_name, load_checkpoint, newest_valid_checkpoint
from pipeline_lib.pretraining import saving
from pipeline_lib.pretraining.distribution import Processes
from pipeline_lib.pretraining.logbook import open_logbook
from pipeline_lib.pretraining.loop import train
from pipeline_lib.pretraining.run_state import restore_run
from pipeline_lib.pretraining.step_lines import StepLines
from pipeline_lib.stage import StageFailure


class InterruptedInValidation(BareStage):
    """A stage that a signal reaches while the validation after step 4 runs."""

    run = None

    @property
    def interrupted(self) -> bool:
        return self.run.step == 4 and self.run.unwritten is not None

    def stop_if_interrupted(self) -> None:
        if self.interrupted:
            raise InterruptedError


def test_a_step_whose_validation_a_signal_interrupted_can_still_be_the_best(packed_run, monkeypatch, tmp_path):
    data = open_data(packed_run[1] / "03_packed")
    settings = SETTINGS.model_copy(update={"validation_steps": 2, "tensorboard": False, "keep_checkpoints": 1})
    run, stage = make_run(settings), InterruptedInValidation(settings, tmp_path)
    stage.run = run
    with open_logbook(tmp_path, run, False, settings, "test") as book, pytest.raises(InterruptedError):
        train(stage, run, data, book)
    folder = tmp_path / "checkpoints" / checkpoint_name(4)
    assert json.loads((folder / "complete.json").read_text())["score"] is None

    again, whole = make_run(settings), data.training_batches

    def one_more(state, step):
        yield from itertools.islice(whole(state, step), 1)
        raise RuntimeError("enough")

    monkeypatch.setattr(data, "training_batches", one_more)
    assert restore_run(again, tmp_path / "checkpoints", print) == folder
    with open_logbook(tmp_path, again, True, settings, "test") as book, pytest.raises(RuntimeError, match="enough"):
        train(BareStage(settings, tmp_path), again, data, book)
    [written] = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if '"step": 4,' in line]
    assert json.loads((folder / "complete.json").read_text())["score"] == json.loads(written)["val_bits_per_byte"]
    assert (tmp_path / "checkpoints" / checkpoint_name(5)).exists()


def test_a_line_that_the_checkpoint_carries_because_its_wall_time_could_not_be_written_is_no_proof(
    packed_run, monkeypatch, tmp_path
):
    data, settings = open_data(packed_run[1] / "03_packed"), SETTINGS.model_copy(update={"tensorboard": False})
    run, whole = make_run(settings), StepLines.append

    def full_at_step_4(self, line):
        if self.path.name == "timings.jsonl" and line["step"] == 4:
            raise OSError(28, "No space left on device")
        whole(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(StepLines, "append", full_at_step_4)
        with open_logbook(tmp_path, run, False, settings, "test") as book, pytest.raises(OSError, match="No space"):
            train(BareStage(settings, tmp_path), run, data, book)
    assert '"step": 4,' in (tmp_path / "metrics.jsonl").read_text()
    again, stage = make_run(settings), BareStage(settings, tmp_path)
    restore_run(again, tmp_path / "checkpoints", print)
    assert again.unwritten["step"] == again.step == 4
    with open_logbook(tmp_path, again, True, settings, "test") as book:
        train(stage, again, data, book)
    assert not [said for said in stage.said if "bit for bit" in said]
    written = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == list(range(again.horizon.steps + 1))


@pytest.mark.parametrize(("loss", "answer"), [(2.0, "yes"), (3.0, "no (loss 2.0 -> 3.0)")])
def test_after_a_line_that_the_checkpoint_carries_the_next_one_is_the_proof(tmp_path, loss, answer):
    run, settings = make_run(), SETTINGS.model_copy(update={"tensorboard": False})
    for name in ("metrics.jsonl", "timings.jsonl"):
        (tmp_path / name).write_text("".join(f'{{"step": {step}, "loss": 2.0}}\n' for step in range(7)))
    run.step, run.unwritten = 4, {"step": 4, "loss": 2.0}
    with open_logbook(tmp_path, run, True, settings, "test") as book:
        said = []
        for run.step in (4, 5, 6):
            said.append(book.write(run, {"step": run.step, "loss": loss}))
    assert said == [None, f"continued after step 4; step 5 replayed, continues bit for bit: {answer}", None]


@pytest.mark.parametrize(("every", "words"), [(1, "after step 3"), (2, "before the step already")])
def test_weights_that_are_not_finite_are_never_saved(packed_run, tmp_path, every, words):
    settings = SETTINGS.model_copy(update={"checkpoint_steps": every, "tensorboard": False})
    run = make_run(settings)
    whole = run.optimizers["adamw"].step

    def break_a_weight_in_the_third_update():
        whole()
        if run.step == 2:
            run.model.lm_head.weight.data[5, 7] = float("nan")

    run.optimizers["adamw"].step = break_a_weight_in_the_third_update
    said = f"1 weights are not finite {words}, first lm_head.weight.* goes back to step 2: lower pretrain.optimizer.lr"
    with open_logbook(tmp_path, run, False, settings, "test") as book, pytest.raises(StageFailure, match=said):
        train(BareStage(settings, tmp_path), run, open_data(packed_run[1] / "03_packed"), book)
    assert newest_valid_checkpoint(tmp_path / "checkpoints").name == checkpoint_name(2)


def test_a_run_without_memory_for_the_copy_of_a_checkpoint_saves_and_says_how(packed_run, monkeypatch, tmp_path):
    monkeypatch.setattr(BackgroundSaver, "_buffer", lambda *_: torch.empty(1 << 60, dtype=torch.uint8))
    settings = SETTINGS.model_copy(update={"max_steps": 4, "checkpoint_steps": 2, "tensorboard": False})
    run, stage = make_run(settings), BareStage(settings, tmp_path)
    with open_logbook(tmp_path, run, False, settings, "test") as book:
        train(stage, run, open_data(packed_run[1] / "03_packed"), book)
    loaded = load_checkpoint(newest_valid_checkpoint(tmp_path / "checkpoints"))
    assert loaded.step == run.horizon.steps == 4
    assert all(torch.equal(loaded.tensors["model"][name], weight) for name, weight in run.model.state_dict().items())
    assert sum("no memory for a copy of weights and moments" in line for line in stage.said) == 1


def no_book(sync=lambda: None) -> SimpleNamespace:
    return SimpleNamespace(resumed_at=None, sync=sync)


@pytest.mark.parametrize("slow", ["broken_weights", "checkpoint_content"])
def test_time_in_which_the_state_is_looked_through_and_put_together_counts_as_a_stall(tmp_path, monkeypatch, slow):
    whole = getattr(saving, slow)
    monkeypatch.setattr(saving, slow, lambda run: time.sleep(0.3) or whole(run))
    taken = saving.Saving(SETTINGS, tmp_path, no_book())
    began = time.monotonic()
    taken.start(make_run())
    taken.saver.finish()
    assert 0.3 <= taken.saver.stalled <= time.monotonic() - began


def test_what_fsdp_puts_together_is_in_host_memory_once_and_later_updates_do_not_reach_it(tmp_path):
    written = threading.Event()
    run = make_run(processes=Processes(0, 1, "fsdp", torch.device("cpu")))
    for parameter in run.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in run.optimizers.values():
        optimizer.step()
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    taken = saving.Saving(SETTINGS, tmp_path, no_book(lambda: written.wait(10)))
    taken.start(run)
    for optimizer in run.optimizers.values():
        optimizer.step()  # AdamW's count of steps is a tensor that FSDP does not cut
    written.set()
    taken.saver.finish()
    assert not taken.saver._buffers
    loaded = load_checkpoint(newest_valid_checkpoint(tmp_path)).tensors
    assert all(torch.equal(loaded["model"][name], weight) for name, weight in before.items())
    counts = {float(tensor) for name, tensor in loaded["optimizer_adamw"].items() if name.endswith("/step")}
    assert counts == {1.0}
