"""Every random generator continues where it stood, through JSON."""

import json
import random

import numpy as np
import pytest
import torch

from pipeline_lib.checkpoints import rng_state, seed_everything, set_rng_state


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        *torch.randn(3).tolist(),
    ]


@pytest.mark.parametrize("drawn_before", range(4))
def test_the_draws_after_a_saved_state_repeat(drawn_before):
    seed_everything(11)
    for _ in range(drawn_before):
        random.gauss(0, 1)  # an odd number leaves a second Gaussian waiting inside the generator
        np.random.randn()
        draw()
    state = json.loads(json.dumps(rng_state()))
    expected = [draw() for _ in range(3)]
    seed_everything(99)
    assert draw() != expected[0]
    set_rng_state(state)
    assert [draw() for _ in range(3)] == expected


def test_a_seed_decides_all_generators():
    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first
    seed_everything(6)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_a_state_of_more_devices_than_there_are_restores_those_that_are_there():
    seed_everything(5)
    state = rng_state()
    state["cuda"] = [*state["cuda"], *[state["torch"]] * (torch.cuda.device_count() + 1 - len(state["cuda"]))]
    expected = draw()
    set_rng_state(state)
    assert draw() == expected
