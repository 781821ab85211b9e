"""Our Muon is torch's, in whichever number format the machine is fastest."""

import pytest
import torch

from pipeline_lib.pretraining.muon import Muon, orthogonalise

SHAPES = [(8, 8), (8, 20), (20, 8), (8, 8), (20, 8), (5, 40)]


def make_parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(4)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(parameters, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steps_are_those_of_torch(weight_decay, dtype):
    ours, theirs = make_parameters(), make_parameters()
    mine = Muon(ours, lr=0.05, momentum=0.9, weight_decay=weight_decay, dtype=dtype)
    reference = torch.optim.Muon(
        theirs, lr=0.05, momentum=0.9, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(4):
        before = [parameter.detach().clone() for parameter in theirs]
        for parameters in (ours, theirs):
            set_gradients(parameters, seed)
        mine.step()
        reference.step()
        for left, right, start in zip(ours, theirs, before, strict=True):
            moved = (right - start).norm()
            assert (left - right).norm() < 0.03 * (seed + 1) * moved  # bfloat16 holds 2 to 3 digits
            left.data.copy_(right)
        for left, right in zip(ours, theirs, strict=True):
            average = mine.state[left]["momentum_buffer"]
            torch.testing.assert_close(average, reference.state[right]["momentum_buffer"], rtol=1e-5, atol=1e-6)


def test_singular_values_come_near_one():
    sizes = torch.tensor([1e-4, 1, 1e4])[:, None, None]
    matrices = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0)) * sizes
    values = torch.linalg.svdvals(orthogonalise(matrices, torch.float32))
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_matrix_is_updated_the_same_alone_and_in_company():
    parameters = make_parameters()
    set_gradients(parameters, 1)
    alone = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for parameter, copy in zip(parameters, alone, strict=True):
        copy.grad = parameter.grad.clone()
    Muon(parameters, lr=0.1).step()
    for copy in alone:
        Muon([copy], lr=0.1).step()
    for parameter, copy in zip(parameters, alone, strict=True):
        torch.testing.assert_close(parameter, copy, rtol=1e-5, atol=1e-6)


def test_a_zero_gradient_changes_nothing_and_a_missing_one_is_passed_over():
    parameters = make_parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters[:3]:
        parameter.grad = torch.zeros_like(parameter)
    Muon(parameters, lr=0.1).step()
    assert all(torch.equal(parameter, start) for parameter, start in zip(parameters, before, strict=True))


def test_what_is_not_a_matrix_is_refused():
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
