"""Checkpoints are whole or absent, verified by content, and found whatever they are called."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from pipeline_lib.checkpoints import (
    CheckpointError,
    Retention,
    checkpoint_name,
    folders,
    load_checkpoint,
    newest_step_at_a_glance,
    newest_valid_checkpoint,
    prune,
    save_checkpoint,
)


def content(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    weights = {f"layer.{n}": torch.randn(8, 4, generator=generator) for n in range(3)}
    return {"model": weights, "optimizer": {"layer.0/exp_avg": torch.randn(8, 4, generator=generator)}}


def save(folder: Path, step: int) -> Path:
    return save_checkpoint(folder / checkpoint_name(step), content(step), {"step": step, "note": f"n{step}"})


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(
        left[group].keys() == right[group].keys()
        and all(torch.equal(left[group][name], right[group][name]) for name in left[group])
        for group in left
    )


def test_what_is_saved_is_loaded(tmp_path):
    tensors = {
        "model": {
            "matrix": torch.randn(3, 5),
            "half": torch.randn(4).bfloat16(),
            "scalar": torch.tensor(7.5),
            "none": torch.empty(0, 3),
            "count": torch.tensor([1, 2, 3], dtype=torch.int64),
            "bytes": torch.arange(16, dtype=torch.uint8),
        }
    }
    state = {"step": 3, "nested": {"list": [1, 2.5, None, "x"]}, "exact": 0.1 + 0.2}
    loaded = load_checkpoint(save_checkpoint(tmp_path / "any", tensors, state))
    assert loaded.step == 3 and loaded.state == state
    assert same(loaded.tensors, tensors)
    assert all(loaded.tensors["model"][name].dtype is tensor.dtype for name, tensor in tensors["model"].items())


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    table = torch.randn(100, 8)
    path = save_checkpoint(tmp_path / "tied", {"model": {"embedding": table, "head": table}}, {"step": 0})
    assert (path / "model.safetensors").stat().st_size < 1.5 * table.nbytes
    model = load_checkpoint(path).tensors["model"]
    assert torch.equal(model["head"], table) and model["head"].data_ptr() == model["embedding"].data_ptr()


def test_views_are_stored_alone(tmp_path):
    whole = torch.randn(6, 6)
    named = {"left": whole[:, :3], "row": whole[1], "turned": whole.T}
    loaded = load_checkpoint(save_checkpoint(tmp_path / "views", {"model": named}, {"step": 0})).tensors["model"]
    assert all(torch.equal(loaded[name], named[name]) for name in named)


def test_the_same_state_gives_the_same_bytes(tmp_path):
    first, second = save(tmp_path / "a", 5), save(tmp_path / "b", 5)
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    assert all((first / path.name).read_bytes() == path.read_bytes() for path in second.iterdir())


def test_newest_means_highest_step_whatever_the_name(tmp_path):
    save(tmp_path, 1), save(tmp_path, 30), save(tmp_path, 4)
    (tmp_path / checkpoint_name(30)).rename(tmp_path / "an-old-one")
    assert newest_valid_checkpoint(tmp_path) == tmp_path / "an-old-one"


def test_no_folder_and_no_checkpoint_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert newest_valid_checkpoint(tmp_path) is None
    assert newest_valid_checkpoint(tmp_path / "missing") is None


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_to_any_file_is_noticed_and_the_older_one_wins(tmp_path, seed):
    chance = random.Random(seed)
    older, newer = save(tmp_path, 10), save(tmp_path, 20)
    victim = chance.choice(sorted(newer.iterdir()))
    data = bytearray(victim.read_bytes())
    damage = chance.choice(["flip", "cut", "grow", "delete", "empty"])
    if damage == "flip":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif damage == "cut":
        del data[chance.randrange(len(data)) :]
    elif damage == "grow":
        data += b"\0"
    elif damage == "empty":
        data.clear()
    victim.write_bytes(data)
    if damage == "delete":
        victim.unlink()
    said = []
    found = newest_valid_checkpoint(tmp_path, said.append)
    # A flipped blank in a JSON file can leave its content intact: then the checkpoint is still the newest valid one.
    if found == newer:
        assert damage in ("flip", "grow") and victim.name == "complete.json"
        assert same(load_checkpoint(found).tensors, content(20))
        return
    assert found == older
    if not (damage == "delete" and victim.name == "complete.json"):
        assert len(said) == 1 and "damaged" in said[0] and str(newer) in said[0]
    with pytest.raises(CheckpointError, match=str(newer)):
        load_checkpoint(newer)


def test_every_checkpoint_damaged_is_none_with_a_line_each(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / "model.safetensors").write_bytes(b"")
    said = []
    assert newest_valid_checkpoint(tmp_path, said.append) is None
    assert len(said) == 2


def test_prune_keeps_the_newest_intact_ones_and_nothing_else(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    (tmp_path / checkpoint_name(5) / "model.safetensors").write_bytes(b"short")
    shutil.copytree(tmp_path / checkpoint_name(4), tmp_path / ".tmp-77-step-00000009")
    (tmp_path / ".tmp-77-step-00000009" / "complete.json").unlink()
    (tmp_path / "notes").mkdir()
    prune(tmp_path, Retention(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "step-00000003", "step-00000004"]


def test_the_newest_step_at_a_glance_is_that_of_the_newest_whole_checkpoint_and_no_tensor_is_read(
    tmp_path, monkeypatch
):
    assert newest_step_at_a_glance(tmp_path / "missing") is None
    for step in (3, 7, 8, 9):
        save(tmp_path, step)
    (tmp_path / checkpoint_name(8) / "model.safetensors").write_bytes(b"short")
    (tmp_path / checkpoint_name(9) / "complete.json").unlink()
    monkeypatch.setattr(folders, "_fingerprint", lambda path: pytest.fail(f"read {path}"))
    assert newest_step_at_a_glance(tmp_path) == 7


def test_a_damaged_checkpoint_of_a_later_step_does_not_take_the_place_of_the_newest(tmp_path):
    for step in (3, 7, 9):
        save(tmp_path, step)
    for step in (7, 9):
        weights = tmp_path / checkpoint_name(step) / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # the size stays
    assert newest_valid_checkpoint(tmp_path).name == checkpoint_name(3)
    save(tmp_path, 4)
    prune(tmp_path, Retention(1), last_step=4)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint_name(4)]


def test_prune_never_removes_the_last_one(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(ValueError, match="at least 1"):
        Retention(0)


def test_saving_over_a_checkpoint_of_that_name_replaces_it(tmp_path):
    path = save(tmp_path, 1)
    save_checkpoint(path, content(2), {"step": 2})
    assert load_checkpoint(path).step == 2 and same(load_checkpoint(path).tensors, content(2))


@pytest.mark.parametrize("state", [{}, {"step": "7"}, {"step": 1, "loss": float("nan")}])
def test_a_state_that_could_not_be_found_again_is_refused(tmp_path, state):
    with pytest.raises(ValueError):
        save_checkpoint(tmp_path / "x", content(1), state)
    assert list(tmp_path.iterdir()) == []


def in_child(action) -> int:
    """Run `action` in a forked process and return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    return pid


def test_killed_at_random_instants_while_saving_the_newest_is_always_whole(tmp_path):
    chance = random.Random(7)
    highest = 0

    def keep_saving() -> None:
        step = highest
        while True:
            step += 1
            save(tmp_path, step)
            prune(tmp_path, Retention(2))

    kills = 0
    while kills < 25 or highest < 5:  # a slow machine is given more kills, until several checkpoints were finished
        kills += 1
        assert kills < 500, "no checkpoint was ever finished"
        pid = in_child(keep_saving)
        time.sleep(chance.uniform(0.005, 0.06))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        said = []
        found = newest_valid_checkpoint(tmp_path, said.append)
        assert said == []
        if found is not None:
            loaded = load_checkpoint(found)
            assert loaded.step >= highest
            assert same(loaded.tensors, content(loaded.step)) and loaded.state["note"] == f"n{loaded.step}"
            highest = loaded.step


def test_a_save_that_a_kill_cut_short_is_passed_over_without_a_line(tmp_path):
    whole = save(tmp_path, 1)
    half = tmp_path / f".tmp-4711-{checkpoint_name(2)}"
    shutil.copytree(whole, half)
    (half / "complete.json").write_bytes((half / "complete.json").read_bytes()[:40])
    said = []
    assert newest_valid_checkpoint(tmp_path, said.append) == whole and said == []
    half.rename(tmp_path / checkpoint_name(2))
    assert newest_valid_checkpoint(tmp_path, said.append) == whole and len(said) == 1


def test_no_room_on_the_disk_is_an_os_error_and_leaves_nothing_behind(tmp_path):
    save(tmp_path, 1)
    outcome = tmp_path / "outcome.json"

    def save_without_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        large = {"model": {"large": torch.zeros(100_000)}}
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            save_checkpoint(tmp_path / "two", large, {"step": 2})
        except OSError as error:
            outcome.write_text(json.dumps([error.errno, str(error.filename)]))

    os.waitpid(in_child(save_without_room), 0)
    number, name = json.loads(outcome.read_text())
    assert number == errno.EFBIG and name.endswith("model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outcome.json", checkpoint_name(1)]
