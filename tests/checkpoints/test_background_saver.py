"""Saving in the background: the same bytes, a state that training cannot tear, errors raised in the loop."""

import errno
import threading
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from pipeline_lib.checkpoints import BackgroundSaver, Retention, folders, load_checkpoint, newest_valid_checkpoint
from pipeline_lib.checkpoints.tensor_files import write_tensor_file
from pipeline_lib.stage import StageFailure, file_digest


def tensors(seed: int) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    weight = torch.randn(30, 50, generator=chance)
    return {
        "weight": weight,
        "tied": weight,
        "transposed": torch.randn(7, 9, generator=chance).T,
        "step": torch.tensor(float(seed)),
        "half": torch.randn(33, generator=chance).bfloat16(),
        "flags": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 4),
    }


def test_a_tensor_file_is_what_safetensors_reads_and_its_digest_is_that_of_the_file(tmp_path):
    written = {name: tensor for name, tensor in tensors(3).items() if name != "tied"}
    path = tmp_path / "t.safetensors"
    entry = write_tensor_file(path, written)
    assert entry == {"bytes": path.stat().st_size, "digest": file_digest(path)}
    loaded = load_file(path)
    assert loaded.keys() == written.keys()
    for name, tensor in written.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name


def test_an_unknown_number_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="z has number format complex64"):
        write_tensor_file(tmp_path / "t.safetensors", {"z": torch.zeros(2, dtype=torch.complex64)})


@pytest.mark.parametrize("background", [True, False])
def test_updates_after_before_update_do_not_reach_the_checkpoint(tmp_path, background):
    saver = BackgroundSaver(tmp_path, Retention(5), background)
    live = tensors(0)
    for step in range(4):
        before = {name: tensor.clone() for name, tensor in live.items()}
        saver.start({"model": live}, {"step": step})
        saver.before_update()
        for tensor in live.values():
            if tensor.is_floating_point():
                tensor.add_(1)
        saver.finish()
        loaded = load_checkpoint(newest_valid_checkpoint(tmp_path))
        assert loaded.step == step
        assert all(torch.equal(loaded.tensors["model"][name], before[name]) for name in before)
        assert loaded.tensors["model"]["tied"] is loaded.tensors["model"]["weight"]
    assert saver.saves == 4 and saver.last_step == 3 and not saver.busy


def test_nothing_is_written_before_the_metrics_are_durable(tmp_path):
    saver = BackgroundSaver(tmp_path, Retention(1))
    durable = threading.Event()
    saver.start({"model": tensors(1)}, {"step": 1}, first=lambda: durable.wait(10))
    saver.before_update()  # the copy does not wait for the disk
    assert newest_valid_checkpoint(tmp_path) is None and saver.busy
    durable.set()
    saver.finish()
    assert newest_valid_checkpoint(tmp_path) is not None


@pytest.mark.parametrize("background", [True, False])
def test_tensors_made_for_the_save_are_written_without_another_copy(tmp_path, monkeypatch, background):
    monkeypatch.setattr(BackgroundSaver, "_buffer", lambda *_: pytest.fail("copied"))
    saver, written = BackgroundSaver(tmp_path, Retention(1), background), threading.Event()
    if not background:
        written.set()
    saver.start({"model": tensors(1)}, {"step": 1}, first=lambda: written.wait(10), owned=True)
    saver.before_update()  # waits for nothing
    assert saver.busy == background
    written.set()
    saver.finish()
    loaded = load_checkpoint(newest_valid_checkpoint(tmp_path)).tensors["model"]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors(1).items())


@pytest.mark.parametrize("owned", [False, True])
def test_a_full_disk_is_raised_in_the_loop_and_the_checkpoint_before_stands(tmp_path, owned):
    saver = BackgroundSaver(tmp_path, Retention(1))
    saver.start({"model": tensors(1)}, {"step": 1})
    saver.finish()

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    saver.start({"model": tensors(2)}, {"step": 2}, first=full, owned=owned)
    with pytest.raises(OSError, match="No space left"):
        saver.finish()
    assert saver.last_step is None
    assert load_checkpoint(newest_valid_checkpoint(tmp_path)).step == 1


def test_the_newest_the_best_and_every_nth_stay(tmp_path):
    saver = BackgroundSaver(tmp_path, Retention(newest=2, every=4, best=True), background=False)
    for step, score in enumerate([None, 3.0, 1.5, 2.0, None, 2.5, 2.5, None, None, None, 2.2], start=0):
        saver.start({"model": {"w": torch.zeros(2)}}, {"step": step}, score)
    assert [int(path.name[-4:]) for path in sorted(tmp_path.iterdir())] == [2, 4, 8, 9, 10]


def failing_at_call(number: int, error: Exception, function: Callable) -> Callable:
    """Return `function`, which raises `error` at its call of that number, counted from 1."""
    calls = []

    def maybe_fail(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise error
        return function(*arguments)

    return maybe_fail


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: out of memory")])
def test_without_memory_for_the_copy_the_update_waits_for_the_write_and_nothing_is_lost(tmp_path, monkeypatch, error):
    monkeypatch.setattr(BackgroundSaver, "_buffer", failing_at_call(3, error, BackgroundSaver._buffer))
    said = []
    saver = BackgroundSaver(tmp_path, Retention(5), note=said.append)
    live = tensors(0)
    for step in (7, 8):
        before = {name: tensor.clone() for name, tensor in live.items()}
        saver.start({"model": live}, {"step": step})
        saver.before_update()
        loaded = load_checkpoint(newest_valid_checkpoint(tmp_path))  # already: from here on the weights may change
        assert loaded.step == step
        assert all(torch.equal(loaded.tensors["model"][name], before[name]) for name in before)
        for tensor in live.values():
            if tensor.is_floating_point():
                tensor.add_(1)
    saver.finish()
    (line,) = said
    assert line.startswith("step 7: no memory for a copy") and "pretrain.background_saving: false" in line


@pytest.mark.parametrize("background", [True, False])
def test_without_memory_to_write_a_checkpoint_it_is_the_saving_that_failed(tmp_path, monkeypatch, background):
    saver = BackgroundSaver(tmp_path, Retention(5), background)
    saver.start({"model": tensors(0)}, {"step": 6})
    saver.finish()
    failing = failing_at_call(1, MemoryError(), folders.write_tensor_file)
    monkeypatch.setattr(folders, "write_tensor_file", failing)
    with pytest.raises(StageFailure, match="no memory to write the checkpoint of step 7; the one before stands"):
        saver.start({"model": tensors(1)}, {"step": 7})
        saver.finish()
    assert load_checkpoint(newest_valid_checkpoint(tmp_path)).step == 6
