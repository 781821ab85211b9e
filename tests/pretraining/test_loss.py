"""The chunked cross-entropy is cross-entropy, in value and gradient, without all logits at once."""

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline_lib.pretraining.loss import IGNORED, summed_cross_entropy


def problem(positions: int, width: int, vocabulary: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, width, generator=generator).requires_grad_()
    head = torch.randn(vocabulary, width, generator=generator).requires_grad_()
    targets = torch.randint(0, vocabulary, (positions,), generator=generator)
    targets[torch.rand(positions, generator=generator) < 0.3] = IGNORED
    return hidden, head, targets


@settings(max_examples=60, deadline=None)
@given(
    positions=st.integers(1, 40),
    width=st.integers(1, 8),
    vocabulary=st.integers(2, 30),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
def test_value_and_gradients_are_those_of_torch(positions, width, vocabulary, chunk, seed):
    hidden, head, targets = problem(positions, width, vocabulary, seed)
    loss = summed_cross_entropy(hidden, head, targets, chunk, torch.float32)
    (loss * 0.37).backward()
    ours = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    expected = functional.cross_entropy(hidden @ head.T, targets, ignore_index=IGNORED, reduction="sum")
    (expected * 0.37).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], head.grad, rtol=1e-4, atol=1e-4)


def test_rows_in_several_pieces_are_the_same_rows(monkeypatch):
    whole, pieces = (problem(50, 8, 30, 0) for _ in range(2))
    summed_cross_entropy(*whole, 20, torch.float32).backward()
    monkeypatch.setattr("pipeline_lib.pretraining.loss.CACHED_NUMBERS", 7 * 30)
    summed_cross_entropy(*pieces, 20, torch.float32).backward()
    for ours, expected in zip(pieces[:2], whole[:2], strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=0, atol=0)


def test_in_bfloat16_only_the_products_are_rounded():
    hidden, head, targets = problem(64, 16, 50, 0)
    low = summed_cross_entropy(hidden, head, targets, 16, torch.bfloat16)
    low.backward()
    rounded_hidden = hidden.detach().bfloat16().float().requires_grad_()
    rounded_head = head.detach().bfloat16().float().requires_grad_()
    exact = functional.cross_entropy(
        (rounded_hidden @ rounded_head.T).bfloat16().float(), targets, ignore_index=IGNORED, reduction="sum"
    )
    assert low.dtype is torch.float32 and hidden.grad.dtype is torch.float32
    torch.testing.assert_close(low, exact, rtol=1e-4, atol=1e-3)
    exact.backward()
    torch.testing.assert_close(head.grad, rounded_head.grad, rtol=0.02, atol=0.05)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.numel())
        return result


class MatrixProducts(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += "mm" in function.__name__
        return function(*arguments, **(keywords or {}))


def test_the_logits_of_all_positions_never_exist():
    hidden, head, targets = problem(512, 8, 300, 1)
    with LargestTensor() as largest:
        summed_cross_entropy(hidden, head, targets, 32, torch.float32).backward()
    assert largest.numbers == 32 * 300 < 512 * 300


def test_without_gradients_only_the_value_is_made():
    hidden, head, targets = problem(20, 4, 30, 2)
    with torch.no_grad():
        alone = summed_cross_entropy(hidden, head, targets, 7, torch.float32)
    assert torch.equal(alone, summed_cross_entropy(hidden, head, targets, 7, torch.float32).detach())
    with torch.no_grad(), MatrixProducts() as products:
        summed_cross_entropy(hidden, head, targets, 2, torch.float32)
    assert products.count == 20 // 2


def test_nothing_to_predict_is_zero_with_zero_gradient():
    hidden, head, _ = problem(5, 4, 6, 3)
    loss = summed_cross_entropy(hidden, head, torch.full((5,), IGNORED), 2, torch.float32)
    loss.backward()
    assert float(loss.detach()) == 0 and not hidden.grad.any() and not head.grad.any()


def test_targets_of_another_length_are_refused():
    hidden, head, targets = problem(5, 4, 6, 3)
    with pytest.raises(ValueError, match="do not belong together"):
        summed_cross_entropy(hidden, head, targets[:4], 2, torch.float32)
