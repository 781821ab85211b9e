"""Validation during stages 07, 09 and 10: it disturbs nothing, its figures are true, and the best weights survive."""

import gc
import json
import os
import shutil
import signal
from pathlib import Path

import numpy
import pytest

from fork_launcher import Launcher
from pipeline_lib.config.sft import SftSettings
from pipeline_lib.stage.manifest import MANIFEST, Manifest

SCRIPTS = {"07_sft": "07_sft.py", "09_dpo": "09_dpo.py", "10_lora": "10_lora_finetune.py"}
FINAL = {"07_sft": "final", "09_dpo": "final", "10_lora": "adapter"}
COARSE = ["--schedule", "constant", "--checkpoint_steps", "3"]
FLAGS = {
    "07_sft": [*COARSE, "--learning_rate", "0.1", "--epochs", "3"],
    "09_dpo": [*COARSE, "--learning_rate", "0.01", "--loss", "ipo", "--beta", "0.5"],
    "10_lora": [*COARSE, "--learning_rate", "0.05", "--epochs", "3"],
}
"""Such that the last validation is not the best one, and that checkpoints and validations take turns."""
KEEP_BEST = ["--eval_steps", "2", "--keep_best"]

every_stage = pytest.mark.parametrize("stage", SCRIPTS)


def rows(run: Path, stage: str, validation: bool) -> list[dict]:
    folder = run / stage
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if ("val_loss" in line) == validation]


def files(run: Path, stage: str) -> dict[str, str]:
    return {name: entry.digest for name, entry in Manifest.read(run / stage / MANIFEST).files.items()}


def result(run: Path, stage: str) -> dict:
    return Manifest.read(run / stage / MANIFEST).result


@pytest.fixture(scope="module")
def before_stage(aligned_run, tmp_path_factory):
    """Copy the run that a stage starts from, without that stage."""

    def copy(stage: str) -> Path:
        run = Path(shutil.copytree(aligned_run, tmp_path_factory.mktemp(stage) / "run"))
        shutil.rmtree(run / stage, ignore_errors=True)
        return run

    return copy


@pytest.fixture(scope="module")
def finished(before_stage, helpers):
    """Return a run in which the stage has been done without an interruption, with further flags; each done once."""
    made: dict[tuple, Path] = {}

    def make(stage: str, *flags: str) -> Path:
        if (stage, flags) not in made:
            run = before_stage(stage)
            assert helpers.run_script(SCRIPTS[stage], run, *FLAGS[stage], *flags) == 0
            made[stage, flags] = run
        return made[stage, flags]

    return make


def crash(*_, **__):
    raise MemoryError


# -- what it measures, and what it leaves alone ----------------------------------------------------------------------


@every_stage
def test_validations_change_neither_weights_nor_steps(stage, finished):
    """Stage 10 has dropout, whose masks a validation could shift."""
    without, with_them = finished(stage), finished(stage, "--eval_steps", "2")
    model = f"{FINAL[stage]}/{'adapter_' if stage == '10_lora' else ''}model.safetensors"
    assert files(with_them, stage)[model] == files(without, stage)[model]
    assert rows(with_them, stage, validation=False) == rows(without, stage, validation=False)
    assert rows(without, stage, validation=True) == [] and "best" not in result(without, stage)
    assert result(with_them, stage)["after"] == result(without, stage)["after"]
    assert result(with_them, stage)["final_model"] == "last"


@pytest.fixture
def measured_apart(before_stage, helpers, monkeypatch):
    """Stop a stage in its last step with a checkpoint of each; return the checkpoints and what is held out."""

    def stop(stage: str):
        from pipeline_lib.checkpoints import valid_checkpoints
        from pipeline_lib.post_training.preference import PairTrainer
        from pipeline_lib.post_training.resumable_trainer import ResumableTrainer
        from pipeline_lib.post_training.supervised import ConversationTrainer

        held_out = []
        for kind, name in ((ConversationTrainer, "evaluate_tokens"), (PairTrainer, "measure")):
            measure = getattr(kind, name)
            monkeypatch.setattr(
                kind, name, lambda self, *given, measure=measure: held_out.append(given) or measure(self, *given)
            )
        monkeypatch.setattr(ResumableTrainer, "conclude", crash)
        run = before_stage(stage)
        flags = [*FLAGS[stage], *KEEP_BEST, "--checkpoint_steps", "1", "--keep_checkpoints", "1000"]
        assert helpers.run_script(SCRIPTS[stage], run, *flags) == 1
        monkeypatch.undo()
        return dict(valid_checkpoints(run / stage / "work" / "checkpoints")), held_out[-1]

    return stop


def model_at(run: Path, stage: str, checkpoint: Path):
    """The model with the weights of a checkpoint, by transformers and PEFT."""
    import torch

    from pipeline_lib.checkpoints import load_checkpoint
    from pipeline_lib.config.lora import LoraSettings
    from pipeline_lib.post_training.adapters import load_adapted
    from pipeline_lib.post_training.training_setup import load_model

    if stage == "10_lora":
        model = load_adapted(run / "09_dpo" / "final", LoraSettings(rank=4), "float32")
    else:
        model = load_model(run / {"07_sft": "05_pretrain", "09_dpo": "07_sft"}[stage] / "final")
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    stored = load_checkpoint(checkpoint).tensors["model"]
    assert weights.keys() == stored.keys()
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(stored[name])
    return model.eval()


def answer_logps(model, pair: dict) -> list[float]:
    """log p(chosen | prompt) and log p(rejected | prompt) by the definition."""
    import torch

    found = []
    for side in ("chosen_ids", "rejected_ids"):
        ids, answer = torch.tensor([pair["prompt_ids"] + pair[side]]), pair[side]
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0].log_softmax(-1)
        start = len(pair["prompt_ids"]) - 1
        found.append(sum(logps[start + place, token].item() for place, token in enumerate(answer)))
    return found


def loss_by_definition(stage: str, model, held_out: tuple) -> float:
    """Mean loss of all assistant tokens, or the mean of IPO's loss (per token, beta 0.5), each example alone."""
    import torch

    if stage == "09_dpo":
        dataset, reference = held_out
        losses = []
        for pair, at_start in zip(dataset, reference, strict=True):
            ratios = numpy.array(answer_logps(model, pair)) - at_start
            means = ratios / [len(pair["chosen_ids"]), len(pair["rejected_ids"])]
            losses.append((means[0] - means[1] - 1 / (2 * 0.5)) ** 2)
        return float(numpy.mean(losses))
    total = tokens = 0
    for row in held_out[0].table.to_pylist():
        labels = torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        for place in torch.nonzero(labels != -100).flatten().tolist():
            total, tokens = total - logps[place, labels[place]].item(), tokens + 1
    return total / tokens


@every_stage
def test_each_validation_is_what_that_steps_checkpoint_scores_alone(stage, finished, measured_apart, aligned_run):
    checkpoints, held_out = measured_apart(stage)
    written = {row["step"]: row["val_loss"] for row in rows(finished(stage, *KEEP_BEST), stage, validation=True)}
    steps = result(finished(stage), stage)["steps"]
    assert list(written) == sorted({*range(2, steps, 2), steps}), "the last step is always validated"
    for step in (2, 6, steps):
        model = model_at(aligned_run, stage, checkpoints[step])
        assert written[step] == pytest.approx(loss_by_definition(stage, model, held_out), rel=1e-4)


@every_stage
def test_the_final_model_is_the_best_one(stage, finished, measured_apart, aligned_run, capsys):
    from safetensors.torch import load_file

    from pipeline_lib.checkpoints import load_checkpoint

    run = finished(stage, *KEEP_BEST)
    found, written = result(run, stage), rows(run, stage, validation=True)
    best, last = min(written, key=lambda row: row["val_loss"]), written[-1]
    assert best["step"] < last["step"], "the settings of this test make the last validation worse than another"
    assert found["final_model"] == "best"
    assert found["best"] == {
        "step": best["step"], "val_loss": best["val_loss"], "last_step": last["step"], "last_val_loss": last["val_loss"]
    }  # fmt: skip
    assert {"step": best["step"], **found["after"]} == best
    checkpoints, _ = measured_apart(stage)
    kept = load_checkpoint(checkpoints[best["step"]]).tensors["model"]
    folder = run / stage / FINAL[stage]
    if stage == "10_lora":
        final = load_file(folder / "adapter_model.safetensors")
        final = {name.replace(".weight", ".default.weight"): weight for name, weight in final.items()}
    else:
        final = load_file(folder / "model.safetensors")
    assert final.keys() == kept.keys() and all(final[name].equal(kept[name]) for name in kept)
    assert files(run, stage) != files(finished(stage, "--eval_steps", "2"), stage)


def test_the_card_and_the_curve_show_the_validations(before_stage, helpers, capsys):
    from pipeline_lib.reporting.plots import training_curve

    run = before_stage("09_dpo")
    capsys.readouterr()
    assert helpers.run_script("09_dpo.py", run, *FLAGS["09_dpo"], *KEEP_BEST) == 0
    out, best = capsys.readouterr().out, result(run, "09_dpo")["best"]
    words = (
        f"best         last_step 10, last_val_loss {best['last_val_loss']:.4g}, step 8, val_loss {best['val_loss']:.4g}"
    )
    assert words in out and "final model  best" in out
    assert f"step 8: validation loss {best['val_loss']:.4g}, the best so far\n" in out
    assert f"step 10: validation loss {best['last_val_loss']:.4g}\n" in out
    assert "val loss" in training_curve(run / "09_dpo" / "metrics.jsonl", "x")


def test_of_two_equal_validations_the_earlier_one_is_the_best(before_stage, helpers):
    run = before_stage("09_dpo")
    flags = ["--loss", "hinge", "--beta", "0.5", "--learning_rate", "0.3", "--schedule", "constant"]
    assert helpers.run_script("09_dpo.py", run, *flags, *KEEP_BEST) == 0
    written = rows(run, "09_dpo", validation=True)
    assert {row["val_loss"] for row in written} == {0.0} and len(written) == 5
    assert result(run, "09_dpo")["best"]["step"] == 2


def test_a_validation_that_does_not_fit_into_memory_is_done_in_pieces(before_stage, finished, helpers, monkeypatch):
    from pipeline_lib.post_training.supervised import ConversationTrainer

    expected = finished("07_sft", *KEEP_BEST)  # before memory is limited
    gc.freeze()  # each time memory runs out garbage is collected, also in all that TRL's import made
    make = ConversationTrainer.__init__

    def limited(self, *arguments, **keywords):
        make(self, *arguments, **keywords)
        forward = self.model.forward

        def call(**inputs):
            if not self.model.training and self.state.global_step and len(inputs["input_ids"]) > 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
            return forward(**inputs)

        self.model.forward = call

    monkeypatch.setattr(ConversationTrainer, "__init__", limited)
    run = before_stage("07_sft")
    assert helpers.run_script("07_sft.py", run, *FLAGS["07_sft"], *KEEP_BEST) == 0
    assert any("held-out examples: memory ran out" in note for note in Manifest.read(run / "07_sft" / MANIFEST).notes)
    whole = rows(expected, "07_sft", validation=True)
    for row, written in zip(rows(run, "07_sft", validation=True), whole, strict=True):
        assert row == pytest.approx(written, rel=1e-5)
    gc.unfreeze()
    name = "final/model.safetensors"
    assert files(run, "07_sft")[name] == files(expected, "07_sft")[name]


# -- settings --------------------------------------------------------------------------------------------------------


def test_settings_that_cannot_be_honoured_say_what_to_set():
    with pytest.raises(ValueError, match="keep_best compares validations during training, .*; set eval_steps"):
        SftSettings(keep_best=True)
    with pytest.raises(ValueError, match="eval_steps validates on held-out examples; set val_examples to 1 or more"):
        SftSettings(eval_steps=5, val_examples=0)
    assert SftSettings().eval_steps is None and not SftSettings().keep_best


@every_stage
def test_validation_without_anything_held_out_is_a_user_error(stage, aligned_run, tmp_path, helpers, capsys):
    run = Path(shutil.copytree(aligned_run, tmp_path / "run"))
    flags, share = [], {"07_sft": "sft_data", "09_dpo": "dpo_data", "10_lora": "lora"}[stage]
    if stage == "10_lora":
        flags = ["--val_fraction", "0"]
    else:
        prepare = {"07_sft": ["06_prepare_sft_data.py", "06_prepare_reasoning_data.py"]}
        for script in prepare.get(stage, ["08_prepare_dpo_data.py"]):
            assert helpers.run_script(script, run, "--val_fraction", "0") == 0
    section = stage.partition("_")[2]
    told = (
        f"{section}.eval_steps is 2, but no example is held out; raise {share}.val_fraction, or set"
        f" {section}.eval_steps to null"
    )
    for plan in ([], ["--plan"]):
        capsys.readouterr()
        assert helpers.run_script(SCRIPTS[stage], run, *flags, "--eval_steps", "2", *plan) == 2
        assert told in capsys.readouterr().err


def test_a_plan_is_not_refused_where_the_run_holds_out_a_single_example(before_stage, helpers, capsys):
    run, share = before_stage("10_lora"), ["--val_fraction", "1e-6", "--eval_steps", "2"]
    capsys.readouterr()
    assert helpers.run_script(SCRIPTS["10_lora"], run, *share, "--plan") == 0
    assert " validations of 1 example\n" in capsys.readouterr().out
    assert helpers.run_script(SCRIPTS["10_lora"], run, *share) == 0


def test_the_plan_counts_validations_and_the_best_weights(aligned_run):
    from pipeline_lib.config.run import RunConfig
    from pipeline_lib.post_training.training_probe import estimate_training
    from pipeline_lib.stage import Stage
    from pipeline_lib.stage.catalog import BY_NAME

    def plan(**settings):
        config = RunConfig(sft={"micro_batch": 2, "max_length": 96, "max_steps": 10, "val_examples": 50, **settings})
        stage = Stage(BY_NAME["07_sft"], config, aligned_run, 1, "")
        folder = stage.input("05_pretrain").folder("final")
        return estimate_training(stage, folder, 8, 40, 1, held_out=70)

    without, with_them = plan(), plan(eval_steps=3, keep_best=True)
    assert "; 4 validations of 50 examples" in with_them.basis and "validations" not in without.basis
    assert with_them.disk_bytes - without.disk_bytes == 3 * 4 * 33_440, "in each of two checkpoints and the next one"


def during_validation(monkeypatch, step: int, forward) -> None:
    """Do the forward passes of the validation after that step by forward(original, **inputs) instead."""
    from pipeline_lib.post_training.resumable_trainer import ResumableTrainer

    train = ResumableTrainer.train_resumably

    def with_forward(self, *arguments):
        original = self.model.forward

        def call(**inputs):
            here = not self.model.training and self.state.global_step == step
            return forward(original, **inputs) if here else original(**inputs)

        self.model.forward = call
        return train(self, *arguments)

    monkeypatch.setattr(ResumableTrainer, "train_resumably", with_forward)


def test_the_plan_on_a_gpu_names_the_best_weights_apart_from_its_memory(aligned_run, monkeypatch):
    """The figure for memory is the GPU's, and the copy is not there."""
    import torch

    from pipeline_lib.config.run import RunConfig
    from pipeline_lib.post_training import training_probe
    from pipeline_lib.stage import Stage
    from pipeline_lib.stage.catalog import BY_NAME

    class PassesOnAGpu:
        device = torch.device("cuda")

        def __init__(self, *_):
            pass

        def seconds(self, rows, length):
            return 1.0

        def peak_bytes(self, rows, length):
            return 10**12

    def plan(keep_best: bool):
        config = RunConfig(sft={"max_length": 96, "eval_steps": 2, "keep_best": keep_best})
        stage = Stage(BY_NAME["07_sft"], config, aligned_run, 1, "")
        folder = stage.input("05_pretrain").folder("final")
        return training_probe.estimate_training(stage, folder, 8, 40, 1, held_out=70)

    monkeypatch.setattr(training_probe, "TrainingPasses", PassesOnAGpu)
    last, best = plan(keep_best=False), plan(keep_best=True)
    assert best.memory_bytes == last.memory_bytes == 10**12 + 2 * 4 * 33_440
    assert "; keep_best takes 133.8 kB of host memory" in best.basis and "host" not in last.basis


# -- killed and continued --------------------------------------------------------------------------------------------


def fail_at(monkeypatch, owner, name: str, call: int, action=crash) -> None:
    """Let something happen instead of the n-th call of a method, after which the others are as they were."""
    original, calls = getattr(owner, name), []

    def counted(*arguments, **keywords):
        calls.append(name)
        return (action if len(calls) == call else original)(*arguments, **keywords)

    monkeypatch.setattr(owner, name, counted)


WITHIN = "within a validation whose checkpoint was due"
LONG = "between a long validation and its checkpoint"


def places_of(monkeypatch, place: str) -> None:
    """Arrange a crash at a place where a kill could part the validations from the rest of the state."""
    from pipeline_lib.checkpoints import folders
    from pipeline_lib.post_training.resumable_trainer import ResumableTrainer
    from pipeline_lib.post_training.validations import Validations

    if place == WITHIN:  # step 6
        fail_at(monkeypatch, Validations, "record", 3)
    elif place == "before a checkpoint that a validation follows":  # step 6, too
        fail_at(monkeypatch, ResumableTrainer, "_save_checkpoint", 2)
    elif place == LONG:  # steps 1, 2 before and after its validation, 3, 4 before and after
        fail_at(monkeypatch, ResumableTrainer, "_save_checkpoint", 6)
    elif place == "while the best weights are written":
        write = folders.write_tensor_file

        def torn(path, named):
            if path.name == "best.safetensors":
                path.write_bytes(b"half of it")
                raise MemoryError
            return write(path, named)

        monkeypatch.setattr(folders, "write_tensor_file", torn)
    else:
        fail_at(monkeypatch, ResumableTrainer, "conclude", 1)


@every_stage
@pytest.mark.parametrize(
    "place",
    [
        WITHIN,
        "before a checkpoint that a validation follows",
        LONG,
        "while the best weights are written",
        "after the last step",
    ],
)
def test_a_crash_at_any_place_changes_nothing(stage, place, before_stage, finished, helpers, monkeypatch):
    run, flags = before_stage(stage), [*FLAGS[stage], *KEEP_BEST]
    if place == LONG:
        flags += ["--checkpoint_seconds", "0"]
    with monkeypatch.context() as patched:
        places_of(patched, place)
        assert helpers.run_script(SCRIPTS[stage], run, *flags) == 1
    if place in (WITHIN, LONG):
        assert newest_checkpoint(run, stage) == {WITHIN: (6, 4), LONG: (4, 2)}[place]
    assert helpers.run_script(SCRIPTS[stage], run, *flags) == 0
    assert files(run, stage) == files(finished(stage, *KEEP_BEST), stage)
    assert result(run, stage) == result(finished(stage, *KEEP_BEST), stage)


def newest_checkpoint(run: Path, stage: str) -> tuple[int, int]:
    """The step of the newest checkpoint and that of the last validation it knows; 0 for none."""
    path = max((run / stage / "work" / "checkpoints").glob("step-*"))
    state = json.loads((path / "state.json").read_text())
    return state["step"], (state["validations"]["last"] or {"step": 0})["step"]


@pytest.fixture
def events(monkeypatch):
    """What happens in training by a clock of which a step takes 250 s and a validation as long as is set, in order."""
    from types import SimpleNamespace

    from pipeline_lib.post_training import resumable_trainer
    from pipeline_lib.post_training.resumable_trainer import ResumableTrainer
    from pipeline_lib.post_training.validations import Validations

    found = SimpleNamespace(clock=0.0, validation=0.0, listed=[])
    save, finish, record = ResumableTrainer._save_checkpoint, ResumableTrainer.finish_step, Validations.record

    def saved(self, *arguments):
        found.listed.append(f"saved {self.state.global_step}")
        save(self, *arguments)

    def finished(self):
        found.clock += 250
        finish(self)

    def recorded(self, step, *arguments):
        found.clock += found.validation
        found.listed.append(f"validated {step}")
        record(self, step, *arguments)

    monkeypatch.setattr(resumable_trainer, "time", SimpleNamespace(monotonic=lambda: found.clock))
    monkeypatch.setattr(ResumableTrainer, "_save_checkpoint", saved)
    monkeypatch.setattr(ResumableTrainer, "finish_step", finished)
    monkeypatch.setattr(Validations, "record", recorded)
    return found


BY_TIME = ["--checkpoint_steps", "1000", "--checkpoint_seconds", "600", "--eval_steps", "3", "--max_steps", "7"]


def test_a_checkpoint_that_is_due_comes_before_a_validation_and_again_after_a_long_one(before_stage, helpers, events):
    run, events.validation = before_stage("09_dpo"), 10
    assert helpers.run_script("09_dpo.py", run, *FLAGS["09_dpo"], *BY_TIME) == 0
    short = ["saved 3", "validated 3", "saved 6", "validated 6", "saved 7", "validated 7"]
    assert events.listed == short
    run, events.validation, events.listed[:] = before_stage("09_dpo"), 900, []
    assert helpers.run_script("09_dpo.py", run, *FLAGS["09_dpo"], *BY_TIME) == 0
    long = [
        "saved 3", "validated 3", "saved 3", "saved 6", "validated 6", "saved 6", "saved 7", "validated 7", "saved 7"
    ]  # fmt: skip
    assert events.listed == long


@every_stage
def test_a_checkpoint_that_becomes_due_within_a_validation_is_taken_there(
    stage, before_stage, finished, helpers, monkeypatch, events
):
    """Step 2 ends after 500 s, and the first batch of its validation takes 200 s: 700 s, of which 600 may be lost."""
    from pipeline_lib.post_training.validations import Validations

    def slow(original, **inputs):
        events.clock += 200
        return original(**inputs)

    run, by_time = before_stage(stage), [*FLAGS[stage], *KEEP_BEST, "--checkpoint_steps", "1000"]
    with monkeypatch.context() as patched:
        during_validation(patched, 2, slow)
        fail_at(patched, Validations, "record", 1)
        assert helpers.run_script(SCRIPTS[stage], run, *by_time) == 1
    assert events.listed == ["saved 2"] and newest_checkpoint(run, stage) == (2, 0)
    assert helpers.run_script(SCRIPTS[stage], run, *by_time) == 0
    assert files(run, stage) == files(finished(stage, *KEEP_BEST), stage)


def test_a_long_validation_that_was_left_to_do_is_saved_after_the_next_step(before_stage, helpers, monkeypatch, events):
    from pipeline_lib.post_training.validations import Validations

    run, events.validation = before_stage("09_dpo"), 900
    with monkeypatch.context() as patched:
        fail_at(patched, Validations, "record", 1)
        assert helpers.run_script("09_dpo.py", run, *FLAGS["09_dpo"], *BY_TIME) == 1
    assert events.listed == ["saved 3"]
    assert helpers.run_script("09_dpo.py", run, *FLAGS["09_dpo"], *BY_TIME) == 0
    assert events.listed[1:4] == ["validated 3", "saved 4", "validated 6"]


@every_stage
def test_a_validation_that_does_not_fit_at_all_saves_the_step_and_the_next_start_begins_with_it(
    stage, before_stage, finished, helpers, monkeypatch, capsys
):
    def too_large(original, **inputs):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    run, flags = before_stage(stage), [*FLAGS[stage], *KEEP_BEST]
    gc.freeze()  # each time memory runs out garbage is collected, also in all that TRL's import made
    with monkeypatch.context() as patched:
        during_validation(patched, 4, too_large)
        capsys.readouterr()
        assert helpers.run_script(SCRIPTS[stage], run, *flags) == 1
    gc.unfreeze()
    told = capsys.readouterr()
    assert "the state after step 4 was saved before the error" in told.out and "not even one" in told.err
    assert newest_checkpoint(run, stage) == (4, 2)
    assert helpers.run_script(SCRIPTS[stage], run, *flags) == 0
    assert files(run, stage) == files(finished(stage, *KEEP_BEST), stage)


@every_stage
def test_a_validation_whose_loss_is_not_finite_saves_nothing(stage, before_stage, helpers, monkeypatch, capsys):
    def diverged(original, **inputs):
        outputs = original(**inputs)
        outputs.log_probs = outputs.log_probs * float("nan")
        return outputs

    run = before_stage(stage)
    with monkeypatch.context() as patched:
        during_validation(patched, 4, diverged)
        capsys.readouterr()
        assert helpers.run_script(SCRIPTS[stage], run, *FLAGS[stage], *KEEP_BEST) == 1
    assert "lower learning_rate" in capsys.readouterr().err
    assert newest_checkpoint(run, stage) == (3, 2)


@every_stage
@pytest.mark.parametrize("nth", [2, -1])
def test_a_signal_during_a_validation_saves_the_step_and_the_next_start_begins_with_it(
    stage, nth, before_stage, finished, helpers, monkeypatch
):
    """The second validation, and the one after the last step; what the next start does is lost once again."""
    from pipeline_lib.post_training.preference import PairTrainer
    from pipeline_lib.post_training.resumable_trainer import ResumableTrainer
    from pipeline_lib.post_training.supervised import ConversationTrainer

    run, flags, whole = before_stage(stage), [*FLAGS[stage], *KEEP_BEST], finished(stage, *KEEP_BEST)
    step = [row["step"] for row in rows(whole, stage, validation=True)][nth - 1 if nth > 0 else nth]
    with monkeypatch.context() as patched:
        for kind, name in ((ConversationTrainer, "evaluate_tokens"), (PairTrainer, "measure")):
            measure = getattr(kind, name)

            def signalled(self, *given, measure=measure):
                if self.state.global_step == step:
                    os.kill(os.getpid(), signal.SIGTERM)
                return measure(self, *given)

            patched.setattr(kind, name, signalled)
        assert helpers.run_script(SCRIPTS[stage], run, *flags) == 143
    assert (run / stage / "work" / "checkpoints" / f"step-{step:08d}").is_dir()
    saved = json.loads((run / stage / "work" / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
    assert saved["validations"]["last"]["step"] < step
    with monkeypatch.context() as patched:
        fail_at(patched, ResumableTrainer, "write_metrics" if nth > 0 else "conclude", 1)
        assert helpers.run_script(SCRIPTS[stage], run, *flags) == 1
    lines = (run / stage / "work" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == step and "val_loss" in lines[-1], "it was done by the start that was lost"
    assert helpers.run_script(SCRIPTS[stage], run, *flags) == 0
    assert files(run, stage) == files(whole, stage)


def test_damaged_best_weights_are_passed_over_with_their_checkpoint(
    before_stage, finished, helpers, monkeypatch, capsys
):
    from pipeline_lib.post_training.resumable_trainer import ResumableTrainer

    run, flags = before_stage("10_lora"), [*FLAGS["10_lora"], *KEEP_BEST]
    with monkeypatch.context() as patched:
        fail_at(patched, ResumableTrainer, "_save_checkpoint", 5)
        assert helpers.run_script("10_lora_finetune.py", run, *flags) == 1
    best = run / "10_lora" / "work" / "checkpoints" / "step-00000012" / "best.safetensors"
    damaged = bytearray(best.read_bytes())
    damaged[-5] ^= 1
    best.write_bytes(damaged)
    assert helpers.run_script("10_lora_finetune.py", run, *flags) == 0
    assert "best.safetensors does not match its digest" in (out := capsys.readouterr().out)
    assert "continuing after step 9" in out
    assert files(run, "10_lora") == files(finished("10_lora", *KEEP_BEST), "10_lora")


@pytest.mark.slow
def test_killed_in_a_validation_whose_checkpoint_was_due_the_process_loses_no_step(before_stage, finished):
    run, launcher = before_stage("10_lora"), Launcher(SCRIPTS["10_lora"])
    flags, due = [*FLAGS["10_lora"], *KEEP_BEST], run / "10_lora" / "work" / "checkpoints" / "step-00000006"
    killed = launcher.start(run / "run.yaml", run, *flags, when=due.exists)
    assert killed.code == -signal.SIGKILL
    assert newest_checkpoint(run, "10_lora") == (6, 4), "the checkpoint was there before the validation ended"
    continued = launcher.start(run / "run.yaml", run, *flags)
    assert continued.code == 0 and "continuing after step 6" in continued.output
    assert files(run, "10_lora") == files(finished("10_lora", *KEEP_BEST), "10_lora")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", ["07_sft", *(pytest.param(name, marks=pytest.mark.long) for name in ("09_dpo", "10_lora"))]
)
def test_killed_again_and_again_the_process_ends_with_identical_files(stage, before_stage, finished):
    run, launcher = before_stage(stage), Launcher(SCRIPTS[stage])
    metrics, flags = run / stage / "work" / "metrics.jsonl", [*FLAGS[stage], *KEEP_BEST]
    for lines in (6, 11):
        killed = launcher.start(
            run / "run.yaml",
            run,
            *flags,
            when=lambda lines=lines: metrics.exists() and metrics.read_bytes().count(b"\n") >= lines,
        )
        assert killed.code == -signal.SIGKILL
    assert launcher.start(run / "run.yaml", run, *flags).code == 0
    assert files(run, stage) == files(finished(stage, *KEEP_BEST), stage)
