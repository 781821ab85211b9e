"""compile: auto compiles when the run ends sooner for it, compiling included; a probe takes the memory there is."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from tiny_training import SETTINGS, make_model, make_run, open_data

from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.pretraining import choosing, cost, machine, outcome, setup
from pipeline_lib.pretraining.batches import Batch
from pipeline_lib.pretraining.choices import Choices
from pipeline_lib.pretraining.distribution import Processes, alone
from pipeline_lib.pretraining.forward import TokenLoss
from pipeline_lib.pretraining.horizon import resolve_horizon
from pipeline_lib.pretraining.inputs import TrainingInputs
from pipeline_lib.pretraining.logbook import open_logbook
from pipeline_lib.pretraining.step_lines import lines_of
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
        assert len(choosing.fitting_probe(network, batch, 8, CPU)[0].inputs) == left
    room[0] = 0
    with pytest.raises(StageFailure, match="not even one sequence of 4 tokens fits"):
        choosing.fitting_probe(network, batch, 8, CPU)


class SlowMachine:
    """Stands for a slow machine: a forward and backward pass of a sequence takes `seconds`; counts what is asked.

    cold: what the first pass of a network, and the first one after compiling it, takes more; compiled: what a pass of a
    sequence takes then.
    """

    def __init__(self, monkeypatch, seconds: float, cold: float = 0.0, compiled: float | None = None):
        self.now, self.passes, self.sequences = 0.0, 0, 0
        self.eager, self.compiled, self.cold = seconds, compiled or seconds, cold
        self.seconds, self.owed = seconds, 0.0
        monkeypatch.setattr(choosing, "compile_body", lambda *_: self.begin(self.compiled))
        monkeypatch.setattr(choosing, "uncompile_body", lambda *_: self.begin(self.eager))
        for module in (choosing, cost, machine):
            monkeypatch.setattr(module, "timed", self.timed)
        monkeypatch.setattr(choosing.time, "perf_counter", lambda: self.now)

    def timed(self, action, device):
        began = self.now
        action()
        self.now += 1e-6  # an action that is no pass
        return self.now - began

    def begin(self, seconds: float) -> None:
        self.seconds, self.owed = seconds, self.cold

    def watch(self, network):
        def count(_, arguments):
            self.passes, self.sequences = self.passes + 1, self.sequences + len(arguments[0])
            self.now += self.seconds * len(arguments[0]) + self.owed
            self.owed = 0.0

        self.begin(self.eager)
        network.register_forward_pre_hook(count)
        return network


def plan_on(slow: SlowMachine, packed_run, monkeypatch, peak: float, settings: PretrainSettings = SETTINGS):
    """Choose and predict a tiny run on a machine whose large matrix products reach `peak` FLOP/s."""
    monkeypatch.setattr(choosing, "measure_peak", lambda *_: peak)
    monkeypatch.setattr(choosing, "TokenLoss", lambda *arguments: slow.watch(TokenLoss(*arguments)))
    run = make_run(settings)
    parameters = {"total": 30_000, "matmul": choosing.matmul_parameters(run.model)}
    data = open_data(packed_run[1] / "03_packed")
    inputs = TrainingInputs(data, run.horizon, parameters, "llama", 2, 32, 32, packed_run[1], settings.micro_batch)
    choices = choosing.choose(settings, run.model, "none", inputs.probe(), run.horizon, alone())
    run.choices = choices
    slow.watch(run.network)
    return run, inputs, cost.predict(run, inputs, settings)


def peak_at_which_a_sequence_takes(seconds: float) -> float:
    return 6 * choosing.matmul_parameters(make_model()) * 64 / seconds


def test_the_probe_of_a_slow_machine_asks_for_few_passes_of_few_sequences(packed_run, monkeypatch):
    """Eight sequences a micro-batch at 5.5 s each: all eleven passes of all of them would take eight minutes."""
    slow = SlowMachine(monkeypatch, 5.5)
    settings = SETTINGS.model_copy(update={"compile": "auto", "tokens": 512 * 10_000})
    run, _, made = plan_on(slow, packed_run, monkeypatch, peak_at_which_a_sequence_takes(2.75), settings)
    assert slow.now < 40 and slow.sequences <= 7  # eager, compiled and the cost twice each, and what a pass keeps
    assert made.seconds == pytest.approx(run.horizon.steps * 8 * 5.5, rel=0.01)
    assert "1 of 8 sequences were timed, once" in made.basis


@pytest.mark.parametrize(("compiled", "pays"), [(5.6, False), (5.0, True)])
def test_the_first_pass_on_a_slow_machine_is_neither_predicted_nor_held_against_a_later_one(
    packed_run, monkeypatch, compiled, pays
):
    slow = SlowMachine(monkeypatch, 5.5, cold=30.0, compiled=compiled)
    settings = SETTINGS.model_copy(update={"compile": "auto", "tokens": 512 * 10_000})
    run, _, made = plan_on(slow, packed_run, monkeypatch, peak_at_which_a_sequence_takes(2.75), settings)
    assert run.choices.compiled == pays
    assert made.seconds == pytest.approx(run.horizon.steps * 8 * 5.5, rel=0.01)


def test_the_probe_of_a_small_model_stays_what_it_was(packed_run, monkeypatch):
    quick = SlowMachine(monkeypatch, 0.01)
    settings = SETTINGS.model_copy(update={"compile": "auto"})
    run, _, made = plan_on(quick, packed_run, monkeypatch, peak_at_which_a_sequence_takes(0.005), settings)
    assert (quick.passes, quick.sequences) == (1 + 3 + 1 + 2, 8 * 7)
    assert made.seconds == pytest.approx(run.horizon.steps * 8 * 0.01, rel=0.1) and "timed, once" not in made.basis


def test_what_a_pass_keeps_grows_with_its_sequences_and_leaves_weights_out(packed_run):
    data, run = open_data(packed_run[1] / "03_packed"), make_run()
    whole = next(data.validation_batches(8))
    kept = {n: cost.saved_bytes(run, next(whole.split(n)), 2048) for n in (1, 2, 8)}
    assert kept[8] == pytest.approx(8 * kept[1], rel=0.15) and kept[8] == pytest.approx(4 * kept[2], rel=0.15)
    low = TokenLoss(run.model, "documents", "none", torch.bfloat16)  # keeps copies of all weights
    run.network = low
    assert cost.saved_bytes(run, whole, 2048) < kept[8]


def test_a_slow_matrix_product_is_not_timed_six_times(monkeypatch):
    asked = []
    monkeypatch.setattr(machine, "timed", lambda action, device: asked.append(1) or 2.0)
    assert machine.measure_matmul(CPU, 8, 4).float32 > 0 and len(asked) == 4  # both formats, twice


@pytest.mark.parametrize(("began_with", "peak"), [((2, 1), 7e9), ((1, 1), 3e9), ((2, 4), 3e9)])
def test_the_peak_is_measured_again_where_other_processes_have_another_number_of_threads(
    tmp_path, monkeypatch, began_with, peak
):
    """Of a run that goes on as one process with four threads; one process keeps the threads that it began with."""
    processes, threads = began_with
    began = Choices(processes=processes, threads=threads, peak_flops=3e9, device="cpu", dtype="bfloat16")
    (tmp_path / "choices.json").write_text(json.dumps(asdict(began)))
    asked = []
    monkeypatch.setattr(setup, "measure_peak", lambda device, dtype, _: asked.append((device, dtype)) or 7e9)
    stage = SimpleNamespace(work=tmp_path, note=lambda _: None)
    choices = setup._choices_of_the_first(stage, Processes(0, 1, "single", CPU), 4, make=None)
    assert choices.peak_flops == json.loads((tmp_path / "choices.json").read_text())["peak_flops"] == peak
    assert asked == [(CPU, torch.bfloat16)] * (peak == 7e9)


def test_a_step_is_held_against_the_peak_of_the_start_that_did_it(tmp_path):
    run = make_run()
    run.choices = Choices(peak_flops=7e9)
    with open_logbook(tmp_path, run, False, SETTINGS.model_copy(update={"tensorboard": False}), "test") as book:
        book.write(run, {"step": 0})
    [line] = lines_of(tmp_path / "timings.jsonl")
    run.choices = Choices(peak_flops=3e9)  # the next start has fewer threads
    assert outcome._possible_flops(line, run) == 7e9 * line["seconds"]
    assert outcome._possible_flops({"seconds": 3.0, "loader": 1.0}, run) == 6e9
