"""A hundred SIGKILLs at random moments, some inside a save: the end is that of a run nobody disturbed, bit for bit."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from pipeline_lib.checkpoints import load_checkpoint, newest_valid_checkpoint
from pipeline_lib.stage.manifest import Manifest

KILLS = 100
FLAGS = ("--tokens", "204800", "--checkpoint_steps", "5", "--validation_steps", "40", "--keep_every", "50")


def compared(run: Path) -> dict[str, object]:
    """What must not depend on interruptions: final files, metrics, and the last checkpoint's tensors and counters."""
    folder = run / "05_pretrain"
    files = {path.name: path.read_bytes() for path in [folder / "metrics.jsonl", *sorted((folder / "final").iterdir())]}
    last = load_checkpoint(newest_valid_checkpoint(folder / "checkpoints"))
    measured = ("seconds", "choices")  # times, and the speed of this machine
    state = {key: value for key, value in last.state.items() if key not in measured}
    return {"files": files, "state": state, "tensors": last.tensors}


@pytest.mark.long
@pytest.mark.parametrize("background", ["true", "false"])
def test_a_hundred_kills_change_no_bit(packed_run, launcher, tmp_path, background):
    config, chance = packed_run[0], random.Random(11)
    flags = (*FLAGS, "--background_saving", background)
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    shutil.copytree(packed_run[1], undisturbed)
    shutil.copytree(packed_run[1], run)
    done = launcher.start(config, undisturbed, *flags)
    assert done.code == 0, done.output
    work = run / "05_pretrain" / "work"
    kills = inside_a_save = 0
    while kills < KILLS:
        began, saving = time.monotonic(), chance.random() < 0.4
        wait = chance.uniform(0.0, 2.5)

        def moment(began=began, saving=saving, wait=wait) -> bool:
            if time.monotonic() - began < wait:
                return False
            return not saving or any((work / "checkpoints").glob(".tmp-*")) or time.monotonic() - began > wait + 20

        before = sorted(path.name for path in (work / "checkpoints").glob(".tmp-*"))
        ended = launcher.start(config, run, *flags, when=moment)
        if ended.code == 0:
            # It finished before it was killed; the kills that are left are done to a run that begins again.
            assert compared_equal(run, undisturbed)
            shutil.rmtree(run / "05_pretrain")
            continue
        assert ended.code == -signal.SIGKILL, ended.output
        kills += 1
        inside_a_save += sorted(path.name for path in (work / "checkpoints").glob(".tmp-*")) != before
    done = launcher.start(config, run, *flags)
    assert done.code == 0, done.output
    assert compared_equal(run, undisturbed)
    lines = [json.loads(line)["step"] for line in (run / "05_pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(401))
    notes = Manifest.read(run / "05_pretrain" / "manifest.json").notes
    assert not any("bit for bit: no" in note for note in notes), notes
    assert inside_a_save >= 10, inside_a_save
    print(f"{kills} kills, {inside_a_save} of them inside a save, background_saving {background}")


def compared_equal(run: Path, undisturbed: Path) -> bool:
    left, right = compared(run), compared(undisturbed)
    assert left["files"] == right["files"]
    assert left["state"] == right["state"]
    assert left["tensors"].keys() == right["tensors"].keys()
    for group, tensors in right["tensors"].items():
        assert left["tensors"][group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(left["tensors"][group][name], tensor), f"{group}/{name}"
    return True
