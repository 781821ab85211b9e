"""Optimizer moments belong to parameter names, not to positions."""

import pytest
import torch

from pipeline_lib.checkpoints import (
    CheckpointError,
    load_checkpoint,
    load_optimizer_state_by_name,
    optimizer_state_by_name,
    save_checkpoint,
)


def make_model(seed: int = 0, width: int = 6) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))


def step(model, optimizer, seed: int) -> None:
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    (model(inputs).square().mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


def matrices(model):
    return [parameter for parameter in model.parameters() if parameter.ndim == 2]


OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
    "adamw fused": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, fused=True),
    "amsgrad": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True),
    "sgd momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    "muon": lambda model: torch.optim.Muon(matrices(model), lr=0.01),
    "no state": lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_continued_optimizer_moves_the_weights_exactly_like_an_uninterrupted_one(tmp_path, name):
    model = make_model()
    optimizer = OPTIMIZERS[name](model)
    for n in range(3):
        step(model, optimizer, n)
    tensors, state = optimizer_state_by_name(optimizer, model)
    path = save_checkpoint(tmp_path / "x", {"model": model.state_dict(), "optimizer": tensors}, {"step": 3, "o": state})
    for n in range(3, 6):
        step(model, optimizer, n)

    again = make_model(seed=1)
    optimizer_again = OPTIMIZERS[name](again)
    loaded = load_checkpoint(path)
    again.load_state_dict(loaded.tensors["model"])
    report = load_optimizer_state_by_name(optimizer_again, again, loaded.tensors["optimizer"], loaded.state["o"])
    assert report.exact
    for n in range(3, 6):
        step(again, optimizer_again, n)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_an_eight_bit_optimizer_continues_exactly(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def make(model):
        return bitsandbytes.optim.AdamW8bit(model.parameters(), lr=0.01, min_8bit_size=16)

    model = make_model(width=64)
    optimizer = make(model)
    for n in range(3):
        step(model, optimizer, n)
    tensors, state = optimizer_state_by_name(optimizer, model)
    path = save_checkpoint(tmp_path / "x", {"model": model.state_dict(), "optimizer": tensors}, {"step": 3, "o": state})
    assert any(tensor.dtype is torch.uint8 for tensor in tensors.values())
    step(model, optimizer, 3)
    again = make_model(seed=1, width=64)
    optimizer_again = make(again)
    loaded = load_checkpoint(path)
    again.load_state_dict(loaded.tensors["model"])
    load_optimizer_state_by_name(optimizer_again, again, loaded.tensors["optimizer"], loaded.state["o"])
    step(again, optimizer_again, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def trained():
    model = make_model()
    optimizer = OPTIMIZERS["adamw"](model)
    for n in range(2):
        step(model, optimizer, n)
    return model, optimizer, *optimizer_state_by_name(optimizer, model)


def test_another_order_and_another_grouping_give_every_moment_to_its_own_parameter():
    model, _, tensors, state = trained()
    other = torch.optim.AdamW([{"params": list(model.parameters())[::-1][:3]}, {"params": [model[0].weight]}], lr=1)
    assert load_optimizer_state_by_name(other, model, tensors, state).exact
    for name, parameter in model.named_parameters():
        assert torch.equal(other.state[parameter]["exp_avg"], tensors[f"{name}/exp_avg"])


def test_present_hyperparameters_win_when_asked_to():
    model, optimizer, tensors, state = trained()
    other = torch.optim.AdamW(model.parameters(), lr=0.5, betas=(0.8, 0.9), weight_decay=0.3)
    load_optimizer_state_by_name(other, model, tensors, state, restore_hyperparameters=False)
    assert (other.param_groups[0]["lr"], other.param_groups[0]["betas"]) == (0.5, (0.8, 0.9))
    load_optimizer_state_by_name(other, model, tensors, state)
    assert other.param_groups[0]["lr"] == 0.01
    assert other.param_groups[0]["betas"] == optimizer.param_groups[0]["betas"]
    assert other.param_groups[0]["weight_decay"] == optimizer.param_groups[0]["weight_decay"]


def test_wrapper_prefixes_do_not_matter():
    model, _, tensors, state = trained()
    wrapped = torch.nn.ModuleDict({"_orig_mod": model})
    assert load_optimizer_state_by_name(OPTIMIZERS["adamw"](model), wrapped, tensors, state).exact


def test_a_state_that_does_not_fit_is_refused_before_anything_changes():
    model, _, tensors, state = trained()
    wider = make_model(width=7)
    optimizer = OPTIMIZERS["adamw"](wider)
    with pytest.raises(CheckpointError, match="mismatched.*0.weight"):
        load_optimizer_state_by_name(optimizer, wider, tensors, state)
    assert not optimizer.state
    deeper = torch.nn.Sequential(*make_model(), torch.nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match=r"missing \(3.weight, 3.bias\)"):
        load_optimizer_state_by_name(OPTIMIZERS["adamw"](deeper), deeper, tensors, state)
    shallower = make_model()[:1]
    with pytest.raises(CheckpointError, match=r"unexpected \(2.bias, 2.weight\)"):
        load_optimizer_state_by_name(OPTIMIZERS["adamw"](shallower), shallower, tensors, state)


def test_without_strict_what_fits_is_loaded_and_the_rest_is_reported():
    model, _, tensors, state = trained()
    deeper = torch.nn.Sequential(*make_model(), torch.nn.Linear(1, 1))
    optimizer = OPTIMIZERS["adamw"](deeper)
    report = load_optimizer_state_by_name(optimizer, deeper, tensors, state, strict=False)
    assert report.missing == ["3.weight", "3.bias"] and len(report.loaded) == 4
    assert torch.equal(optimizer.state[deeper[0].weight]["exp_avg"], tensors["0.weight/exp_avg"])
    assert "4 loaded" in str(report) and "2 missing" in str(report)


def test_a_parameter_outside_the_model_has_no_name():
    stray = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(CheckpointError, match="not in the model"):
        optimizer_state_by_name(torch.optim.SGD([stray], lr=1), make_model())
