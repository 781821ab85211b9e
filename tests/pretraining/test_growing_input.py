"""Training beside a stage 03 that is still at work: other moments, the same final bits."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from packed_run import CONFIG, write_text
from test_05_pretrain import digests, notes
from test_several_processes import assert_same_curve, lines

from fork_launcher import SCRIPTS, run_script
from pipeline_lib.checkpoints import load_checkpoint, newest_valid_checkpoint
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.packing.so_far import index_name
from pipeline_lib.pretraining import growing
from pipeline_lib.pretraining.batches import PackedData
from pipeline_lib.pretraining.distribution import alone
from pipeline_lib.stage.inputs import SO_FAR
from pipeline_lib.stage.manifest import Manifest

pytestmark = pytest.mark.slow

GROWING = CONFIG.replace("chunk_tokens: 8000", "chunk_tokens: 4000, part_bytes: 30000").replace(
    "tokens: 12288", "epochs: 0.8\n  growing_input: true\n  growing_patience_seconds: 1"
)
SHARDS = 4


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory) -> tuple[Path, Path]:
    """(configuration file, run folder) with stage 02 finished, of several shards."""
    folder = tmp_path_factory.mktemp("growing")
    (folder / "growing.yaml").write_text(GROWING)
    for shard in range(SHARDS):
        write_text(folder / "run", 100, seed=shard, shard=shard)
    return folder / "growing.yaml", folder / "run"


@pytest.fixture(scope="module")
def begun(cleaned, tmp_path_factory) -> tuple[Path, Path]:
    """(configuration file, run folder) with one part of stage 03 published, stage 03 killed, and stage 04 finished."""
    config, run = cleaned[0], tmp_path_factory.mktemp("begun") / "run"
    shutil.copytree(cleaned[1], run)
    packing = start_packing(config, run, 1)
    packing.kill()
    packing.wait()
    model = run_script("04_init_model.py", config, run)
    assert model.returncode == 0, model.stdout + model.stderr
    return config, run


@pytest.fixture(scope="module")
def packed(begun, tmp_path_factory) -> Path:
    """The run in which stage 03 has finished, after the kill."""
    run = tmp_path_factory.mktemp("packed") / "run"
    shutil.copytree(begun[1], run)
    done = run_script("03_tokenize_and_pack.py", begun[0], run)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


@pytest.fixture(scope="module")
def afterwards(begun, packed, launcher, tmp_path_factory) -> Path:
    """The run in which stage 05 began when stage 03 had finished."""
    run = tmp_path_factory.mktemp("afterwards") / "run"
    shutil.copytree(packed, run)
    done = launcher.start(begun[0], run)
    assert done.code == 0, done.output
    return run


def start_packing(config: Path, run: Path, parts: int) -> subprocess.Popen:
    """Start stage 03 and stop it (SIGSTOP) once so many parts are published."""
    command = [sys.executable, str(SCRIPTS / "03_tokenize_and_pack.py"), "--config", str(config), "--run-dir", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stop_packing(process, run, parts)
    return process


def stop_packing(process: subprocess.Popen, run: Path, parts: int) -> None:
    """Stop a stage 03 at work (SIGSTOP) once so many parts are published."""
    work = run / "03_packed" / "work"
    while process.poll() is None:
        manifest = Manifest.read(work / SO_FAR)
        if manifest is not None and any(name >= index_name(parts) for name in manifest.files if "index" in name):
            process.send_signal(signal.SIGSTOP)
            break
        time.sleep(0.001)
    assert process.poll() is None


def test_left_alone_it_saves_and_names_the_command_and_without_the_setting_it_does_not_begin(begun, launcher, tmp_path):
    config, run = begun[0], tmp_path / "run"
    shutil.copytree(begun[1], run)
    refused = launcher.start(config, run, "--growing_input", "false")
    assert refused.code == 2 and "set pretrain.growing_input" in refused.output, refused.output
    alone = launcher.start(config, run)
    assert alone.code == 2, alone.output
    command = f"python scripts/03_tokenize_and_pack.py --config {config} --run-dir {run}"
    assert "nobody works at it" in alone.output and command in alone.output
    assert "tokens are published" in alone.output
    assert load_checkpoint(newest_valid_checkpoint(run / "05_pretrain" / "work" / "checkpoints")).step > 0


def test_the_first_pass_reads_part_after_part_and_the_estimate_comes_from_the_first(packed):
    cache = PackedCache(packed / "03_packed")
    assert len(cache.index["parts"]) == SHARDS
    assert cache.estimated_tokens() == pytest.approx(cache.tokens(), rel=0.2)
    data = PackedData(cache, 64, 8, seed=42, validation_tokens=10**6, growing=True)
    table = cache.table(64)
    ends = [int(table.bounds[chunks]) for chunks in table.parts[1:]]
    read = []
    for step in range(1, ends[-1] // 8):
        read += [row["sequence"] for row in data.documents_of_next(data.state_before(step), step - 1)]
    begin = 0
    for end in ends[:-1]:
        assert sorted(read[begin:end]) == list(range(begin, end))
        begin = end
    val = cache.table(64, "val")
    assert data.validation_sequences == int(val.bounds[val.parts[1]]) < val.sequences


def test_a_training_at_work_goes_on_with_a_part_that_is_published_while_stage_03_is_still_at_the_next(
    cleaned, launcher, tmp_path
):
    config, run = cleaned[0], tmp_path / "run"
    shutil.copytree(cleaned[1], run)
    output, metrics = run / "output.txt", run / "05_pretrain" / "work" / "metrics.jsonl"
    packing = start_packing(config, run, 1)
    steps_of_the_first, give_up_at = None, 0.0

    def has_read_more() -> bool:
        nonlocal steps_of_the_first, give_up_at
        if steps_of_the_first is None:
            if not output.exists() or "waiting for stage 03" not in output.read_text():
                return False
            steps_of_the_first = len(metrics.read_text().splitlines())
            packing.send_signal(signal.SIGCONT)
            stop_packing(packing, run, 2)
            give_up_at = time.monotonic() + 60
        return len(metrics.read_text().splitlines()) > steps_of_the_first or time.monotonic() > give_up_at

    try:
        assert run_script("04_init_model.py", config, run).returncode == 0
        output.unlink()
        ended = launcher.start(config, run, signal_number=signal.SIGTERM, when=has_read_more)
        assert not (run / "03_packed" / "manifest.json").exists()
    finally:
        packing.kill()
        packing.wait()
    assert ended.code == 128 + signal.SIGTERM, ended.output
    assert len(metrics.read_text().splitlines()) > steps_of_the_first, ended.output


def test_waiting_never_looks_again_without_a_pause(monkeypatch):
    """Stage 03 that publishes something at every look, none of it enough, as parts of validation text alone would."""
    pauses, looks = [], []
    monkeypatch.setattr(growing.time, "sleep", pauses.append)
    monkeypatch.setattr(growing, "_has_more", lambda packed: True)
    monkeypatch.setattr(growing, "open_packed", lambda stage: (stage.inputs["03_packed"], None))
    monkeypatch.setattr(growing, "interrupted", lambda stage, processes: False)
    packed = SimpleNamespace(finished=False, at_work=True)
    settings = SimpleNamespace(time_limit_seconds=None, growing_patience_seconds=60)
    stage = SimpleNamespace(
        inputs={"03_packed": packed},
        input_again=lambda name: packed,
        settings=settings,
        started=0.0,
        say=lambda line: None,
    )

    def enough() -> bool:
        looks.append(1)
        return len(looks) == 5

    growing.wait_for_text(stage, SimpleNamespace(), alone(), enough, "it waits", lambda: None)
    assert pauses == [0, *[pytest.approx(0.2)] * 3]  # the first look is at once


@pytest.mark.long
def test_killed_waiting_left_alone_and_continued_it_ends_with_the_bits_of_a_run_afterwards(
    cleaned, afterwards, launcher, tmp_path
):
    config, run = cleaned[0], tmp_path / "run"
    shutil.copytree(cleaned[1], run)
    output = run / "output.txt"

    def waits() -> bool:
        return output.exists() and "waiting for stage 03" in output.read_text()

    packing = start_packing(config, run, 1)
    try:
        model = run_script("04_init_model.py", config, run)
        assert model.returncode == 0, model.stdout + model.stderr
        killed = launcher.start(config, run, when=waits)
        assert killed.code == -signal.SIGKILL, killed.output
        assert "tokens are published" in killed.output
    finally:
        packing.kill()
        packing.wait()
    alone = launcher.start(config, run)
    assert alone.code == 2, alone.output
    command = f"python scripts/03_tokenize_and_pack.py --config {config} --run-dir {run}"
    assert "nobody works at it" in alone.output and command in alone.output
    saved = load_checkpoint(newest_valid_checkpoint(run / "05_pretrain" / "work" / "checkpoints"))
    assert 0 < saved.step < Manifest.read(afterwards / "05_pretrain" / "manifest.json").result["steps"]
    packing = start_packing(config, run, 2)
    try:
        output.unlink()

        def let_go_on() -> bool:
            if waits():
                packing.send_signal(signal.SIGCONT)
            return False

        done = launcher.start(config, run, when=let_go_on)
        assert done.code == 0, done.output
    finally:
        packing.send_signal(signal.SIGCONT)
        assert packing.wait(timeout=60) == 0
    assert digests(run) == digests(afterwards)
    ours, theirs = (Manifest.read(folder / "05_pretrain" / "manifest.json") for folder in (run, afterwards))
    assert ours.fingerprint == theirs.fingerprint
    assert any("estimated at" in note for note in notes(run))
    waited, at_once = (manifest.result["timing"]["text_wait_seconds"] for manifest in (ours, theirs))
    assert waited > 0 == at_once and ours.result["timing"]["loader_share"] < 0.5
    assert not any("made from an earlier" in note for note in notes(run))
    for script in ("04_init_model.py", "05_pretrain.py"):
        assert "up to date" in run_script(script, config, run).stdout


@pytest.mark.long
def test_two_processes_wait_for_the_same_text_and_have_the_curve_of_one(cleaned, afterwards, launcher, tmp_path):
    config, run = cleaned[0], tmp_path / "run"
    shutil.copytree(cleaned[1], run)
    output = run / "output.txt"
    packing = start_packing(config, run, 1)
    let_go = False

    def let_go_on() -> bool:
        nonlocal let_go
        if not let_go and output.exists() and "waiting for stage 03" in output.read_text():
            let_go = True
            packing.send_signal(signal.SIGCONT)
        return False

    try:
        model = run_script("04_init_model.py", config, run)
        assert model.returncode == 0, model.stdout + model.stderr
        done = launcher.start(config, run, when=let_go_on, processes=2)
        assert done.codes == [0, 0], done.output
    finally:
        packing.send_signal(signal.SIGCONT)
        assert packing.wait(timeout=60) == 0
    assert let_go
    assert_same_curve(run, lines(afterwards))


@pytest.mark.long
def test_a_signal_while_waiting_saves_and_the_setting_is_named_when_it_is_missing(cleaned, launcher, tmp_path):
    config, run = cleaned[0], tmp_path / "run"
    shutil.copytree(cleaned[1], run)
    packing = start_packing(config, run, 1)
    try:
        assert run_script("04_init_model.py", config, run).returncode == 0
        refused = launcher.start(config, run, "--growing_input", "false")
        assert refused.code == 2 and "set pretrain.growing_input" in refused.output, refused.output
        (run / "output.txt").unlink()

        def waits() -> bool:
            return (run / "output.txt").exists() and "waiting for stage 03" in (run / "output.txt").read_text()

        flags = ["--schedule.warmup_fraction", "0.9"]
        ended = launcher.start(config, run, *flags, signal_number=signal.SIGTERM, when=waits)
        assert ended.code == 128 + signal.SIGTERM, ended.output
        assert "reads more than what is published and will wait for the rest" in ended.output, ended.output
        saved = newest_valid_checkpoint(run / "05_pretrain" / "work" / "checkpoints")
        assert f"step {load_checkpoint(saved).step}:" in ended.output
    finally:
        packing.kill()
        packing.wait()
