"""Settings that change while a run is stopped: a table of what differs, what overrides, what is refused."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from test_05_pretrain import lines, metrics_of_unfinished, notes

from fork_launcher import run_script
from pipeline_lib.checkpoints import (
    checkpoint_name,
    folders,
    load_checkpoint,
    load_state,
    newest_valid_checkpoint,
    save_checkpoint,
)
from pipeline_lib.config.pretrain import ScheduleSettings
from pipeline_lib.pretraining import cost, setup
from pipeline_lib.pretraining.choices import Choices
from pipeline_lib.pretraining.horizon import Horizon, LearningRates
from pipeline_lib.pretraining.schedule import schedule_factor
from pipeline_lib.stage import StageFailure
from pipeline_lib.stage.manifest import Manifest

pytestmark = pytest.mark.slow


@pytest.fixture
def stopped_run(fresh_run, launcher) -> tuple[Path, Path]:
    """A run that was stopped after some steps, begun with flags."""
    flags = ("--max_steps", "20", "--optimizer.lr", "0.02")
    config, run = fresh_run
    ended = launcher.start(
        config, run, *flags, signal_number=signal.SIGTERM, when=lambda: len(metrics_of_unfinished(run)) >= 8
    )
    assert ended.code == 128 + signal.SIGTERM, ended.output
    return config, run


def test_a_flag_that_is_forgotten_on_resume_stays_and_one_that_is_given_overrides(stopped_run, launcher):
    config, run = stopped_run
    before = metrics_of_unfinished(run)
    done = launcher.start(config, run, "--optimizer.lr", "0.005")
    assert done.code == 0, done.output
    table = [line.split("  ") for line in done.output.splitlines() if "overrides" in line or "stays as" in line]
    rows = {row[1].strip(): [cell.strip() for cell in row[2:] if cell.strip()] for row in table}
    assert rows["optimizer.lr"] == ["0.02", "0.005", "overrides"]
    assert rows["max_steps"] == ["20", "null", "not set now: stays as in the checkpoint"]
    written = lines(run / "05_pretrain" / "metrics.jsonl")
    assert [line["step"] for line in written] == list(range(21)) and written[: len(before)] == before
    first = int(re.search(r"continuing from step-(\d+)", done.output)[1]) + 1
    expected = [0.005 * schedule_factor(step, 20, ScheduleSettings()) for step in range(first, 21)]
    assert [line["lr"] for line in written[first:]] == pytest.approx(expected)
    assert any("settings changed after step" in note and "optimizer.lr 0.02 -> 0.005" in note for note in notes(run))


def test_the_start_that_finished_a_run_begun_with_flags_is_up_to_date_when_it_is_typed_again(stopped_run, launcher):
    config, run = stopped_run
    assert launcher.start(config, run).code == 0
    began_with = ("--max_steps", "20", "--optimizer.lr", "0.02")
    for flags in ((), began_with):
        again = launcher.start(config, run, *flags)
        assert again.code == 0 and "up to date" in again.output, again.output
    assert "the training is finished; --force would" in launcher.start(config, run, "--resume_plan").output
    other = launcher.start(config, run, "--optimizer.lr", "0.03", "--plan")
    assert "setting changed: max_steps 20 -> null, optimizer.lr 0.02 -> 0.03" in other.output, other.output
    assert "step 20 of 20: " in launcher.start(config, run, "--trace", "20").output


def test_a_change_of_settings_is_on_the_card_also_when_the_run_is_stopped_once_more_after_it(stopped_run, launcher):
    config, run = stopped_run
    before = len(metrics_of_unfinished(run))
    ended = launcher.start(
        config,
        run,
        "--optimizer.lr",
        "0.005",
        signal_number=signal.SIGTERM,
        when=lambda: len(metrics_of_unfinished(run)) >= before + 2,
    )
    assert ended.code == 128 + signal.SIGTERM, ended.output
    done = launcher.start(config, run)
    assert done.code == 0 and "settings changed after" not in done.output.split("pretrains: done")[0], done.output
    (change,) = [note for note in notes(run) if "settings changed after step" in note]
    assert change.endswith("optimizer.lr 0.02 -> 0.005")
    assert sum(note.startswith("predicted ") for note in notes(run)) == 1


def test_a_run_that_goes_on_as_another_one_is_predicted_again_and_one_that_just_goes_on_is_not(fresh_run, launcher):
    config, run = fresh_run
    path, limit, found = run / "05_pretrain" / "work" / "prediction.json", ("--time_limit_seconds", "0.001"), []
    starts = [("--max_steps", "4"), (), ("--optimizer.lr", "0.01"), ("--max_steps", "20"), ("--micro_batch", "2")]
    for flags in starts:
        ended = launcher.start(config, run, *flags, *limit)
        assert ended.code == 143, ended.output
        told = json.loads(path.read_text())["prediction"]
        found.append((told["basis"].split(":")[0], "expected: " in ended.output))
    short, long = "4 steps of 512 tokens", "20 steps of 512 tokens"
    assert found == [(short, True), (short, False), (short, False), (long, True), (long, True)]
    assert "4 micro-batches" in told["basis"] and "; the first 4 steps took " in told["basis"]


def test_what_was_done_before_counts_as_it_was_in_a_prediction_that_is_made_again(tmp_path, monkeypatch):
    steps, waited = 10, 5.0
    seconds = [{"step": step, "seconds": 3.0 + waited * (step == 2), "text": waited * (step == 2)} for step in range(9)]
    (tmp_path / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in seconds))
    save_checkpoint(tmp_path / "checkpoints" / checkpoint_name(4), {"model": {"w": torch.ones(1)}}, {"step": 4})
    horizon = Horizon(steps, 8, 64, LearningRates(1.0, 1.0, 1.0))
    whole = cost.Prediction(100.0, 1, 1, 1.0, "a probe")
    monkeypatch.setattr(folders, "_fingerprint", lambda path: pytest.fail(f"every byte of {path} was read"))
    made = cost._after_what_is_done(tmp_path, horizon, whole)
    assert made.seconds == pytest.approx(5 * 3.0 + 100.0 * 6 / 10)  # steps 0 to 4, and those after the checkpoint
    assert cost._after_what_is_done(tmp_path / "nothing", horizon, whole) is whole


def test_the_plan_of_a_start_with_other_settings_names_what_lies_there(stopped_run, launcher):
    config, run = stopped_run
    began_with = ("--max_steps", "20", "--optimizer.lr", "0.02")
    for flags, status in (
        (began_with, "would continue unfinished work: it has not finished before"),
        (("--optimizer.lr", "0.005"), "what other settings began lies there, --resume_plan says if it would be"),
        (("--optimizer.lr", "0.005", "--force"), "would run: forced"),
    ):
        planned = launcher.start(config, run, *flags, "--plan")
        assert planned.code == 0 and status in " ".join(planned.output.split()), planned.output


def test_another_batch_is_refused_with_the_stages_that_read_as_many_tokens_as_were_asked_for(stopped_run, launcher):
    config, run = stopped_run
    step = load_checkpoint(newest_valid_checkpoint(run / "05_pretrain" / "work" / "checkpoints")).step
    flags = ("--batch_tokens", "1024", "--max_steps", "null")
    for more in ((), ("--resume_plan",)):
        refused = launcher.start(config, run, *flags, *more)
        assert refused.code == 2 and f"the {step} steps so far read {512 * step:,} tokens" in refused.output
    stages = re.search(r"pretrain.curriculum: (\[.*?\])[;.]", refused.output)[1]
    other = config.with_name("other.yaml")
    other.write_text(config.read_text() + f"  curriculum: {stages}\n")
    done = launcher.start(other, run, "--max_steps", "null")
    assert done.code == 0, done.output
    horizon = load_state(newest_valid_checkpoint(run / "05_pretrain" / "checkpoints"))["horizon"]
    phases = [(phase["first"], phase["last"], phase["sequences"]) for phase in horizon["phases"]]
    end = step + round((24 - step) / 2)
    assert phases == [(1, step, 8), (step + 1, end, 16)]
    assert [line["step"] for line in lines(run / "05_pretrain" / "metrics.jsonl")] == list(range(end + 1))


def test_other_batches_of_a_run_with_stages_are_refused_with_those_that_count_what_was_read(fresh_run, launcher):
    config, run = fresh_run
    written, changed = config.read_text(), run.parent / "changed.yaml"
    changed.write_text(written + "  curriculum: [{until: 0.5, batch_tokens: 256}, {until: 1, batch_tokens: 512}]\n")
    assert launcher.start(changed, run, "--time_limit_seconds", "0.001").code == 143
    changed.write_text(written + "  curriculum: [{until: 0.5, batch_tokens: 512}, {until: 1, batch_tokens: 1024}]\n")
    refused = launcher.start(changed, run)
    assert refused.code == 2 and "read 256 tokens, with these settings they would have read 512" in refused.output
    stages = re.search(r"pretrain.curriculum: (\[.*?\])[;.]", refused.output)[1]
    changed.write_text(written + f"  curriculum: {stages}\n")
    done = launcher.start(changed, run)
    assert done.code == 0, done.output
    horizon = load_state(newest_valid_checkpoint(run / "05_pretrain" / "checkpoints"))["horizon"]
    phases = [(phase["first"], phase["last"], phase["sequences"]) for phase in horizon["phases"]]
    assert phases == [(1, 1, 4), (2, 13, 8), (14, 19, 16)]


def test_a_run_that_goes_on_on_another_kind_of_device_chooses_again_and_says_so(stopped_run, launcher):
    config, run = stopped_run
    path = run / "05_pretrain" / "work" / "choices.json"
    choices = json.loads(path.read_text())
    assert choices["device"] == "cpu"
    path.write_text(json.dumps({**choices, "device": "cuda 9.0", "attention": "flash", "dtype": "bfloat16"}))
    done = launcher.start(config, run)
    assert done.code == 0, done.output
    assert any("goes on on cpu after cuda 9.0" in note for note in notes(run))
    result = Manifest.read(run / "05_pretrain" / "manifest.json").result
    assert (result["attention"], result["dtype"]) == ("documents", "float32")


def test_what_was_chosen_on_another_device_is_not_run_on_this_one():
    for choices, words in (
        (Choices(device="cuda 9.0"), "chosen on cuda 9.0; do it again there, not on cpu"),
        (Choices(attention="flash"), "flash-attn package, which is missing"),
    ):
        with pytest.raises(StageFailure, match=words):
            setup._check_choices(choices, torch.device("cpu"))


def test_the_resume_plan_shows_the_differences_and_the_learning_rates_and_does_nothing(stopped_run, launcher):
    config, run = stopped_run
    work = run / "05_pretrain" / "work"
    untouched = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    shown = launcher.start(config, run, "--resume_plan", "--schedule.name", "cosine", "--tokens", "20480")
    assert shown.code == 0, shown.output
    step = load_checkpoint(newest_valid_checkpoint(work / "checkpoints")).step
    for words in (f"step {step:,} of 20", "schedule.name", "linear", "cosine", "overrides", "  before ", "  after ",
                  f"^ step {step}", "none is repeated, none is skipped"):  # fmt: skip
        assert words in shown.output, (words, shown.output)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == untouched


def test_a_forced_start_that_is_killed_before_its_first_step_costs_no_training(stopped_run, launcher):
    config, run = stopped_run
    folder = run / "05_pretrain"
    trained = newest_valid_checkpoint(folder / "work" / "checkpoints").name
    aside = folder / "superseded" / "checkpoints"
    killed = launcher.start(
        config, run, "--force", when=lambda: aside.exists() and (folder / "work" / "choices.json").exists()
    )
    assert killed.code == -signal.SIGKILL, killed.output
    done = launcher.start(config, run, "--optimizer.lr", "0.005", "--max_steps", "4")
    assert done.code == 0 and "was discarded, nothing in it was finished" in done.output, done.output
    assert newest_valid_checkpoint(aside).name == trained


def test_a_length_that_changed_because_the_cache_has_another_one_first_is_refused(stopped_run, launcher):
    config, run = stopped_run
    config.write_text(config.read_text().replace("contexts: [64]", "contexts: [32, 64]"))
    assert run_script("03_tokenize_and_pack.py", config, run).returncode == 0
    for flags in ([], ["--resume_plan"]):
        refused = launcher.start(config, run, *flags)
        assert refused.code == 2 and "was 64, now 32" in refused.output, refused.output
    config.write_text(config.read_text().replace("contexts: [32, 64]", "contexts: [64, 32]"))
    assert run_script("03_tokenize_and_pack.py", config, run).returncode == 0
    done = launcher.start(config, run)
    assert done.code == 0, done.output


def test_the_resume_plan_of_a_finished_run_says_what_a_start_would_do(fresh_run, launcher):
    config, run = fresh_run
    assert launcher.start(config, run).code == 0
    assert "--force would begin at step 0" in launcher.start(config, run, "--resume_plan").output
    told = launcher.start(config, run, "--resume_plan", "--tokens", "20480").output
    assert "as it would be another now (setting changed: tokens" in told and "a start would begin anew" in told


def test_settings_of_then_and_now_that_contradict_each_other_are_one_line(stopped_run, launcher, tmp_path):
    config, run = stopped_run
    other = tmp_path / "other.yaml"
    other.write_text(config.read_text().replace("tokens: 12288", "epochs: 1"))
    for flags in ([], ["--resume_plan"]):
        refused = launcher.start(other, run, *flags)
        assert refused.code == 2 and "tokens and epochs both set the horizon" in refused.output, refused.output
        assert "Traceback" not in refused.output


def test_what_cannot_be_continued_is_refused_with_both_values_and_nothing_is_touched(stopped_run, launcher):
    config, run = stopped_run
    for flags, words in (
        (["--optimizer.name", "adamw"], "pretrain.optimizer.name muon -> adamw"),
        (["--seed", "7"], "seed 42 -> 7"),
        (["--max_steps", "3"], "beyond the horizon of 3 steps"),
    ):
        refused = launcher.start(config, run, *flags)
        assert refused.code == 2 and words in refused.output and "--force" in refused.output, refused.output
    assert launcher.start(config, run, "--resume_plan", "--seed", "7").code == 2
    done = launcher.start(config, run)
    assert done.code == 0, done.output
    assert [line["step"] for line in lines(run / "05_pretrain" / "metrics.jsonl")] == list(range(21))


def test_a_run_may_end_where_it_stands(fresh_run, launcher):
    config, run = fresh_run
    flags = ("--validation_steps", "1000")
    ended = launcher.start(
        config,
        run,
        *flags,
        "--max_steps",
        "900",
        signal_number=signal.SIGTERM,
        when=lambda: len(metrics_of_unfinished(run)) >= 11,
    )
    assert ended.code == 128 + signal.SIGTERM, ended.output
    step = load_checkpoint(newest_valid_checkpoint(run / "05_pretrain" / "work" / "checkpoints")).step
    assert "val_loss" not in metrics_of_unfinished(run)[-1]
    done = launcher.start(config, run, *flags, "--max_steps", str(step))
    assert done.code == 0, done.output
    written = lines(run / "05_pretrain" / "metrics.jsonl")
    assert [line["step"] for line in written] == list(range(step + 1)) and "val_loss" in written[-1]
    assert Manifest.read(run / "05_pretrain" / "manifest.json").result["steps"] == step
