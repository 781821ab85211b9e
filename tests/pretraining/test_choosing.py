"""compile: auto compiles when the run ends sooner for it, compiling included; a probe takes the memory there is."""

import pytest
import torch

from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.pretraining import choosing
from pipeline_lib.pretraining.batches import Batch
from pipeline_lib.pretraining.horizon import resolve_horizon
from pipeline_lib.stage import StageFailure

CPU = torch.device("cpu")
TENSOR = torch.zeros(4, 64, dtype=torch.long)


class Clock:
    """Stands for the machine: a pass takes `eager` or `compiled` seconds, and compiling takes `compiler`."""

    def __init__(self, monkeypatch, eager: float, compiled: float, compiler: float):
        self.now, self.state, self.compilations = 0.0, "eager", 0
        self.seconds, self.compiler = {"eager": eager, "compiled": compiled}, compiler
        monkeypatch.setattr(choosing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(choosing, "compile_body", self.compile)
        monkeypatch.setattr(choosing, "uncompile_body", lambda model: setattr(self, "state", "eager"))
        monkeypatch.setattr(choosing, "measure_micro_batch", self.measure)
        self.model = None

    def compile(self, model, strategy):
        self.state, self.compilations = "compiled", self.compilations + 1
        self.now += self.compiler

    def measure(self, network, batch, chunk, device, warm=1, repeats=2):
        self.now += (warm + repeats) * self.seconds[self.state]
        return self.seconds[self.state]


@pytest.mark.parametrize(
    ("steps", "eager", "compiled", "compiler", "expected", "tried"),
    [
        (10_000, 1.0, 0.8, 60.0, True, True),  # saves 4,000 s (two micro-batches a step) for a minute
        (10_000, 1.0, 1.1, 60.0, False, True),  # it is slower
        (1_000, 1.0, 0.98, 60.0, False, True),  # saves 40 s and costs 60
        (100, 1.0, 0.5, 60.0, False, False),  # too short to try
    ],
)
def test_compiling_is_chosen_where_the_run_ends_sooner_for_it(
    monkeypatch, steps, eager, compiled, compiler, expected, tried
):
    clock = Clock(monkeypatch, eager, compiled, compiler)
    settings = PretrainSettings(tokens=steps * 512, batch_tokens=512)
    horizon = resolve_horizon(settings, 64, 32, 1000)
    assert horizon.steps == steps and horizon.sequences == 8
    chosen, why = choosing.compiling_pays(clock, Batch(TENSOR, TENSOR, TENSOR, TENSOR), settings, horizon, CPU)
    assert (chosen, clock.compilations > 0) == (expected, tried)
    assert clock.state == "eager"
    assert f"{2 * eager:.3f} s" in why
    assert why.startswith("compiled: " if expected else "not compiled")


def test_steps_of_a_smaller_batch_count_for_what_they_cost(monkeypatch):
    """Four fifths of the steps take a quarter of the last batch: were they all as long, compiling would pay."""
    clock = Clock(monkeypatch, eager=1.0, compiled=0.98, compiler=60.0)
    schedule = [{"until": 0.5, "batch_tokens": 512}, {"until": 1.0, "batch_tokens": 2048}]
    settings = PretrainSettings(tokens=512 * 800, curriculum=schedule)
    horizon = resolve_horizon(settings, 64, 32, 1000)
    assert horizon.steps == 500 and horizon.tokens == 200 * horizon.step_tokens
    chosen, why = choosing.compiling_pays(clock, Batch(TENSOR, TENSOR, TENSOR, TENSOR), settings, horizon, CPU)
    assert not chosen and why.startswith("not compiled: 8.000 s a step, compiled 7.840 s")  # 32 s gained for 60


class Scattering(torch.nn.Linear):
    """A network with an operation that has no deterministic form, on any device."""

    def forward(self, inputs, *_):
        states = super().forward(inputs.float())
        return states.put(torch.tensor([0, 0]), torch.ones(2), accumulate=False).sum()


def test_an_operation_without_a_deterministic_form_is_found_and_named():
    batch = Batch(*(torch.zeros(4, 8, dtype=torch.int64) for _ in range(4)))
    try:
        found, why = choosing.has_deterministic_kernels(Scattering(8, 8), batch, 8, CPU)
        assert not found and "put_" in why and torch.is_deterministic_algorithms_warn_only_enabled()
        network = torch.nn.Linear(8, 1)
        network.forward = lambda inputs, *_: torch.nn.functional.linear(inputs.float(), network.weight).sum()
        assert choosing.has_deterministic_kernels(network, batch, 8, CPU) == (True, None)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_a_probe_too_large_for_the_memory_is_halved_until_it_fits(monkeypatch):
    room = [0]

    def measure(network, batch, *_, **__):
        if len(batch.inputs) > room[0]:
            raise MemoryError

    monkeypatch.setattr(choosing, "measure_micro_batch", measure)
    batch = Batch(*(torch.zeros(12, 4, dtype=torch.int64) for _ in range(4)))
    network = torch.nn.Linear(1, 1)
    for room[0], left in ((12, 12), (7, 6), (2, 1)):
        assert len(choosing.fitting_probe(network, batch, 8, CPU).inputs) == left
    room[0] = 0
    with pytest.raises(StageFailure, match="not even one sequence of 4 tokens fits"):
        choosing.fitting_probe(network, batch, 8, CPU)
