"""What the meters print is true: tokens by use, FLOPs as torch counts them, speed as the wall clock has it."""

import json
import re
import time

import pytest
import torch
from accelerate.tracking import GeneralTracker
from torch.utils.flop_counter import FlopCounterMode

from pipeline_lib.config.model import ModelSettings
from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.models.initialise import build_model
from pipeline_lib.models.shapes import resolve_shape
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.pretraining.attention import use_attention
from pipeline_lib.pretraining.batches import Batch, PackedData
from pipeline_lib.pretraining.choices import Choices
from pipeline_lib.pretraining.distribution import alone
from pipeline_lib.pretraining.forward import TokenLoss, summed_loss
from pipeline_lib.pretraining.gradients import clip, norms_by_block, parameter_norms
from pipeline_lib.pretraining.horizon import resolve_horizon
from pipeline_lib.pretraining.machine import timed
from pipeline_lib.pretraining.meters import TokenCounts, flop_count, measure_peak
from pipeline_lib.pretraining.progress_line import ProgressLine, spell_progress
from pipeline_lib.pretraining.run_state import TrainingRun
from pipeline_lib.pretraining.spikes import HISTORY_NEEDED, SpikeDetector
from pipeline_lib.pretraining.trackers import Curves, open_trackers
from pipeline_lib.stage import UserError
from pipeline_lib.stage.manifest import Manifest

SPECIAL = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}


def make_run(attention: str, kv_heads: int = 4) -> tuple[TrainingRun, dict]:
    settings = ModelSettings(shape={"layers": 3, "width": 32, "heads": 4, "kv_heads": kv_heads})
    shape = resolve_shape(settings, 50, 64)
    model = build_model(shape, settings, SPECIAL, seed=0)
    if attention == "eager":
        model.set_attn_implementation("eager")
    else:
        use_attention(model, attention)
    network = TokenLoss(model, "dense" if attention == "eager" else attention, "none", torch.float32)
    return TrainingRun(model, network, {}, None, Choices()), shape.parameter_counts()


def one_document_each(rows: int = 3, length: int = 64) -> Batch:
    tokens = torch.randint(2, 50, (rows, length), generator=torch.Generator().manual_seed(0))
    targets = torch.cat([tokens[:, 1:], tokens.new_full((rows, 1), -100)], 1)
    return Batch(tokens, targets, torch.arange(length).expand(rows, -1), torch.ones_like(tokens))


def counted_flops(run: TrainingRun, batch: Batch) -> int:
    in_place = {torch.ops.aten.addmm_: lambda own, left, right, **_: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        summed_loss(run, batch, 1000).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_flops_of_the_matrices_are_those_torch_counts(kv_heads):
    run, parameters = make_run("documents", kv_heads)  # its attention is one operator, which torch does not count
    batch = one_document_each()
    counts = TokenCounts()
    counts.add(batch)
    assert counted_flops(run, batch) == flop_count(parameters["matmul"], 0, 0).of(counts)


def test_the_flops_of_attention_are_those_torch_counts_without_the_half_no_token_sees():
    (dense, parameters), (inside, _) = make_run("eager"), make_run("documents")
    batch = one_document_each()
    attention = counted_flops(dense, batch) - counted_flops(inside, batch)
    counts = TokenCounts()
    counts.add(batch)
    assert counts.pairs == 3 * 64 * 65 // 2
    ours = flop_count(parameters["matmul"], 3, 32)
    assert attention == ours.per_pair * 3 * 64 * 64
    assert ours.of(counts) == 6 * parameters["matmul"] * 3 * 64 + ours.per_pair * counts.pairs


def test_tokens_are_told_apart_and_add_up(packed_run):
    cache = PackedCache(packed_run[1] / "03_packed")
    data = PackedData(cache, 64, 8, 1, 640)
    counts, expected = TokenCounts(), TokenCounts()
    sequences = cache.sequences(64)
    steps = sequences // 8 + 3
    seen = useful = 0
    stream = data.training_batches(None)
    for _ in range(steps):
        batch, state = next(stream)
        counts.add(batch)
        for row in range(8):
            real, predicted = int((batch.documents[row] != 0).sum()), int(batch.counted[row].sum())
            expected.padding += 64 - real
            expected.masked += real - predicted
            expected.predicted += predicted
            useful += predicted if seen < sequences else 0
            seen += 1
            for document in set(batch.documents[row].tolist()) - {0}:
                length = int((batch.documents[row] == document).sum())
                expected.pairs += length * (length + 1) // 2
    assert counts == expected and counts.total == steps * 8 * 64
    assert data.text_read(state).predicted_once == useful < counts.predicted


def test_the_line_is_spelt_as_promised():
    line = spell_progress(770, 26_235, 5.5834, 106_212.4, 4 * 3600 + 23 * 60)
    assert line == "Step 770/26,235 ( 2.9%) | Loss: 5.583 | 106,212 tok/s | ETA: 04:23h"


@pytest.mark.parametrize(
    ("seconds", "spelled"),
    [(0.0, "0s"), (0.4, "0s"), (41.7, "42s"), (59.4, "59s"), (59.6, "00:01h"), (60, "00:01h"), (3600, "01:00h")],
)
def test_less_than_a_minute_is_spelt_in_seconds(seconds, spelled):
    assert spell_progress(1, 2, 5.0, 1.0, seconds).endswith(f" | ETA: {spelled}")


def test_printed_speed_is_that_of_the_clock():
    """A clock of its own: how late a busy machine hands the word over decides nothing."""
    now, said = 100.0, []
    line = ProgressLine(40, 0, 0.05, lambda text: said.append((now, text)), lambda: now)
    times, done = [now], [0]
    for step in range(1, 41):
        now += 0.004 + 0.004 * (step % 3)
        line.step(step, 1.0, 1000)
    done += [int(re.search(r"Step ([\d,]+)/", text)[1].replace(",", "")) for _, text in said]
    times += [moment for moment, _ in said]
    assert len(said) >= 5 and done[-1] == 40
    for index, (moment, text) in enumerate(said):
        truth = 1000 * (done[index + 1] - done[index]) / (moment - times[index])
        printed = float(re.search(r"([\d,]+) tok/s", text)[1].replace(",", ""))
        assert printed == pytest.approx(truth, abs=0.5)  # what the line rounds


def test_the_time_of_a_resumed_run_says_that_it_is_of_all_starts_together():
    from pipeline_lib.pretraining.cost import Prediction

    prediction = Prediction(100.0, 10**9, 10**6, 1000.0, "a probe")
    alone = prediction.against(110.0, 10**9, 10**6, resumed=False)
    assert "; training took 1 min 50 s (+10%), " in alone
    together = prediction.against(110.0, 10**9, 10**6, resumed=True)
    assert "; training took 1 min 50 s in all starts together (+10%), " in together


def test_the_card_of_a_run_agrees_with_its_own_lines(packed_run, launcher, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(packed_run[1], run)
    before = time.time()
    done = launcher.start(packed_run[0], run, "--log_seconds", "0", "--block_norm_steps", "5")
    wall = time.time() - before
    assert done.code == 0, done.output
    assert (
        len(
            re.findall(
                r"Step \d+/24 \(.*%\) \| Loss: \d+\.\d{3} \| [\d,]+ tok/s \| ETA: (?:\d\d:\d\dh|\d+s)", done.output
            )
        )
        == 24
    )
    folder = run / "05_pretrain"
    result = Manifest.read(folder / "manifest.json").result
    times = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
    timing = result["timing"]
    assert sum(line["seconds"] for line in times) == pytest.approx(timing["seconds"], rel=0.01)
    assert timing["seconds"] < wall
    (predicted,) = [note for note in Manifest.read(folder / "manifest.json").notes if note.startswith("predicted ")]
    percent = r" \([+-]\d+%\)"
    took = rf"training took [^%]+ s{percent}, .+{percent}, .+{percent}"
    assert re.fullmatch(rf"predicted .+ of memory, .+ of disk; {took}", predicted)
    assert "in this start" not in done.output and "in all starts" not in predicted
    uses = result["token_uses"]
    assert sum(uses.values()) == result["tokens"] == 24 * 512
    assert 0 < timing["step_mfu"] < 1 and 0 < timing["loader_share"] < 1
    with_norms = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in with_norms:
        assert ("block_grad_norms" in line) == (line["step"] in (5, 10, 15, 20))
        if "block_grad_norms" in line:
            blocks = line["block_grad_norms"]
            assert set(blocks) == {"embedding", "block 0", "block 1", "final norm", "head"}
            assert sum(norm**2 for norm in blocks.values()) ** 0.5 == pytest.approx(line["grad_norm"], rel=1e-4)


def test_norms_and_clipping_are_torchs():
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,), (2, 2))]
    norms = parameter_norms(tensors, alone())
    torch.testing.assert_close(norms, torch.stack([tensor.norm() for tensor in tensors]))
    assert norms_by_block(["model.layers.1.a", "model.norm.weight", "model.layers.1.b"], [3.0, 2.0, 4.0]) == {
        "block 1": 5.0,
        "final norm": 2.0,
    }
    whole = float(torch.linalg.vector_norm(norms))
    clip(tensors, whole, None)
    clip(tensors, whole, whole * 2)
    assert float(torch.linalg.vector_norm(parameter_norms(tensors, alone()))) == pytest.approx(whole)
    clip(tensors, whole, 0.5)
    assert float(torch.linalg.vector_norm(parameter_norms(tensors, alone()))) == pytest.approx(0.5)


def test_a_spike_is_found_once_and_does_not_hide_the_next():
    detector = SpikeDetector(6.0)
    generator = torch.Generator().manual_seed(2)
    noise = (3 + 0.05 * torch.randn(60, generator=generator)).tolist()
    assert not any(detector.find({"loss": value}) for value in noise)
    assert detector.find({"loss": 9.0})["loss"] > 50 and detector.find({"loss": 9.0})["loss"] > 50
    assert not detector.find({"loss": 3.05})
    again = SpikeDetector(6.0)
    again.restore(json.loads(json.dumps(detector.state())))
    assert again.find({"loss": 4.5}) == detector.find({"loss": 4.5}) != {}
    assert SpikeDetector(None).find({"loss": 1e9}) == {}
    constant = SpikeDetector(6.0)
    assert not any(constant.find({"loss": 2.0}) for _ in range(HISTORY_NEEDED)) and constant.find({"loss": 2.3})


def test_a_loss_that_rises_and_stays_is_one_episode_that_comes_to_an_end():
    noise = (0.05 * torch.randn(144, generator=torch.Generator().manual_seed(3))).tolist()
    detector, begins, spikes = SpikeDetector(6.0), [], []
    for number, deviation in enumerate(noise):
        level = 9.0 if 60 <= number < 124 else 3.0
        if detector.find({"loss": level + deviation, "grad_norm": 1 + deviation}):
            spikes.append(number)
        begins += [number] if detector.begins_episode else []
        detector, before = SpikeDetector(6.0), detector
        detector.restore(json.loads(json.dumps(before.state())))  # as a run that is continued at every step
    assert begins == [60] and spikes == list(range(60, 60 + HISTORY_NEEDED))
    assert detector.find({"loss": 30.0, "grad_norm": 1.0}) and detector.begins_episode


def test_spikes_with_ordinary_steps_between_them_are_one_episode_and_end_too():
    detector = SpikeDetector(6.0)
    values = [3 + 0.01 * (n % 3) for n in range(60)] + [3.0 if n % 5 == 4 else 9 + 0.01 * n for n in range(64)]
    found = [(bool(detector.find({"loss": value})), detector.begins_episode) for value in values]
    assert [number for number, (_, begins) in enumerate(found) if begins] == [60]
    assert sum(spike for spike, _ in found) == HISTORY_NEEDED and not any(spike for spike, _ in found[90:])


def test_a_history_of_an_older_version_is_taken_over():
    detector = SpikeDetector(6.0)
    detector.restore({"loss": [2.0] * HISTORY_NEEDED})
    assert detector.find({"loss": 2.3}) and detector.begins_episode


def test_the_measured_peak_is_a_rate_this_machine_reaches():
    left = torch.ones(1024, 1024)
    seconds = min(timed(lambda: left @ left, torch.device("cpu")) for _ in range(5))
    peak = measure_peak(torch.device("cpu"), torch.float32, timed)
    assert 0.3 < peak / (2 * 1024**3 / seconds) < 5


class Remembering(GeneralTracker):
    """A tracker as a user would write one."""

    name, requires_logging_directory = "remembering", False
    log_of: list = []

    def __init__(self):
        super().__init__()

    @property
    def tracker(self):
        return self.log_of

    def store_init_configuration(self, values):
        self.log_of.append(("settings", values))

    def log(self, values, step=None, **_):
        self.log_of.append((step, values))

    def finish(self):
        self.log_of.append("finished")


def test_curves_reach_tensorboard_and_trackers_of_ones_own(tmp_path, monkeypatch):
    import sys

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setitem(sys.modules, "own_trackers", sys.modules[__name__])
    settings = PretrainSettings(trackers=["a", "b"], optimizer={"lr": 1.0}).model_dump(mode="json")
    trackers = open_trackers(["own_trackers:Remembering", "tensorboard"], "demo", tmp_path / "own", "id", settings)
    curves = Curves(tmp_path / "board", -1, trackers)
    curves.add({"step": 0, "val_loss": 6.0}, {"tokens_per_second": 1.0})
    curves.add({"step": 1, "loss": 5.5, "block_grad_norms": {"head": 0.25}}, {"tokens_per_second": 700.0})
    curves.close()
    told, values = Remembering.log_of.pop(0)
    assert told == "settings" and all(isinstance(value, (int, float, str)) for value in values.values())
    assert (values["optimizer.lr"], values["trackers"], values["epochs"]) == (1.0, '["a", "b"]', "null")
    assert Remembering.log_of == [
        (0, {"validation/loss": 6.0}),
        (1, {"training/loss": 5.5, "block_grad_norms/head": 0.25, "speed/tokens_per_second": 700.0}),
        "finished",
    ]
    for folder in (tmp_path / "board", tmp_path / "own" / "demo"):
        events = EventAccumulator(str(folder)).Reload()
        assert events.Scalars("training/loss")[0].value == 5.5 and events.Scalars("training/loss")[0].step == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [("nonsense", "unknown tracker"), ("dvclive", "not installed"), ("json:Tracker", "cannot be loaded")],
)
def test_a_tracker_that_cannot_start_is_one_clear_line(tmp_path, name, words):
    with pytest.raises(UserError, match=words):
        open_trackers([name], "demo", tmp_path, "id", {})


def test_the_learning_rates_of_an_8_bit_run_are_adamws():
    settings = PretrainSettings(optimizer={"name": "adamw_8bit"}, tokens=10_000)
    assert (
        resolve_horizon(settings, 64, 32, 1000).rates
        == resolve_horizon(PretrainSettings(optimizer={"name": "adamw"}, tokens=10_000), 64, 32, 1000).rates
    )
