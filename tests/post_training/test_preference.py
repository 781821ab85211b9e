"""Stage 09: reference log-probabilities and loss by the definition; the stage prefers what it was shown."""

import json
import math
import shutil
import signal
from types import SimpleNamespace

import numpy
import pytest

from pipeline_lib.stage.errors import StageFailure, StageInterrupted
from pipeline_lib.stage.ledger import Ledger
from pipeline_lib.stage.manifest import MANIFEST, Manifest
from pipeline_lib.stage.progress import progress


@pytest.fixture(scope="module")
def pairs(tiny_run, tokenizer):
    from pipeline_lib.post_training.examples import pair_rows, read_examples

    return read_examples([tiny_run / "08_dpo_data" / "train.parquet"], pair_rows, tokenizer, 96, Ledger(), "preference")


@pytest.fixture
def make_trainer(tiny_run, tokenizer, pairs):
    """Build the trainer of stage 09, outside a run, in a work folder; `between` is asked after every batch."""

    def build(work, between=lambda: None):
        from pipeline_lib.config.dpo import DpoSettings
        from pipeline_lib.post_training import preference
        from pipeline_lib.post_training.training_setup import load_model

        stage = SimpleNamespace(
            settings=DpoSettings(max_length=96, micro_batch=4, max_steps=2, beta=0.3), seed=1, work=work, note=print,
            say=print, spec=SimpleNamespace(section="dpo"), progress=progress, stop_if_interrupted=between,
        )  # fmt: skip
        model = load_model(tiny_run / "05_pretrain" / "final")
        return preference.make_trainer(stage, model, tokenizer, pairs, steps=2)

    return build


@pytest.fixture
def trainer(make_trainer, tmp_path):
    return make_trainer(tmp_path)


def answer_logp(model, prompt, answer):
    """log p(answer | prompt) by the definition."""
    import torch

    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logps = model.eval()(input_ids=ids).logits[0].log_softmax(-1)
    return sum(logps[len(prompt) - 1 + k, token].item() for k, token in enumerate(answer))


def test_the_reference_is_the_log_probability_of_each_answer(trainer, pairs):
    for row, example in zip(trainer.train_dataset, pairs.table.to_pylist(), strict=True):
        for column, side in (("ref_chosen_logps", "chosen_ids"), ("ref_rejected_logps", "rejected_ids")):
            expected = answer_logp(trainer.model, example["prompt_ids"], example[side])
            assert row[column] == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_the_reference_is_read_back_exactly_not_computed_again(trainer, monkeypatch):
    stored = numpy.stack([trainer.train_dataset[f"ref_{side}_logps"] for side in ("chosen", "rejected")], axis=1)
    monkeypatch.setattr(type(trainer), "compute_ref_log_probs", None)
    assert numpy.array_equal(trainer.reference_logps(trainer.train_dataset, "train"), stored.astype(numpy.float32))


@pytest.mark.parametrize(("seconds", "slices"), [(0.0, [1, 2, 3]), (1e9, [0, 0, 0])])
def test_a_reference_that_is_stopped_half_way_goes_on_after_its_last_slice_to_the_same_bits(
    make_trainer, pairs, tmp_path, monkeypatch, capsys, seconds, slices
):
    """A slice is on the disk after every batch, or the first one when the signal arrives."""
    from pipeline_lib.post_training import logp_slices
    from pipeline_lib.post_training.preference import PairTrainer

    undisturbed = make_trainer(tmp_path / "undisturbed").train_dataset
    judged, on_disk = [], []
    compute = PairTrainer.compute_ref_log_probs

    def counted(self, model, inputs):
        judged.append(len(inputs["input_ids"]) // 2)
        return compute(self, model, inputs)

    def signal_in_the_third():
        on_disk.append(len(list((tmp_path / "stopped" / "reference-train").glob("0*.parquet"))))
        if len(judged) == 3:
            raise StageInterrupted(signal.SIGTERM)

    monkeypatch.setattr(PairTrainer, "compute_ref_log_probs", counted)
    monkeypatch.setattr(logp_slices, "SLICE_SECONDS", seconds)
    with pytest.raises(StageInterrupted):
        make_trainer(tmp_path / "stopped", signal_in_the_third)
    assert on_disk == slices and judged == [4, 4, 4]
    continued = make_trainer(tmp_path / "stopped").train_dataset
    assert sum(judged) == len(pairs), "no pair is judged twice"
    assert f"12 of {len(pairs)} pairs were finished before, continuing" in capsys.readouterr().out
    for column in logp_slices.REFERENCE:
        assert list(continued[column]) == list(undisturbed[column])


def limit_pairs(monkeypatch, largest):
    """Let memory run out in reference passes of more pairs than that; return the list of the sizes that are tried."""
    import torch

    from pipeline_lib.post_training.preference import PairTrainer

    compute, tried = PairTrainer.compute_ref_log_probs, []

    def limited(self, model, inputs):
        tried.append(len(inputs["input_ids"]) // 2)
        if tried[-1] > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return compute(self, model, inputs)

    monkeypatch.setattr(PairTrainer, "compute_ref_log_probs", limited)
    return tried


def test_pairs_that_do_not_fit_into_memory_together_are_judged_in_pieces(trainer, pairs, monkeypatch, capsys):
    whole = trainer.answer_logps(trainer.train_dataset, "held-out pairs")
    tried = limit_pairs(monkeypatch, 1)
    pieces = trainer.answer_logps(trainer.train_dataset, "held-out pairs")
    assert pieces == pytest.approx(whole, rel=1e-5, abs=1e-4)
    assert tried[:6] == [4, 2, 1, 1, 1, 1] and tried.count(1) == len(pairs)
    assert tried.count(4) == 1, "no later batch is tried whole"
    assert "held-out pairs: memory ran out, so batches were done in pieces" in capsys.readouterr().out


def test_a_pair_that_does_not_fit_alone_is_a_failure_that_names_the_setting(trainer, monkeypatch):
    limit_pairs(monkeypatch, 0)
    with pytest.raises(StageFailure, match=r"held-out pairs: not even one pair fits; lower dpo\.max_length"):
        trainer.answer_logps(trainer.train_dataset, "held-out pairs")


def test_an_error_of_another_kind_is_not_taken_for_exhausted_memory(trainer, monkeypatch):
    def broken(self, model, inputs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(type(trainer), "compute_ref_log_probs", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        trainer.answer_logps(trainer.train_dataset, "held-out pairs")


def test_the_loss_is_that_of_the_paper(trainer):
    import torch

    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "mlp" in name:
                weight.mul_(3.0)
    rows = [trainer.train_dataset[index] for index in range(4)]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()
    expected = 0.0
    for row in rows:
        ratio = {
            side: answer_logp(trainer.model, row["prompt_ids"], row[f"{side}_ids"]) - row[f"ref_{side}_logps"]
            for side in ("chosen", "rejected")
        }
        expected += math.log1p(math.exp(-0.3 * (ratio["chosen"] - ratio["rejected"]))) / len(rows)
    assert loss == pytest.approx(expected, rel=1e-4) and abs(loss - math.log(2)) > 1e-3


def test_training_starts_at_log_two_and_held_out_preference_rises(aligned_run):
    manifest = Manifest.read(aligned_run / "09_dpo" / MANIFEST)
    first = json.loads((aligned_run / "09_dpo" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    before, after = manifest.result["before"], manifest.result["after"]
    assert after["val_accuracy"] >= before["val_accuracy"]
    assert after["val_reward_accuracy"] > 0.9 and after["val_margin"] > 0


@pytest.mark.slow
def test_pairs_beyond_the_steps_are_not_judged_by_the_reference(aligned_run, tmp_path, helpers, capsys):
    run = shutil.copytree(aligned_run, tmp_path / "run")
    assert helpers.run_script("09_dpo.py", run, "--max_steps", "2") == 0
    assert "the steps reach 32 of " in capsys.readouterr().out
    assert Manifest.read(run / "09_dpo" / MANIFEST).result["pairs"] == 32


def test_half_an_epoch_is_half_of_the_pairs_read_once(aligned_run, tmp_path, helpers):
    run = shutil.copytree(aligned_run, tmp_path / "run")
    pairs = Manifest.read(run / "08_dpo_data" / MANIFEST).result["train"]
    steps = math.ceil(math.ceil(pairs / 16) / 2)
    assert helpers.run_script("09_dpo.py", run, "--epochs", "0.5") == 0
    manifest = Manifest.read(run / "09_dpo" / MANIFEST)
    assert (manifest.result["steps"], manifest.result["pairs"]) == (steps, 16 * steps)
    assert 16 * steps < pairs and Ledger.from_json(manifest.ledger).total("preference")["documents"] == 16 * steps
    assert len((run / "09_dpo" / "metrics.jsonl").read_text().splitlines()) == steps


def test_pairs_with_an_answer_that_is_cut_are_said_and_counted(aligned_run, tmp_path, tokenizer, helpers, capsys):
    from pipeline_lib.post_training.examples import pair_rows, read_examples

    run = shutil.copytree(aligned_run, tmp_path / "run")
    assert not any("is cut at" in note for note in Manifest.read(run / "09_dpo" / MANIFEST).notes)
    paths = [run / "08_dpo_data" / f"{side}.parquet" for side in ("train", "val")]
    rows = read_examples(paths, pair_rows, tokenizer, 96, Ledger(), "preference").table.to_pylist()
    lengths = [len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    limit = sorted(lengths)[len(lengths) // 2]
    cut = sum(length > limit for length in lengths)
    flags = ["--max_length", str(limit), "--max_steps", "1"]
    capsys.readouterr()
    assert helpers.run_script("09_dpo.py", run, *flags) == 0
    told = f"{cut} of {len(rows)} pairs have an answer that is cut at {limit} tokens (dpo.max_length)"
    manifest = Manifest.read(run / "09_dpo" / MANIFEST)
    assert 0 < cut < len(rows) and told in manifest.notes and f"note: {told}" in capsys.readouterr().out
    entry = next(entry for flow, _, entry in Ledger.from_json(manifest.ledger).items() if flow == "preference")
    assert entry.found == {"pairs with a cut answer": cut}


@pytest.mark.slow
def test_without_held_out_pairs_nothing_is_measured_and_the_model_is_made(aligned_run, tmp_path, helpers):
    """None is measured, none is held out, and all pairs share an answer, so that they cannot be on two sides."""
    run = shutil.copytree(aligned_run, tmp_path / "run")
    assert helpers.run_script("09_dpo.py", run, "--max_steps", "1", "--val_examples", "0") == 0
    assert Manifest.read(run / "09_dpo" / MANIFEST).result["after"] == {}
    assert helpers.run_script("08_prepare_dpo_data.py", run, "--val_fraction", "0") == 0
    assert helpers.run_script("09_dpo.py", run, "--max_steps", "1") == 0
    name, kind, style, records = next(source for source in helpers.sources if source[1] == "preference")
    shared = [{**record, "rejected": records[0]["rejected"]} for record in records]
    helpers.write_sources(run, [(name, kind, style, shared)])
    assert helpers.run_script("08_prepare_dpo_data.py", run) == 0
    assert Manifest.read(run / "08_dpo_data" / MANIFEST).result["val"] == 0
    assert helpers.run_script("09_dpo.py", run, "--max_steps", "1") == 0
    result = Manifest.read(run / "09_dpo" / MANIFEST).result
    assert result["before"] == result["after"] == {} and (run / "09_dpo" / "final" / "config.json").exists()


def test_label_smoothing_without_a_loss_that_uses_it_is_refused(run_copy, helpers, capsys):
    assert helpers.run_script("09_dpo.py", run_copy, "--label_smoothing", "0.1") == 2
    assert 'used by the loss "robust" only' in capsys.readouterr().err
