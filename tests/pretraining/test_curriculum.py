"""Stages of context length and batch size: tokens per step, where reading goes on, a run killed in between."""

import json
import shutil
import signal

import pytest
from packed_run import CONFIG, make_packed_run

from fork_launcher import run_script
from pipeline_lib.config.pretrain import CurriculumStage, PretrainSettings
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.pretraining.batches import PackedData
from pipeline_lib.pretraining.curriculum import Phase, phase_at, plan_phases
from pipeline_lib.pretraining.horizon import resolve_horizon

STAGES = [{"until": 0.25, "context": 32}, {"until": 0.5, "context": 64}, {"until": 1, "context": 128}]


def test_tokens_per_step_stay_the_same_and_the_phases_cover_the_horizon():
    stages = [CurriculumStage(**stage) for stage in STAGES]
    phases = plan_phases(stages, tokens=102_400, batch_tokens=1024, context=64, max_steps=None)
    assert phases == (Phase(1, 25, 32, 32), Phase(26, 50, 64, 16), Phase(51, 100, 128, 8))
    assert [phase_at(phases, step).context for step in (1, 25, 26, 50, 51, 100, 101)] == [32, 32, 64, 64, 128, 128, 128]
    assert plan_phases(stages, 102_400, 1024, 64, max_steps=30)[-1] == Phase(26, 30, 64, 16)
    assert plan_phases([], 102_400, 1024, 64, None) == (Phase(1, 100, 64, 16),)


def test_a_batch_size_schedule_counts_its_tokens():
    settings = PretrainSettings(
        tokens=65_536, batch_tokens=1024, curriculum=[{"until": 0.5, "batch_tokens": 512}, {"until": 1}]
    )
    horizon = resolve_horizon(settings, 64, 32, 1000)
    assert (horizon.steps, horizon.tokens) == (64 + 32, 65_536)
    assert [horizon.step_tokens_at(step) for step in (1, 64, 65, 96)] == [512, 512, 1024, 1024]


@pytest.mark.parametrize("ends", [[0.5], [0.5, 0.4, 1], [0.5, 0.5, 1]])
def test_stages_that_do_not_follow_each_other_are_refused(ends):
    with pytest.raises(ValueError, match="later and later"):
        PretrainSettings(curriculum=[{"until": end} for end in ends])


@pytest.fixture(scope="module")
def cache_run(tmp_path_factory):
    config = CONFIG.replace("contexts: [64], chunk_tokens: 8000", "contexts: [128, 64, 32], chunk_tokens: 1000")
    stages = json.dumps(STAGES)
    return make_packed_run(tmp_path_factory.mktemp("curriculum"), config + f"  curriculum: {stages}\n")


def documents_of(cache: PackedCache, state_context: int, sequences) -> set[str]:
    return {piece.id for number in sequences for piece in cache.pieces(int(number), state_context)}


def test_a_new_length_goes_on_in_the_window_in_hand_and_repeats_no_finished_one(cache_run):
    cache = PackedCache(cache_run[1] / "03_packed", window_chunks=2)
    read, state = set(), None
    for batch in cache.batches(32, 8, seed=5):
        read |= set(batch["sequences"].tolist())
        state = batch["state"]
        if state["offset"] > cache.sequences(32) // 3:
            break
    carried = cache.carry_over(state, 64)
    order = cache.order(64, 5)
    windows, first = order.epoch_windows(0), 0
    for chunks in windows:
        size = int(sum(order.bounds[chunk + 1] - order.bounds[chunk] for chunk in chunks))
        if first + size > carried["offset"]:
            break
        first += size
    finished = documents_of(cache, 32, read)
    unfinished = {piece.id for number in order.window_sequences(0, chunks) for piece in cache.pieces(int(number), 64)}
    later: set[str] = set()
    for batch in cache.batches(64, 8, seed=5, state=carried):
        later |= documents_of(cache, 64, batch["sequences"])
    assert first > 0 and (finished - unfinished) and not (finished - unfinished) & later
    everything = {document.id for document in cache.documents()}
    assert everything - later - finished <= unfinished  # nothing outside of the window in hand is skipped


def test_the_batches_change_length_at_the_stage_and_continue_from_any_step(cache_run):
    cache = PackedCache(cache_run[1] / "03_packed", window_chunks=2)
    phases = plan_phases([CurriculumStage(**stage) for stage in STAGES], 6144, 512, 64, None)
    data = PackedData(cache, 128, 4, seed=5, validation_tokens=500, phases=phases)
    stream = data.training_batches(None)
    all_of_them = [next(stream) for _ in range(12)]
    assert [batch.inputs.shape for batch, _ in all_of_them] == [(16, 32)] * 3 + [(8, 64)] * 3 + [(4, 128)] * 6
    for step in range(1, 12):
        again = data.training_batches(all_of_them[step - 1][1], step)
        batch, state = next(again)
        assert batch.inputs.equal(all_of_them[step][0].inputs) and state == all_of_them[step][1]


@pytest.mark.parametrize(
    "stages",
    [STAGES, [{"until": 0.3, "batch_tokens": 256}, {"until": 1}], [{"until": 1}]],
    ids=["context lengths", "batch schedule", "one stage"],
)
def test_the_place_of_a_step_is_where_the_loop_stands_into_later_epochs(cache_run, stages):
    cache = PackedCache(cache_run[1] / "03_packed", window_chunks=2)
    tokens = 3 * cache.tokens()
    phases = plan_phases([CurriculumStage(**stage) for stage in stages], tokens, 2048, 64, None)
    data = PackedData(cache, phases[-1].context, phases[-1].sequences, 5, 500, phases if len(phases) > 1 else ())
    assert data.state_before(1) is None
    before, stream = None, data.training_batches(None)
    for step in range(1, phases[-1].last + 3):
        assert data.state_before(step) == before
        batch, before = next(stream)
        numbers = [read["sequence"] for read in data.documents_of_next(data.state_before(step), step - 1)]
        rows = [cache.sequence(number, data.context_of(step))["input_ids"].tolist() for number in numbers]
        assert rows == batch.inputs.tolist()


@pytest.mark.slow
def test_a_step_of_a_curriculum_can_be_traced(cache_run, launcher):
    config, run = cache_run
    done = launcher.start(config, run, "--trace", "2")
    assert done.code == 0, done.output
    assert "16 sequences of 32 tokens" in done.output and "row 15: train sequence" in done.output
    done = launcher.start(config, run, "--trace", "2:16")
    assert done.code == 2 and "a step has the rows 0 to 15" in done.output


@pytest.mark.slow
def test_a_step_is_traced_with_the_settings_and_the_seed_of_the_training_and_on_its_inputs_only(fresh_run, launcher):
    config, run = fresh_run
    flags = ("--batch_tokens", "1024", "--seed", "7")
    foretold = launcher.start(config, run, *flags, "--trace", "3").output
    assert "nothing was trained here yet" in foretold and "16 sequences of 64 tokens" in foretold
    assert launcher.start(config, run, *flags, "--time_limit_seconds", "0.001").code == 143
    traced = launcher.start(config, run, "--trace", "3")
    assert traced.code == 0 and foretold.endswith(traced.output), traced.output
    assert run_script("04_init_model.py", config, run, "--seed", "9").returncode == 0
    refused = launcher.start(config, run, "--trace", "3")
    assert refused.code == 2 and "was trained on another 04_init than" in refused.output, refused.output


@pytest.mark.long
def test_a_run_killed_in_every_stage_ends_with_the_same_bits(cache_run, launcher, tmp_path):
    config, folder = cache_run
    whole, run = tmp_path / "whole", tmp_path / "run"
    shutil.copytree(folder, whole)
    shutil.copytree(folder, run)
    done = launcher.start(config, whole)
    assert done.code == 0, done.output
    assert "on 8 sequences of 64 tokens per step" in done.output
    metrics = run / "05_pretrain" / "work" / "metrics.jsonl"
    for count in (5, 11, 17):
        ended = launcher.start(
            config, run, when=lambda count=count: metrics.exists() and metrics.read_bytes().count(b"\n") > count
        )
        assert ended.code == -signal.SIGKILL, ended.output
    done = launcher.start(config, run)
    assert done.code == 0, done.output
    for name in ("metrics.jsonl", "final/model.safetensors"):
        assert (run / "05_pretrain" / name).read_bytes() == (whole / "05_pretrain" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("left", [STAGES[1:], [{"until": 1, "context": 128}]], ids=["without the first", "one"])
def test_a_curriculum_that_is_changed_on_the_way_ends_and_counts_what_was_read_before(
    cache_run, launcher, tmp_path, left
):
    config, folder = cache_run
    run, other = tmp_path / "run", tmp_path / "other.yaml"
    shutil.copytree(folder, run)
    metrics = run / "05_pretrain" / "work" / "metrics.jsonl"
    stopped = launcher.start(
        config,
        run,
        signal_number=signal.SIGTERM,
        when=lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 8,
    )
    assert stopped.code == 128 + signal.SIGTERM, stopped.output
    text = config.read_text()
    assert json.dumps(STAGES) in text
    other.write_text(text.replace(json.dumps(STAGES), json.dumps(left)))
    done = launcher.start(other, run)
    assert done.code == 0, done.output
    refused = launcher.start(other, run, "--trace", "2")
    assert refused.code == 2 and "were changed on the way" in refused.output, refused.output
