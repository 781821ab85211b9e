"""One optimizer step: groups, decay, accumulation, clipping, and failures that leave the weights alone."""

import errno
import itertools
import json
import math

import pytest
import torch
from tiny_training import SETTINGS, BareStage, first_batches, make_model, make_run, nothing, open_data, step_gradients

from pipeline_lib.checkpoints import (
    background,
    checkpoint_name,
    load_checkpoint,
    newest_valid_checkpoint,
    save_checkpoint,
)
from pipeline_lib.config.pretrain import OptimizerSettings, PretrainSettings
from pipeline_lib.pretraining.batches import PackedData
from pipeline_lib.pretraining.forward import summed_loss
from pipeline_lib.pretraining.logbook import open_logbook
from pipeline_lib.pretraining.loop import optimizer_step, train
from pipeline_lib.pretraining.optimizers import make_optimizers, parameter_groups
from pipeline_lib.pretraining.run_state import checkpoint_content, restore_run
from pipeline_lib.pretraining.schedule import momentum_at
from pipeline_lib.pretraining.step_lines import StepLines


@pytest.fixture(scope="module")
def data(packed_run) -> PackedData:
    return open_data(packed_run[1] / "03_packed")


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_in_exactly_one_group(tied):
    model = make_model(tied)
    groups = parameter_groups(model)
    members = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())
    assert len(groups["matrices"]) == 2 * 7 and len(groups["embedding"]) == 1
    assert len(groups["norms"]) == 2 * 2 + 1 and len(groups["head"]) == (not tied)


@pytest.mark.parametrize("name", ["muon", "adamw", "adamw_8bit"])
@pytest.mark.parametrize(("asked", "expected"), [(None, 0.0), (0.1, 0.1)])
def test_only_matrices_decay_and_null_is_zero(name, asked, expected):
    model = make_model()
    optimizers = make_optimizers(
        model, OptimizerSettings(name=name, weight_decay=asked), make_run().horizon.rates, torch.float32
    )
    assert set(optimizers) == {name, "adamw"}
    matrices = {id(parameter) for parameter in parameter_groups(model)["matrices"]}
    seen = set()
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                seen.add(id(parameter))
                assert group["weight_decay"] == (expected if id(parameter) in matrices else 0.0)
    assert seen == {id(parameter) for parameter in model.parameters()}


def test_a_step_has_the_momentum_of_its_number(data):
    run, batch = make_run(), first_batches(data, 1)[0][0]
    for step in (1, 2):
        optimizer_step(run, batch, SETTINGS, nothing)
        assert run.optimizers["muon"].param_groups[0]["momentum"] == momentum_at(step, SETTINGS.optimizer)


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_the_micro_batch_changes_neither_loss_nor_gradient(data, micro_batch):
    batch = first_batches(data, 1)[0][0]
    loss, norm, expected = step_gradients(make_run(), batch, SETTINGS)
    parts = SETTINGS.model_copy(update={"micro_batch": micro_batch})
    loss_in_parts, norm_in_parts, gradients = step_gradients(make_run(), batch, parts)
    assert loss_in_parts == pytest.approx(loss, rel=1e-6) and norm_in_parts == pytest.approx(norm, rel=1e-5)
    for name, gradient in gradients.items():
        assert float((gradient - expected[name]).norm()) < 1e-4 * float(expected[name].norm()), name


def test_the_loss_is_the_mean_over_the_predicted_tokens_of_the_step(data):
    run = make_run()
    batch = first_batches(data, 1)[0][0]
    with torch.no_grad():
        summed = float(summed_loss(run, batch, chunk=100))
    loss, _, _ = step_gradients(run, batch, SETTINGS.model_copy(update={"micro_batch": 3}))
    assert loss == pytest.approx(summed / batch.target_count, rel=1e-5)


def test_the_norm_is_measured_before_clipping_and_the_gradient_clipped_to_the_limit(data):
    batch = first_batches(data, 1)[0][0]

    def norms(limit):
        settings = PretrainSettings(**{**SETTINGS.model_dump(), "optimizer": {"clip_norm": limit}})
        _, reported, gradients = step_gradients(make_run(settings), batch, settings)
        return reported, math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))

    free_reported, free = norms(None)
    tight_reported, tight = norms(0.01)
    assert free_reported == pytest.approx(free, rel=1e-5) and free > 0.05
    assert tight_reported == pytest.approx(free_reported, rel=1e-6)
    assert tight == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_leaves_weights_moments_and_step_as_they_were(data):
    run = make_run()
    (first, _), (second, _) = first_batches(data, 2)
    optimizer_step(run, first, SETTINGS, nothing)
    with torch.no_grad():
        run.model.lm_head.weight[5] = float("inf")
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(FloatingPointError):
        optimizer_step(run, second, SETTINGS, nothing)
    assert run.step == 1
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert all(parameter.grad is None for parameter in run.model.parameters())


ERRORS = [
    RuntimeError("chunk 7 is damaged"),
    OSError(errno.EIO, "Input/output error", "chunk 7"),
    MemoryError("chunk 7"),
]


def reading_fails_after(data, monkeypatch, batches: int, error: Exception) -> None:
    whole = data.training_batches

    def damaged(state, step):
        yield from itertools.islice(whole(state, step), batches)
        raise error

    monkeypatch.setattr(data, "training_batches", damaged)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_any_other_error_saves_the_last_whole_step_and_passes_through(data, tmp_path, monkeypatch, error):
    reading_fails_after(data, monkeypatch, 2, error)
    run, stage = make_run(), BareStage(SETTINGS, tmp_path)
    with open_logbook(tmp_path, run, False, SETTINGS, "test") as book, pytest.raises(type(error), match="chunk 7"):
        train(stage, run, data, book)
    assert "  the state after step 2 was saved before the error" in stage.said
    saved = load_checkpoint(newest_valid_checkpoint(tmp_path / "checkpoints"))
    assert saved.step == 2
    for name, weight in run.model.state_dict().items():
        assert torch.equal(saved.tensors["model"][name], weight)


def test_when_saving_before_an_error_fails_as_well_both_are_told(data, tmp_path, monkeypatch):
    reading_fails_after(data, monkeypatch, 2, ERRORS[1])
    monkeypatch.setattr(background, "save_checkpoint", no_space)
    run, stage = make_run(), BareStage(SETTINGS, tmp_path)
    with (
        open_logbook(tmp_path, run, False, SETTINGS, "test") as book,
        pytest.raises(OSError, match="Input/output error"),
    ):
        train(stage, run, data, book)
    told = "  the state after step 2 could not be saved (OSError: [Errno 28] No space left on device)"
    assert [line for line in stage.said if line.startswith(told)]


@pytest.mark.parametrize("in_background", [True, False])
def test_an_error_of_saving_is_not_answered_by_saving_again(data, tmp_path, monkeypatch, in_background):
    tried = []
    monkeypatch.setattr(background, "save_checkpoint", lambda *given: tried.append(given) or no_space())
    settings = SETTINGS.model_copy(update={"checkpoint_steps": 2, "background_saving": in_background})
    run, stage = make_run(settings), BareStage(settings, tmp_path)
    with open_logbook(tmp_path, run, False, settings, "test") as book, pytest.raises(OSError, match="No space left"):
        train(stage, run, data, book)
    assert len(tried) == 1 and not any("saved" in line for line in stage.said)


def no_space(*_) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_step_whose_line_could_not_be_written_is_saved_with_it(data, tmp_path, monkeypatch):
    """A checkpoint with a step behind it that has no line could not be continued."""
    append = StepLines.append
    monkeypatch.setattr(StepLines, "append", lambda self, line: no_space() if line["step"] == 3 else append(self, line))
    settings = SETTINGS.model_copy(update={"max_steps": 5, "tensorboard": False})
    run = make_run(settings)
    with open_logbook(tmp_path, run, False, settings, "test") as book, pytest.raises(OSError, match="No space left"):
        train(BareStage(settings, tmp_path), run, data, book)
    monkeypatch.undo()
    again = make_run(settings)
    assert restore_run(again, tmp_path / "checkpoints", print).name == "step-00000003"
    with open_logbook(tmp_path, again, True, settings, "test") as book:
        train(BareStage(settings, tmp_path), again, data, book)
    written = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["muon", "adamw", "adamw_8bit"])
def test_each_optimizer_learns(data, name):
    settings = PretrainSettings(**{**SETTINGS.model_dump(), "optimizer": {"name": name}})
    run = make_run(settings)
    losses = [optimizer_step(run, batch, settings, nothing)[0] for batch, _ in first_batches(data, 8)]
    assert losses[-1] < losses[0] - 0.3


def test_8_bit_moments_take_a_quarter_of_the_memory_and_step_like_full_ones():
    settings = [OptimizerSettings(name=name, lr=0.01) for name in ("adamw", "adamw_8bit")]
    matrices, used = [], []
    for setting in settings:
        model = make_model()
        optimizers = make_optimizers(model, setting, make_run().horizon.rates, torch.float32)
        parameter = model.model.layers[0].mlp.gate_proj.weight
        before = parameter.detach().clone()
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            for other in model.parameters():
                other.grad = torch.randn(other.shape, generator=generator)
            for optimizer in optimizers.values():
                optimizer.step()
        matrices.append(parameter.detach() - before)
        state = optimizers[setting.name].state[model.lm_head.weight]
        used.append(sum(value.nbytes for value in state.values() if torch.is_tensor(value) and value.numel() > 256))
    assert used[1] < 0.3 * used[0]
    assert float((matrices[1] - matrices[0]).norm()) < 0.1 * float(matrices[0].norm())


@pytest.mark.parametrize("name", ["muon", "adamw", "adamw_8bit"])
def test_a_restored_run_continues_bit_for_bit(data, tmp_path, name):
    settings = PretrainSettings(**{**SETTINGS.model_dump(), "optimizer": {"name": name, "weight_decay": 0.1}})
    run = make_run(settings)
    stream = data.training_batches(None)
    for _ in range(3):
        batch, run.data = next(stream)
        optimizer_step(run, batch, settings, nothing)
        run.tokens.add(batch)
    save_checkpoint(tmp_path / checkpoint_name(run.step), *checkpoint_content(run))
    expected = []
    for _ in range(3):
        batch, run.data = next(stream)
        expected.append(optimizer_step(run, batch, settings, nothing))

    again = make_run(settings)
    assert restore_run(again, tmp_path, print) is not None
    assert again.step == 3 and again.tokens == run.tokens
    assert again.tokens.predicted == sum(batch.target_count for batch, _ in first_batches(data, 3))
    stream = data.training_batches(again.data)
    assert [optimizer_step(again, next(stream)[0], settings, nothing) for _ in range(3)] == expected
    for left, right in zip(run.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(left, right)
