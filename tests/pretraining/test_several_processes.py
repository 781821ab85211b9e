"""Stage 05 on several processes: the same curve as one, one checkpoint format for all, one decision at a time."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from tiny_training import SETTINGS, make_run

from pipeline_lib.checkpoints import load_state, newest_valid_checkpoint
from pipeline_lib.pretraining.batches import Batch
from pipeline_lib.pretraining.distribution import join
from pipeline_lib.pretraining.logbook import open_logbook
from pipeline_lib.pretraining.loss import IGNORED
from pipeline_lib.pretraining.run_state import TrainingRun
from pipeline_lib.stage.manifest import Manifest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# float32 sums in another order; measured on this run: 2e-7 (loss) and 6e-7 (gradient norm).
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-5, 1e-4


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "05_pretrain" / "metrics.jsonl").read_text().splitlines()]


def copy_of(packed_run, folder: Path) -> Path:
    shutil.copytree(packed_run[1], folder)
    return folder


def assert_same_curve(run: Path, reference: list[dict]) -> None:
    found = lines(run)
    assert [line["step"] for line in found] == [line["step"] for line in reference]
    for line, expected in zip(found[1:], reference[1:], strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=LOSS_TOLERANCE)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=NORM_TOLERANCE)
        assert ("val_loss" in line) == ("val_loss" in expected)
        assert line.get("val_loss", 0) == pytest.approx(expected.get("val_loss", 0), rel=LOSS_TOLERANCE)


@pytest.fixture(scope="module")
def alone(packed_run, launcher, tmp_path_factory) -> list[dict]:
    run = copy_of(packed_run, tmp_path_factory.mktemp("alone") / "run")
    assert launcher.start(packed_run[0], run).code == 0
    return lines(run)


# The state of this model takes 0.6 MB.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "chosen", "warned"),
    [("0.0001", "fsdp", True), pytest.param("1", "ddp", False, marks=pytest.mark.long)],
)
def test_auto_cuts_a_model_that_does_not_fit_one_device(packed_run, launcher, tmp_path, memory, chosen, warned):
    run = copy_of(packed_run, tmp_path / "run")
    flags = ["--device_memory_gb", memory, "--max_steps", "2", "--validation_tokens", "128"]
    ended = launcher.start(packed_run[0], run, *flags, processes=2)
    assert ended.codes == [0, 0], ended.output
    assert f"strategy {chosen}: the training state" in ended.output
    assert ("memory is expected to run out over 2 processes too" in ended.output) == warned
    assert Manifest.read(run / "05_pretrain" / "manifest.json").result["strategy"] == chosen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "processes"),
    [("fsdp", 2), *(pytest.param(*case, marks=pytest.mark.long) for case in (("ddp", 2), ("ddp", 4), ("fsdp", 4)))],
)
def test_the_loss_curve_is_that_of_one_process(packed_run, launcher, tmp_path, alone, strategy, processes):
    run = copy_of(packed_run, tmp_path / "run")
    ended = launcher.start(packed_run[0], run, "--strategy", strategy, processes=processes)
    assert ended.codes == [0] * processes, ended.output
    assert_same_curve(run, alone)
    result = Manifest.read(run / "05_pretrain" / "manifest.json").result
    assert (result["processes"], result["strategy"]) == (processes, strategy)


def stopped(packed_run, launcher, run: Path, processes: int, *flags: str) -> Path:
    """Start in `run` and send SIGTERM to the first process once twelve lines are written."""
    metrics = run / "05_pretrain" / "work" / "metrics.jsonl"
    ended = launcher.start(
        packed_run[0],
        run,
        *flags,
        processes=processes,
        signal_number=signal.SIGTERM,
        when=lambda: metrics.exists() and metrics.read_text().count("\n") >= 12,
    )
    assert ended.codes == [128 + signal.SIGTERM] * processes, ended.output
    return metrics.parent


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((2, "ddp"), (1, "single")),
        ((1, "single"), (2, "fsdp")),
        ((2, "fsdp"), (1, "single")),
        ((2, "fsdp"), (4, "ddp")),
    ],
)
def test_a_checkpoint_of_some_processes_continues_on_others(packed_run, launcher, tmp_path, alone, first, then):
    made = stopped(packed_run, launcher, copy_of(packed_run, tmp_path / "made"), first[0], "--strategy", first[1])
    run = copy_of(packed_run, tmp_path / "run")
    work = stopped(packed_run, launcher, run, then[0], "--strategy", then[1])
    shutil.rmtree(work / "checkpoints")
    shutil.copytree(made / "checkpoints", work / "checkpoints")
    for name in ("metrics.jsonl", "timings.jsonl"):
        shutil.copy(made / name, work / name)
    ended = launcher.start(packed_run[0], run, "--strategy", then[1], processes=then[0])
    assert ended.codes == [0] * then[0], ended.output
    assert "continuing from" in ended.output
    assert_same_curve(run, alone)


@pytest.mark.slow
def test_the_cores_are_shared_out_anew_when_the_number_of_processes_changes(packed_run, launcher, tmp_path):
    run, config = copy_of(packed_run, tmp_path / "run"), tmp_path / "two.yaml"
    config.write_text(packed_run[0].read_text().replace("threads: 1", "threads: 2"))
    limit = ("--time_limit_seconds", "0.001")
    found = []
    for processes in (2, 1, 2):
        ended = launcher.start(config, run, *limit, processes=processes)
        assert ended.codes == [143] * processes, ended.output
        choices = json.loads((run / "05_pretrain" / "work" / "choices.json").read_text())
        newest = newest_valid_checkpoint(run / "05_pretrain" / "work" / "checkpoints")
        assert load_state(newest)["choices"] == choices
        found.append((choices["processes"], choices["threads"], "threads each" in ended.output))
    assert found == [(2, 1, False), (1, 2, True), (2, 1, True)]
    assert "2 processes with 1 threads each after 1 process with 2 threads" in ended.output
    config.write_text(config.read_text().replace("threads: 2", "threads: 4"))
    same = launcher.start(config, run, *limit, processes=2)  # more cores alone are no reason to round differently
    assert "goes on with the 1 threads it began with" in same.output, same.output


@pytest.mark.long
def test_what_needs_no_training_ends_all_processes(packed_run, launcher, tmp_path):
    run = copy_of(packed_run, tmp_path / "run")
    assert launcher.start(packed_run[0], run, processes=2).codes == [0, 0]
    again = launcher.start(packed_run[0], run, processes=2)
    assert again.codes == [0, 0] and "up to date" in again.output
    wrong = launcher.start(packed_run[0], run, "--strategy", "single", processes=2)
    assert wrong.codes == [2, 2] and "torchrun started 2 processes" in wrong.output
    needs = launcher.start(packed_run[0], run, "--strategy", "fsdp")
    assert needs.code == 2 and "needs several processes" in needs.output


def test_rows_are_shared_out_equally_and_fillings_predict_nothing():
    tensors = [torch.arange(10).view(5, 2) + 1 for _ in range(4)]
    parts = [Batch(*tensors).part(rank, 3) for rank in range(3)]
    assert [len(part.inputs) for part in parts] == [2, 2, 2]
    assert torch.equal(torch.cat([part.inputs for part in parts])[:5], tensors[0])
    assert (parts[2].targets[1] == IGNORED).all() and (parts[2].documents[1] == 0).all()
    assert sum(part.target_count for part in parts) == 10


def open_as_one_of_two(rank: int, port: int, folder: Path, run: TrainingRun) -> None:
    """Open the logbook of `run` as process `rank`, and leave behind which line that one takes to be unwritten."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    run.processes = join("ddp")
    settings = SETTINGS.model_copy(update={"tensorboard": False})
    with open_logbook(folder / str(rank), run, True, settings, "test"):
        (folder / f"{rank}.json").write_text(json.dumps(run.unwritten))


def test_a_line_that_is_taken_back_at_a_shortened_horizon_is_taken_back_by_all(tmp_path):
    """The second process comes late: it sees the lines as the first one leaves them, without the one taken back."""
    run = make_run()
    run.step = run.horizon.steps
    written = [{"step": step, "loss": 2.5} for step in range(run.step + 1)]
    for rank, seen in enumerate((written, written[:-1])):
        (tmp_path / str(rank)).mkdir()
        for name in ("metrics.jsonl", "timings.jsonl"):
            (tmp_path / str(rank) / name).write_text("".join(json.dumps(line) + "\n" for line in seen))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = get_context("fork")
    both = [context.Process(target=open_as_one_of_two, args=(rank, port, tmp_path, run)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [written[-1]] * 2


def meet(rank: int, port: int, restarts: int) -> None:
    """Join as process `rank` of two in a start of torchrun, whose agent keeps the store at `port`."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    agent = {"GROUP_WORLD_SIZE": 1, "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": restarts}
    os.environ.update({name: str(value) for name, value in {**place, **agent}.items()})
    if restarts and rank == 0:
        time.sleep(1)  # so that the other one looks for it first
    assert join("ddp").largest(rank) == 1
    os._exit(0)


def test_the_processes_of_a_restart_find_each_other_and_not_those_before_them():
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = get_context("fork")
    for restarts in range(2):
        both = [context.Process(target=meet, args=(rank, store.port, restarts)) for rank in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(20)
            process.kill()
        assert [process.exitcode for process in both] == [0, 0]


@pytest.mark.long
def test_torchrun_itself_starts_and_resumes(packed_run, tmp_path, alone):
    run = copy_of(packed_run, tmp_path / "run")
    command = [
        str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2",
        str(SCRIPTS / "05_pretrain.py"), "--config", str(packed_run[0]), "--run-dir", str(run),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ})
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_curve(run, alone)
