"""Memory that runs out in TRL's trainers: the same step in pieces, the same gradient, the size in the checkpoint."""

import gc
import math

import pytest
import torch

from pipeline_lib.checkpoints import checkpoint_name, load_checkpoint, load_state, newest_valid_checkpoint
from pipeline_lib.config.run import RunConfig
from pipeline_lib.oom_handler import SafeBatchSizes
from pipeline_lib.post_training import preference, supervised
from pipeline_lib.post_training.chat_tokens import load_chat_tokenizer
from pipeline_lib.post_training.examples import conversation_rows, pair_rows, read_examples
from pipeline_lib.post_training.training_setup import load_model
from pipeline_lib.stage import Ledger, StageFailure
from pipeline_lib.stage.catalog import BY_NAME
from pipeline_lib.stage.stage import Stage
from pipeline_lib.stage.workspace import Workspace


@pytest.fixture(scope="module", autouse=True)
def libraries_are_not_searched_for_garbage():
    """Each time memory runs out garbage is collected, which looks through all that TRL's import made: 0.8 s."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def make_trainer(kind: str, tiny_run, folder, fresh: bool = True, **changes):
    tokenizer = load_chat_tokenizer(tiny_run / "05_pretrain" / "final")
    section, name, data, rows = {
        "sft": ("sft", "07_sft", "06_sft_data", conversation_rows),
        "pack": ("sft", "07_sft", "06_sft_data", conversation_rows),
        "dpo": ("dpo", "09_dpo", "08_dpo_data", pair_rows),
    }[kind]
    batching = "pack" if kind == "pack" else "shuffle"
    settings = {"max_length": 96, "micro_batch": 8, "accumulation": 2, "max_steps": 2, "batching": batching, **changes}
    config = RunConfig.model_validate({"threads": 1, section: settings})
    stage = Stage(BY_NAME[name], config, folder / "run", 1, "")
    stage.folder.mkdir(parents=True, exist_ok=not fresh)
    workspace = Workspace(stage.folder, {})
    workspace.open(fresh=fresh, keep_superseded=False, say=print)
    stage.begin(workspace)
    examples = read_examples([tiny_run / data / "train.parquet"], rows, tokenizer, 96, Ledger(), "flow")
    model = load_model(tiny_run / "05_pretrain" / "final")
    torch.set_num_threads(1)
    if kind == "dpo":
        return preference.make_trainer(stage, model, tokenizer, examples, steps=2)
    return supervised.make_trainer(stage, model, tokenizer, examples)


def first_gradient(trainer, monkeypatch, largest: int | None, fail_in: int = 0):
    """Do the steps; return (first gradient by name, tokens, batch sizes). More than `largest` run out of memory.

    Sizes are examples, and tokens of packed batches.
    """
    gradients, sizes = {}, []
    library = next(kind for kind in type(trainer).__mro__ if kind.__module__.startswith("trl."))
    compute_loss = library.compute_loss

    def limited(self, model, inputs, *arguments, **keywords):
        packed = "cu_seq_lens_q" in inputs
        rows = inputs["input_ids"].numel() if packed else len(inputs["input_ids"]) // (2 if self.pairs else 1)
        sizes.append(rows)
        result = compute_loss(self, model, inputs, *arguments, **keywords)
        if largest is not None and rows > largest and len(sizes) > fail_in:
            (result[0] if isinstance(result, tuple) else result).backward()
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return result

    monkeypatch.setattr(library, "compute_loss", limited)
    step = torch.optim.AdamW.step

    def remember(self, *arguments, **keywords):
        if not gradients:
            gradients.update({name: weight.grad.clone() for name, weight in trainer.model.named_parameters()})
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.AdamW, "step", remember)
    trainer.train_resumably()
    monkeypatch.undo()
    return gradients, trainer._total_train_tokens, sizes


@pytest.mark.parametrize(("kind", "largest"), [("sft", 3), ("dpo", 3), ("pack", 100)])
def test_the_gradient_of_the_step_is_the_same_in_pieces(tiny_run, tmp_path, monkeypatch, kind, largest):
    whole, tokens, _ = first_gradient(make_trainer(kind, tiny_run, tmp_path / "whole"), monkeypatch, None)
    trainer = make_trainer(kind, tiny_run, tmp_path / "pieces")
    pieces, tokens_in_pieces, sizes = first_gradient(trainer, monkeypatch, largest, fail_in=1)
    assert trainer.micro_batches.events >= 2 and max(sizes[-4:]) <= largest
    size = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in whole.values()))
    apart = math.sqrt(sum(float((pieces[name] - whole[name]).double().square().sum()) for name in whole))
    assert apart < 2e-6 * size
    assert tokens_in_pieces == tokens
    assert any("memory ran out" in note for note in trainer.stage.notes)


def test_a_packed_sequence_that_does_not_fit_is_cut_between_its_conversations(tiny_run, tmp_path, monkeypatch):
    trainer = make_trainer("pack", tiny_run, tmp_path, micro_batch=1)
    lengths = [length for row in trainer.train_dataset for length in row["seq_lengths"]]
    _, tokens, sizes = first_gradient(trainer, monkeypatch, max(lengths))
    read = [sum(trainer.train_dataset[index]["seq_lengths"]) for index in list(trainer.order)[:4]]
    assert tokens == sum(read) and max(read) > max(lengths)
    assert {size for size in sizes if size <= max(lengths)} <= set(lengths), "conversations are whole"
    assert any("its conversations were done again at most " in note for note in trainer.stage.notes)


class Killed(Exception):
    """Ends a training in mid-step."""


def test_the_safe_size_is_saved_at_once_and_a_continued_start_begins_with_it(tiny_run, tmp_path, monkeypatch):
    """All batches are padded to 64 tokens, so that they are of one class of lengths."""

    def start(folder, fresh=True):
        trainer = make_trainer("sft", tiny_run, folder, fresh, max_steps=3)
        trainer.data_collator.pad_to_multiple_of = 64
        return trainer

    undisturbed = start(tmp_path / "undisturbed")
    first_gradient(undisturbed, monkeypatch, 3)
    killed = start(tmp_path / "killed")
    write_metrics = killed.write_metrics

    def kill_in_the_second(step, logs):
        if step == 2:
            raise Killed
        write_metrics(step, logs)

    killed.write_metrics = kill_in_the_second
    with pytest.raises(Killed), monkeypatch.context() as patch:
        first_gradient(killed, patch, 3)
    saved = load_state(newest_valid_checkpoint(killed.checkpoints))
    assert saved["step"] == 1 and SafeBatchSizes(8, state=saved["micro_batches"]).sizes() == {"64": 2}
    continued = start(tmp_path / "killed", fresh=False)
    _, _, sizes = first_gradient(continued, monkeypatch, 3)
    assert set(sizes) == {2} and continued.micro_batches.events == saved["micro_batches"]["events"]
    told = "examples of up to 64 tokens are done 2 at a time from the first step on"
    assert any(told in note for note in continued.stage.notes)
    weights = dict(continued.model.named_parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in undisturbed.model.named_parameters())


def test_memory_too_small_for_one_example_saves_the_last_whole_step(tiny_run, tmp_path, monkeypatch, capsys):
    """The oracle is the checkpoint of that step in a run that saves every step."""
    ended = make_trainer("sft", tiny_run, tmp_path / "ended")
    with pytest.raises(StageFailure, match="out of memory at step 2"), monkeypatch.context() as patch:
        first_gradient(ended, patch, 0, fail_in=3)  # the second micro-batch of the second step
    assert "the state after step 1 was saved before the error" in capsys.readouterr().out
    every = make_trainer("sft", tiny_run, tmp_path / "every", checkpoint_steps=1)
    first_gradient(every, monkeypatch, None)
    saved, expected = (load_checkpoint(trainer.checkpoints / checkpoint_name(1)) for trainer in (ended, every))
    for part in ("step", "scheduler", "optimizer", "rng", "tokens"):
        assert saved.state[part] == expected.state[part]
    for group, named in expected.tensors.items():
        assert saved.tensors[group].keys() == named.keys()
        assert all(torch.equal(saved.tensors[group][name], tensor) for name, tensor in named.items())


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        pytest.param("sft", "not even one example of .* tokens fits; lower sft.max_length", marks=pytest.mark.long),
        ("pack", "not even one conversation of .* fits .packed sequences are cut between them only.; lower sft.max"),
    ],
)
def test_one_example_that_does_not_fit_is_one_line(tiny_run, tmp_path, monkeypatch, kind, line):
    trainer = make_trainer(kind, tiny_run, tmp_path)
    with pytest.raises(StageFailure, match=line):
        first_gradient(trainer, monkeypatch, 0)
