"""Stages 07, 09 and 10, stopped at any step by a crash, a signal or SIGKILL, end with the same bytes."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from fork_launcher import Launcher
from pipeline_lib.stage.manifest import MANIFEST, Manifest

STAGES = {"07_sft": "07_sft.py", "09_dpo": "09_dpo.py", "10_lora": "10_lora_finetune.py"}


def digests(run: Path, stage: str) -> dict[str, str]:
    return {name: entry.digest for name, entry in Manifest.read(run / stage / MANIFEST).files.items()}


@pytest.fixture(scope="module")
def whole_run(aligned_run, tmp_path_factory, helpers):
    """Every training stage, uninterrupted."""
    run = Path(shutil.copytree(aligned_run, tmp_path_factory.mktemp("whole") / "run"))
    assert helpers.run_script("10_lora_finetune.py", run) == 0
    return run


@pytest.fixture
def unfinished(whole_run, tmp_path):
    """A copy of the run in which a stage can be done again."""

    def without(stage: str) -> Path:
        run = Path(shutil.copytree(whole_run, tmp_path / stage))
        shutil.rmtree(run / stage)
        return run

    return without


@pytest.fixture
def at_step(monkeypatch):
    """Make something happen right after a step has been recorded."""

    def arrange(step: int, action) -> None:
        from pipeline_lib.post_training.resumable_trainer import ResumableTrainer

        original = ResumableTrainer.write_metrics

        def write_metrics(self, now, logs):
            original(self, now, logs)
            if now == step:
                action()

        monkeypatch.setattr(ResumableTrainer, "write_metrics", write_metrics)

    return arrange


def crash():
    raise MemoryError


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("step", [1, 5])
def test_a_crash_at_any_step_changes_nothing(stage, step, whole_run, unfinished, at_step, helpers, monkeypatch, capsys):
    run = unfinished(stage)
    with monkeypatch.context():
        at_step(step, crash)
        assert helpers.run_script(STAGES[stage], run) == 1
    checkpoints = sorted(path.name for path in (run / stage / "work" / "checkpoints").glob("step-*"))
    assert checkpoints == {1: [], 5: ["step-00000002", "step-00000004"]}[step]
    monkeypatch.undo()
    capsys.readouterr()
    assert helpers.run_script(STAGES[stage], run) == 0
    told = {1: "ended before its first checkpoint: beginning again at step 1", 5: "continuing after step 4"}
    assert told[step] in capsys.readouterr().out
    assert digests(run, stage) == digests(whole_run, stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_saves_leaves_with_its_code_and_changes_nothing(
    stage, whole_run, unfinished, at_step, helpers, monkeypatch
):
    run = unfinished(stage)
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert helpers.run_script(STAGES[stage], run) == 143
    assert (run / stage / "work" / "checkpoints").exists()
    monkeypatch.undo()
    assert helpers.run_script(STAGES[stage], run) == 0
    assert digests(run, stage) == digests(whole_run, stage)


def test_a_signal_during_the_last_step_changes_nothing(whole_run, unfinished, at_step, helpers, monkeypatch):
    run = unfinished("07_sft")
    last = len((whole_run / "07_sft" / "metrics.jsonl").read_text().splitlines())
    at_step(last, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert helpers.run_script("07_sft.py", run) == 130
    monkeypatch.undo()
    assert helpers.run_script("07_sft.py", run) == 0
    assert digests(run, "07_sft") == digests(whole_run, "07_sft")


def test_what_fails_after_the_last_step_leaves_the_training_done(
    whole_run, unfinished, at_step, helpers, monkeypatch, capsys
):
    from pipeline_lib.post_training.supervised import ConversationTrainer

    run, flags, over = unfinished("07_sft"), ("--checkpoint_steps", "1000"), []
    last = len((whole_run / "07_sft" / "metrics.jsonl").read_text().splitlines())
    measure = ConversationTrainer.evaluate_tokens
    at_step(last, lambda: over.append(last))
    monkeypatch.setattr(
        ConversationTrainer, "evaluate_tokens", lambda self, examples: crash() if over else measure(self, examples)
    )
    assert helpers.run_script("07_sft.py", run, *flags) == 1
    monkeypatch.undo()
    capsys.readouterr()
    assert helpers.run_script("07_sft.py", run, *flags) == 0
    assert f"continuing after step {last}" in capsys.readouterr().out
    assert digests(run, "07_sft")["final/model.safetensors"] == digests(whole_run, "07_sft")["final/model.safetensors"]


def test_a_damaged_newest_checkpoint_is_passed_over(whole_run, unfinished, at_step, helpers, monkeypatch, capsys):
    run = unfinished("07_sft")
    at_step(5, crash)
    assert helpers.run_script("07_sft.py", run) == 1
    monkeypatch.undo()
    newest = run / "07_sft" / "work" / "checkpoints" / "step-00000004" / "model.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-5] ^= 1
    newest.write_bytes(damaged)
    assert helpers.run_script("07_sft.py", run) == 0
    assert "skipping a damaged checkpoint" in (out := capsys.readouterr().out) and "continuing after step 2" in out
    assert digests(run, "07_sft") == digests(whole_run, "07_sft")


def test_no_checkpoint_holds_a_pickle(unfinished, at_step, helpers, monkeypatch):
    run = unfinished("07_sft")
    at_step(3, crash)
    assert helpers.run_script("07_sft.py", run) == 1
    files = [path for path in (run / "07_sft" / "work").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jsonl"}
    assert {path.name for path in files} >= {"model.safetensors", "optimizer.safetensors", "state.json"}


@pytest.mark.slow
def test_killed_in_mid_training_the_process_continues_to_identical_files(whole_run, unfinished):
    run = unfinished("09_dpo")
    metrics = run / "09_dpo" / "work" / "metrics.jsonl"
    launcher = Launcher("09_dpo.py")
    killed = launcher.start(
        run / "run.yaml", run, when=lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 3
    )
    assert killed.code == -signal.SIGKILL
    finished = launcher.start(run / "run.yaml", run)
    assert finished.code == 0 and "took over the lock" in finished.output
    assert digests(run, "09_dpo") == digests(whole_run, "09_dpo")
