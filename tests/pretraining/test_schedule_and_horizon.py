"""Learning rates, batch and length: explicit settings win, the rest follows the documented rules."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.config.pretrain import OptimizerSettings, PretrainSettings, ScheduleSettings
from pipeline_lib.pretraining.horizon import best_batch_tokens, resolve_horizon, resolve_learning_rates
from pipeline_lib.pretraining.muon import Muon
from pipeline_lib.pretraining.optimizers import set_momentum
from pipeline_lib.pretraining.schedule import momentum_at, schedule_factor

SCHEDULES = st.builds(
    ScheduleSettings,
    name=st.sampled_from(["linear", "cosine", "wsd"]),
    warmup_fraction=st.floats(0, 0.9),
    decay_fraction=st.floats(0, 1),
    final_factor=st.floats(0, 1),
)


@given(SCHEDULES, st.integers(1, 300))
def test_factors_rise_in_the_warm_up_then_never_rise_and_stay_within_bounds(settings, steps):
    factors = [schedule_factor(step, steps, settings) for step in range(1, steps + 1)]
    warmup = round(settings.warmup_fraction * steps)
    assert factors[:warmup] == pytest.approx([step / warmup for step in range(1, warmup + 1)])
    after = factors[warmup:]
    assert all(later <= earlier + 1e-12 for earlier, later in zip(after, after[1:], strict=False))
    assert all(settings.final_factor - 1e-12 <= factor <= 1 for factor in after)
    assert all(factor > 0 for factor in factors)  # every step learns, also the last one of a schedule that ends at 0


def test_shapes_at_the_middle():
    plain = {"warmup_fraction": 0.0, "final_factor": 0.1}
    assert schedule_factor(50, 99, ScheduleSettings(name="linear", **plain)) == pytest.approx(0.55)
    assert schedule_factor(50, 99, ScheduleSettings(name="cosine", **plain)) == pytest.approx(0.55)
    assert schedule_factor(25, 99, ScheduleSettings(name="cosine", **plain)) == pytest.approx(
        0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    )


def test_wsd_is_constant_until_its_decay():
    settings = ScheduleSettings(name="wsd", warmup_fraction=0.1, decay_fraction=0.2, final_factor=0.0)
    factors = [schedule_factor(step, 100, settings) for step in range(1, 101)]
    assert factors[9:80] == [1.0] * 71
    assert factors[80:] == pytest.approx([1 - n / 21 for n in range(1, 21)])


@pytest.mark.parametrize("step", [0, 101, -1])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match="outside"):
        schedule_factor(step, 100, ScheduleSettings())


def test_the_horizon_follows_the_parameters_and_the_batch_follows_the_horizon():
    horizon = resolve_horizon(PretrainSettings(tokens_per_parameter=20), 2048, 768, 110_000_000)
    assert horizon.tokens == pytest.approx(2.2e9, rel=0.001)
    assert horizon.step_tokens == 2**18 == best_batch_tokens(2.2e9)


@given(st.floats(1e5, 1e13))
def test_the_best_batch_is_the_power_of_two_nearest_to_the_law(tokens):
    batch = best_batch_tokens(tokens)
    law = 63 * tokens**0.383
    assert batch & (batch - 1) == 0 and law / math.sqrt(2) <= batch * 1.0001 and batch <= law * math.sqrt(2) * 1.0001


def test_explicit_settings_win():
    settings = PretrainSettings(tokens=100_000, batch_tokens=4096)
    horizon = resolve_horizon(settings, 512, 64, 10**9)
    assert (horizon.steps, horizon.sequences) == (24, 8)
    assert resolve_horizon(settings.model_copy(update={"max_steps": 7}), 512, 64, 10**9).steps == 7
    assert resolve_horizon(settings.model_copy(update={"max_steps": 7000}), 512, 64, 10**9).steps == 24
    rates = resolve_learning_rates(OptimizerSettings(lr=0.1, embedding_lr=0.2, head_lr=0.3), 64)
    assert (rates.matrices, rates.embedding, rates.head) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("width", [64, 256, 768, 4096])
def test_rates_follow_the_width(width):
    adamw = resolve_learning_rates(OptimizerSettings(name="adamw"), width)
    assert adamw.matrices == adamw.embedding == adamw.head == 1 / width
    muon, wider = (resolve_learning_rates(OptimizerSettings(name="muon"), w) for w in (width, 4 * width))
    assert muon.matrices == wider.matrices
    assert muon.embedding == pytest.approx(2 * wider.embedding)
    assert muon.head == pytest.approx(4 * wider.head)
    tied = resolve_learning_rates(OptimizerSettings(name="muon"), width, tied=True)
    assert tied.embedding == pytest.approx(3 * muon.head)  # it writes logits, so it follows the head's law


def test_even_a_tiny_horizon_is_one_step():
    assert resolve_horizon(PretrainSettings(tokens=1), 512, 64, 1000).steps == 1


def test_momentum_rises_to_the_given_one_and_a_lower_one_stays():
    settings = OptimizerSettings(momentum=0.95, momentum_warmup_steps=100)
    values = [momentum_at(step, settings) for step in range(1, 200)]
    assert values[0] == pytest.approx(0.851) and values[49] == pytest.approx(0.9) and set(values[99:]) == {0.95}
    assert values == sorted(values)
    assert momentum_at(1, OptimizerSettings(momentum=0.5)) == 0.5
    assert momentum_at(1, OptimizerSettings(momentum_warmup_steps=0)) == 0.95


def test_momentum_is_set_where_there_is_one():
    muon, adamw = (kind([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1) for kind in (Muon, torch.optim.AdamW))
    set_momentum([muon, adamw], 0.25)
    assert muon.param_groups[0]["momentum"] == 0.25 and "momentum" not in adamw.param_groups[0]
