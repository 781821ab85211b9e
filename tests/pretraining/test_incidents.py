"""A step that was a spike or not finite leaves a bundle, and `--replay` does it again to the last bit."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from tiny_training import SETTINGS, BareStage, make_run, open_data

from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.pretraining import incidents, loop
from pipeline_lib.pretraining.logbook import open_logbook
from pipeline_lib.pretraining.run_state import restore_run
from pipeline_lib.pretraining.spikes import CALM, HISTORY_NEEDED, SpikeDetector
from pipeline_lib.stage import StageFailure

SPIKING = ("--spike_deviations", "0.01", "--tokens", "24576", "--schedule.name", "wsd")
SPIKING += ("--optimizer.lr", "0.5", "--optimizer.head_lr", "1", "--optimizer.embedding_lr", "5")


def metrics(run, finished: bool) -> list[dict]:
    folder = run / "05_pretrain" / ("" if finished else "work")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_diverged_step_is_replayed_bit_for_bit_and_names_its_documents(fresh_run, launcher):
    config, run = fresh_run
    done = launcher.start(config, run, "--optimizer.lr", "1e30")
    assert done.code == 1 and "look at the step with --replay" in done.output, done.output
    step = len(metrics(run, finished=False))
    replayed = launcher.start(config, run, "--replay", str(step))
    assert replayed.code == 0, replayed.output
    assert f"step {step}: not finite" in replayed.output
    assert "the recorded one, read again" in replayed.output
    assert replayed.output.count("bit for bit the same") == 2
    known = {document.id for document in PackedCache(run / "03_packed").documents()}
    named = set(re.findall(r" tokens of (\S+) ", replayed.output))
    assert named and named <= known


@pytest.mark.slow
def test_the_way_back_from_a_diverged_step_is_the_one_that_is_named(fresh_run, launcher):
    config, run = fresh_run
    stopped = launcher.start(config, run, "--keep_checkpoints", "1", "--time_limit_seconds", "0.001")
    assert stopped.code == 143, stopped.output
    diverged = launcher.start(config, run, "--optimizer.lr", "1e30")
    lower = launcher.start(config, run, "--optimizer.lr", "0.01")
    for ended in (diverged, lower):
        assert ended.code == 1 and "diverged at step 3" in ended.output, ended.output
        assert "alone ends here again" in ended.output and "goes back to step 1, then lower" in ended.output
    shutil.rmtree(re.search(r"first remove (\S+), so", lower.output)[1])
    done = launcher.start(config, run, "--optimizer.lr", "0.01")
    assert done.code == 0 and "continuing from step-00000001" in done.output, done.output
    assert all(math.isfinite(line["loss"]) for line in metrics(run, finished=True)[1:])


@pytest.mark.slow
def test_a_spike_leaves_a_bundle_of_the_state_before_it_and_training_goes_on(fresh_run, launcher):
    config, run = fresh_run
    done = launcher.start(config, run, *SPIKING, "--keep_incidents", "2")
    assert done.code == 0, done.output
    spikes = [line for line in metrics(run, finished=True) if "spikes" in line]
    assert spikes
    steps = [line["step"] for line in spikes]
    begins = [step for step in steps if not any(step - CALM <= other < step for other in steps)]
    assert len(begins) < len(steps)  # some of the spikes belong to the episode of the one before
    kept = sorted(path.name for path in (run / "05_pretrain" / "incidents").iterdir())
    assert kept == [f"step-{step:08d}" for step in begins][-2:]
    assert "; bundles of incidents take " in done.output
    replayed = launcher.start(config, run, "--replay", str(begins[-1]))
    assert replayed.code == 0, replayed.output
    [loss] = [line["loss"] for line in spikes if line["step"] == begins[-1]]
    assert f"loss      {loss} recorded" in replayed.output
    missing = launcher.start(config, run, "--replay", "1")
    assert missing.code == 2 and "no bundle of step 1" in missing.output and "Traceback" not in missing.output


def rising(run, batch, settings, before_update):
    """Stands for a step: the loss rises at step 21 and stays there."""
    loss = (3.0 if run.step < 20 else 9.0) + 0.01 * (run.step % 5)
    before_update(loss, 1.0)
    run.step += 1
    return loss, 1.0


def test_a_loss_that_rises_and_stays_leaves_one_bundle_that_of_its_first_step(packed_run, monkeypatch, tmp_path):
    settings = SETTINGS.model_copy(update={"tokens": 84 * 512, "tensorboard": False, "validation_tokens": 500})
    run, written = make_run(settings), []
    run.spikes = SpikeDetector(settings.spike_deviations)

    save = incidents.save_checkpoint
    monkeypatch.setattr(incidents, "save_checkpoint", lambda *bundle: (written.append(bundle[0].name), save(*bundle)))
    monkeypatch.setattr(loop, "optimizer_step", rising)
    with open_logbook(tmp_path, run, False, settings, "test") as book:
        loop.train(BareStage(settings, tmp_path), run, open_data(packed_run[1] / "03_packed"), book)
    assert written == ["step-00000021"] == [path.name for path in (tmp_path / "incidents").iterdir()]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 85
    assert [line["step"] for line in lines if "spikes" in line] == list(range(21, 21 + HISTORY_NEEDED))


@pytest.mark.parametrize(
    ("error", "ends_as", "words"),
    [
        (OSError(28, "No space left on device"), OSError, "No space left"),
        (MemoryError(), StageFailure, "out of memory at step 21, which is a spike, while its bundle was written"),
    ],
)
def test_a_bundle_that_could_not_be_written_is_written_when_the_run_goes_on(
    packed_run, monkeypatch, tmp_path, error, ends_as, words
):
    settings = SETTINGS.model_copy(update={"tokens": 24 * 512, "tensorboard": False, "validation_tokens": 500})
    data = open_data(packed_run[1] / "03_packed")

    def start(work: Path, resumed: bool) -> SpikeDetector:
        run = make_run(settings)
        run.spikes = SpikeDetector(settings.spike_deviations)
        assert (restore_run(run, work / "checkpoints", print) is not None) == resumed
        with open_logbook(work, run, resumed, settings, "test") as book:
            loop.train(BareStage(settings, work), run, data, book)
        return run.spikes

    def fail(*_):
        raise error

    monkeypatch.setattr(loop, "optimizer_step", rising)
    whole = start(tmp_path / "whole", resumed=False)
    with monkeypatch.context() as patch:
        patch.setattr(incidents, "save_checkpoint", fail)
        with pytest.raises(ends_as, match=words):
            start(tmp_path / "failed", resumed=False)
    assert start(tmp_path / "failed", resumed=True).state() == whole.state()
    for work in ("whole", "failed"):
        assert [path.name for path in (tmp_path / work / "incidents").iterdir()] == ["step-00000021"]
    assert (tmp_path / "failed" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_spike_of_two_processes_is_replayed_by_one_within_a_tolerance_that_is_said(fresh_run, launcher):
    config, run = fresh_run
    # Four sequences each in pieces of three are other pieces than one process makes of eight, so the last bits differ.
    done = launcher.start(config, run, *SPIKING, "--keep_incidents", "1", "--micro_batch", "3", processes=2)
    assert done.codes == [0, 0], done.output
    [bundle] = (run / "05_pretrain" / "incidents").iterdir()
    replayed = launcher.start(config, run, "--replay", bundle.name.removeprefix("step-"))
    assert replayed.code == 0, replayed.output
    assert "recorded by 2 processes" in replayed.output
    assert replayed.output.count("the same within 1e-05") == 2 and "bit for bit the same" not in replayed.output


@pytest.mark.slow
def test_the_bundle_just_written_stays_when_the_run_went_back_before_older_ones(fresh_run, launcher):
    config, run = fresh_run
    abandoned, made = run / "05_pretrain" / "work" / "incidents" / "step-00000900", []
    flags = ("--optimizer.lr", "1e30", "--keep_incidents", "1", "--checkpoint_steps", "1")

    def put_one_there() -> bool:
        if abandoned.parent.parent.is_dir() and not made:
            abandoned.mkdir(parents=True)
            made.append(abandoned)
        return False  # no signal

    done = launcher.start(config, run, *flags, when=put_one_there)
    assert done.code == 1, done.output
    step = int(re.search(r"--replay (\d+)", done.output)[1])
    assert [path.name for path in abandoned.parent.iterdir()] == [f"step-{step:08d}"]


@pytest.mark.slow
def test_weights_that_are_not_finite_from_the_start_are_named(packed_run, launcher, tmp_path):
    from safetensors.torch import load_file, save_file

    from pipeline_lib.stage.manifest import Manifest
    from pipeline_lib.stage.stage import describe_files

    run = tmp_path / "run"
    shutil.copytree(packed_run[1], run)
    weights = run / "04_init" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    manifest = Manifest.read(run / "04_init" / "manifest.json")
    manifest.files.update(describe_files(weights, "model.safetensors"))
    manifest.write(run / "04_init" / "manifest.json")
    done = launcher.start(packed_run[0], run)
    assert done.code == 1 and "Traceback" not in done.output, done.output
    assert "first model.norm.weight" in done.output and "04_init_model.py --force" in done.output, done.output


@pytest.mark.slow
def test_a_checkpoint_of_another_architecture_is_refused_by_name_and_shapes(fresh_run, launcher):
    from pipeline_lib.checkpoints import load_checkpoint, newest_valid_checkpoint, save_checkpoint

    config, run = fresh_run
    ended = launcher.start(config, run, "--time_limit_seconds", "0.001")
    assert ended.code == 143, ended.output
    newest = newest_valid_checkpoint(run / "05_pretrain" / "work" / "checkpoints")
    loaded = load_checkpoint(newest)
    loaded.tensors["model"]["model.norm.weight"] = loaded.tensors["model"]["model.norm.weight"][:16].clone()
    save_checkpoint(newest, loaded.tensors, loaded.state)
    refused = launcher.start(config, run)
    assert refused.code == 1 and "another architecture: model.norm.weight is (16,) in it and (32,)" in refused.output
    assert "Traceback" not in refused.output
